"""Hydra launcher ``processes``: every run of a sweep is a process of its own, several side by side.

Hydra's basic launcher runs all jobs in one process: a crash of one ends the sweep, and two one-thread runs beat one on
two threads. A finished run is skipped without starting a process, so a sweep is resumed by launching it again.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import os
import subprocess
import sys
import time
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from tqdm import tqdm

from varscale.app.config import ConfigError, checked, reference
from varscale.app.processes import available_cores, describe_exit, spawn, stop
from varscale.records import CURVE_FILE, RUN_FILE, RecordError, read_json

CONSOLE_FILE = "console.log"
_POLL_S = 0.1
# Hydra takes launchers only from below the namespace hydra_plugins; `register` puts this one there.
_PLUGIN_MODULE = "hydra_plugins.varscale"
_TAIL_BYTES = 4096
_LONGEST_NAME = 200  # most file systems allow 255 bytes
_UNNAMED = ("sweeps", "debug", "design", "study", "paths", "trainer", "logger", "sample", "plan", "analysis", "hydra")


class SweepError(RuntimeError):
    """Some runs of a sweep failed; the table of the runs has been printed."""


@dataclass
class ProcessesConf:
    """The settings of the launcher, under ``hydra.launcher``."""

    _target_: str = f"{_PLUGIN_MODULE}.ProcessesLauncher"
    n_jobs: int | None = None  # runs side by side; null: cores // threads_per_job
    threads_per_job: int = 1
    leave_out: list[str] = field(default_factory=list)  # overrides, such as model.width=64, whose runs are not started
    # Keys, with all below them, that are no part of a run's folder name: they do not change what is measured.
    unnamed: list[str] = field(default_factory=lambda: list(_UNNAMED))
    program: list[str] | None = None  # command line in front of the verb; null: this interpreter with -m varscale
    grace_s: float = 60.0  # seconds a run gets after Ctrl-C to write its checkpoint


@dataclass
class Job:
    """One run of the sweep and how it stands."""

    name: str
    overrides: tuple[str, ...]
    folder: Path
    status: str = "waiting"
    started: float = 0.0
    elapsed_s: float | None = None
    process: subprocess.Popen[bytes] | None = None


class ProcessesLauncher(Launcher):
    """Starts each job as ``python -m varscale VERB OVERRIDES`` in RUN mode. Settings: `ProcessesConf`."""

    __module__ = _PLUGIN_MODULE

    def __init__(
        self,
        n_jobs: int | None,
        threads_per_job: int,
        leave_out: Sequence[str],
        unnamed: Sequence[str],
        program: Sequence[str] | None,
        grace_s: float,
    ) -> None:
        if threads_per_job < 1 or (n_jobs is not None and n_jobs < 1):
            raise ConfigError(f"n_jobs={n_jobs} and threads_per_job={threads_per_job} must be at least 1")
        self.n_jobs = n_jobs or max(1, available_cores() // threads_per_job)
        self.threads_per_job = threads_per_job
        self.leave_out = tuple(leave_out)
        self.unnamed = tuple(unnamed)
        self.program = tuple(program or (sys.executable, "-m", "varscale"))
        self.grace_s = grace_s

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context = hydra_context
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs in the order of the sweep. Raises ``SweepError`` if one failed, ``ConfigError`` before any."""
        jobs = [self._job(overrides) for overrides in job_overrides]
        self._check_names(jobs)
        self._set_aside(jobs)
        print(f"{len(jobs)} runs, {self.n_jobs} side by side, in {self.config.hydra.sweep.dir}", file=sys.stderr)
        try:
            self._run(jobs)
        finally:
            self._stop(jobs)
            print(table(jobs), file=sys.stderr)
        failed = [job for job in jobs if job.status.startswith("failed")]
        if failed:
            consoles = "\n".join(f"  {job.folder / CONSOLE_FILE}" for job in failed)
            raise SweepError(f"{len(failed)} of {len(jobs)} runs failed; their output:\n{consoles}")
        return [JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED, _return_value=None) for job in jobs]

    def _job(self, overrides: Sequence[str]) -> Job:
        name = run_name(overrides, self.unnamed)
        return Job(name, tuple(overrides), Path(self.config.hydra.sweep.dir).absolute() / name)

    def _check_names(self, jobs: Sequence[Job]) -> None:
        names = [job.name for job in jobs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"several runs of the sweep share the folder {twice[0]}; let their overrides differ")
        for entry in self.leave_out:
            if not any(entry in job.overrides for job in jobs):
                raise ConfigError(f"hydra.launcher.leave_out: no run has the override {entry}; it has e.g. {names[0]}")

    def _set_aside(self, jobs: Sequence[Job]) -> None:
        """Check every job's config before any process starts, and mark those that need none."""
        from varscale.app.identity import finished

        references: dict[tuple[tuple[str, Any], ...], DictConfig] = {}
        singleton = HydraConfig.instance()
        before = singleton.cfg
        try:
            for job in tqdm(jobs, desc="checking the runs", leave=False, disable=None):
                composed = self.context.config_loader.load_sweep_config(self.config, list(job.overrides))
                with open_dict(composed):
                    composed.hydra.run.dir = str(job.folder)
                    composed.hydra.runtime.output_dir = str(job.folder)
                singleton.set_config(composed)
                choices = tuple(sorted(composed.hydra.runtime.choices.items()))
                if choices not in references:
                    references[choices] = reference(composed.hydra)
                task = copy.deepcopy(composed)
                with open_dict(task):
                    del task["hydra"]
                if set(self.leave_out) & set(job.overrides):
                    job.status = "left out"
                elif finished(checked(task, references[choices]), job.folder):
                    job.status = "finished before"
        finally:
            singleton.cfg = before

    def _run(self, jobs: Sequence[Job]) -> None:
        waiting = [job for job in jobs if job.status == "waiting"]
        running: list[Job] = []
        total = len(waiting)
        ended = 0
        with tqdm(total=total, desc="runs", unit="run", disable=None) as bar:
            while waiting or running:
                while waiting and len(running) < self.n_jobs:
                    job = waiting.pop(0)
                    self._start(job)
                    running.append(job)
                for job in [job for job in running if job.process is not None and job.process.poll() is not None]:
                    running.remove(job)
                    ended += 1
                    _settle(job)
                    bar.write(
                        f"[{ended}/{total}] {job.name}: {job.status}, {_duration(job.elapsed_s)}", file=sys.stderr
                    )
                    bar.update()
                if not bar.disable:
                    bar.set_postfix_str("; ".join(f"{job.name} {progress(job.folder)}" for job in running))
                time.sleep(_POLL_S)

    def _start(self, job: Job) -> None:
        hydra = self.config.hydra
        folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
        quoted = str(job.folder).replace("\\", "\\\\").replace("'", "\\'")
        command = [
            *self.program,
            hydra.job.config_name,
            *(part for folder in folders for part in ("--config-dir", folder)),
            *(override for override in hydra.overrides.hydra if not override.lstrip("+~").startswith(_OF_THE_SWEEP)),
            *job.overrides,
            f"hydra.run.dir='{quoted}'",
        ]
        job.process = spawn(command, console=job.folder / CONSOLE_FILE, threads=self.threads_per_job)
        job.status, job.started = "running", time.monotonic()

    def _stop(self, jobs: Sequence[Job]) -> None:
        running = [job for job in jobs if job.status == "running"]
        if running:
            print(f"stopping {len(running)} runs; they write their checkpoints", file=sys.stderr)
        stop([job.process for job in running if job.process is not None], grace_s=self.grace_s)
        for job in running:
            _settle(job)
            job.status = "stopped"


# Hydra's own overrides that steer the sweep; a job is a single run.
_OF_THE_SWEEP = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "hydra.sweep.", "hydra.mode")


def register() -> None:
    """Make ``hydra/launcher=processes`` known to Hydra, and the resolver ``run_name``; before it composes.

    ``${run_name:${hydra.overrides.task}}`` lets a single run have the folder that it has in a sweep.
    """

    def resolver(overrides: ListConfig) -> str:
        texts = OmegaConf.to_container(overrides, resolve=False)  # an override may itself hold ${...}
        assert isinstance(texts, list)
        return run_name([str(text) for text in texts], _UNNAMED)

    OmegaConf.register_new_resolver("run_name", resolver, replace=True)
    try:
        namespace = importlib.import_module("hydra_plugins")
    except ModuleNotFoundError:  # it exists only where another plugin is installed
        namespace = sys.modules.setdefault("hydra_plugins", types.ModuleType("hydra_plugins"))
        namespace.__path__ = []
    module = types.ModuleType(_PLUGIN_MODULE)
    setattr(module, ProcessesLauncher.__name__, ProcessesLauncher)
    sys.modules[_PLUGIN_MODULE] = module
    setattr(namespace, _PLUGIN_MODULE.rpartition(".")[2], module)
    Plugins.instance().register(ProcessesLauncher)
    ConfigStore.instance().store(group="hydra/launcher", name="processes", node=ProcessesConf, provider="varscale")


def run_name(overrides: Sequence[str], unnamed: Sequence[str]) -> str:
    """The folder of a run: its overrides sorted by key, ``model.width=8,seed=0``, without the ``unnamed`` keys.

    A name that a file system might refuse as too long ends in a hash of the whole.
    """
    named = []
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~").split("@")[0]
        if not any(key == part or key.startswith((f"{part}.", f"{part}/")) for part in unnamed):
            named.append(override.lstrip("+"))
    name = quote(",".join(sorted(named)) or "single", safe=" =,.:+-~@{}[]()'")
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 13]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name


def progress(folder: Path) -> str:
    """``step i/n`` of a run from its records, or nothing before the first measurement."""
    try:
        steps = read_json(folder / RUN_FILE)["steps"]
        with (folder / CURVE_FILE).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            last = file.read().decode().splitlines()[-1]
        return f"step {int(last.split(',')[1])}/{steps}"
    except (RecordError, OSError, KeyError, IndexError, ValueError):
        return ""


def table(jobs: Sequence[Job]) -> str:
    """One line a run: its name, status and time."""
    width = max(len(job.name) for job in jobs)
    lines = [f"{job.name:<{width}}  {_duration(job.elapsed_s):>8}  {job.status}" for job in jobs]
    return "\n".join([f"{'run':<{width}}  {'time':>8}  status", *lines])


def _settle(job: Job) -> None:
    assert job.process is not None
    job.elapsed_s = time.monotonic() - job.started
    code = job.process.returncode
    job.status = "finished" if code == 0 else f"failed ({describe_exit(code)})"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
