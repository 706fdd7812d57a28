"""Hydra launcher ``processes``: every run of a sweep is a process of its own, several side by side.

Hydra's basic launcher runs all jobs in one process: a crash of one ends the sweep, and two one-thread runs beat one on
two threads. A finished run is skipped without starting a process, so a sweep is resumed by launching it again.
"""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
import time
import types
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, ListConfig, OmegaConf
from tqdm import tqdm

from varscale.app.config import ConfigError
from varscale.app.devices import VISIBLE, DevicePool, visible_devices
from varscale.app.jobs import (
    CONSOLE_FILE,
    INTERRUPTED,
    LAUNCH_LOCK,
    Job,
    LauncherConf,
    command,
    duration,
    planned_jobs,
    raise_if_incomplete,
    run_name,
    table,
)
from varscale.app.lock import hold
from varscale.app.processes import GRACE_S, available_cores, spawn, stop
from varscale.app.run_state import progress

_POLL_S = 0.1
_SHOW_S = 2.0  # between two looks into the folders of the running runs, which may lie on a network
# Hydra takes launchers only from below the namespace hydra_plugins; `register` puts them there.
PLUGIN_MODULE = "hydra_plugins.varscale"


@dataclass
class ProcessesConf(LauncherConf):
    """The settings of the launcher, under ``hydra.launcher``."""

    _target_: str = f"{PLUGIN_MODULE}.ProcessesLauncher"
    grace_s: float = GRACE_S  # seconds a run gets after Ctrl-C to write its checkpoint


class SweepLauncher(Launcher):
    """What launchers of varscale share: one launch of a sweep at a time, over jobs that have been checked."""

    settings: LauncherConf

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context = hydra_context
        self.config = config
        self.program = tuple(self.settings.program or (sys.executable, "-m", "varscale"))

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs in the order of the sweep.

        Raises:
            ConfigError: before any job starts.
            LockedError: if the sweep is being launched already.
            SweepError: if a run failed or has not finished.
        """
        sweep = self.config.hydra.runtime.choices.get("sweeps") or "adhoc"
        folder = Path(self.config.hydra.sweep.dir).absolute()
        what = f"the sweep {sweep} in {folder} is being launched"
        remedy = "wait for it, or end it (Ctrl-C there); varscale status shows how its runs stand"
        with hold(folder / LAUNCH_LOCK.format(sweep), what=what, remedy=remedy):
            jobs = planned_jobs(self.config, self.context, job_overrides, self.settings)
            try:
                self.run(jobs)
            finally:
                print(table(jobs), file=sys.stderr)
        raise_if_incomplete(jobs)
        return [JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED, _return_value=None) for job in jobs]

    @abstractmethod
    def run(self, jobs: Sequence[Job]) -> None:
        """Start those that wait, and follow them to their end."""


@dataclass
class Running:
    """A job's process, its devices and when it was started."""

    job: Job
    process: subprocess.Popen[bytes]
    devices: tuple[str, ...]
    started: float


class ProcessesLauncher(SweepLauncher):
    """Starts each job as ``python -m varscale VERB OVERRIDES`` in RUN mode. Settings: `ProcessesConf`.

    A run of several devices (``trainer.devices``) has torchrun in front, which starts a process for each. GPUs are
    divided: each run has its own, and with an ``n_jobs`` above what that allows, runs share the least used ones.
    """

    __module__ = PLUGIN_MODULE

    def __init__(self, grace_s: float, **settings: object) -> None:
        self.settings = LauncherConf(**settings)  # type: ignore[arg-type]
        self.settings.check()
        self.grace_s = grace_s

    def run(self, jobs: Sequence[Job]) -> None:
        waiting = [job for job in jobs if job.status == "waiting"]
        self.pool = self._pool(waiting)
        limit = self._limit(waiting)
        print(f"{len(jobs)} runs, {limit} side by side, in {self.config.hydra.sweep.dir}", file=sys.stderr)
        running: list[Running] = []
        self.ended, shown = 0, -math.inf
        try:
            with tqdm(total=len(waiting), desc="runs", unit="run", disable=None) as bar:
                while waiting or running:
                    while waiting and len(running) < limit and (devices := self._devices(waiting[0])) is not None:
                        job = waiting.pop(0)
                        try:
                            running.append(self._start(job, devices))
                        except OSError as error:  # a full disk, no more processes: the others go on
                            self.pool.give_back(devices)
                            job.fail_to_start(error)
                            waiting += self._settle(job, bar)
                    for ended in [one for one in running if one.process.poll() is not None]:
                        running.remove(ended)
                        self._note(ended)
                        waiting += self._settle(ended.job, bar)
                    if not bar.disable and time.monotonic() - shown > _SHOW_S:
                        bar.set_postfix_str("; ".join(f"{r.job.name} {progress(r.job.folder)}" for r in running))
                        shown = time.monotonic()
                    time.sleep(_POLL_S)
        finally:
            self._stop(running)

    def _pool(self, jobs: Sequence[Job]) -> DevicePool:
        """The GPUs, if a job wants any."""
        if several := [job for job in jobs if job.nodes > 1]:
            raise ConfigError(f"{several[0].name} wants trainer.num_nodes={several[0].nodes}; use launcher=slurm")
        on_gpu = [job for job in jobs if job.on_gpu]
        pool = DevicePool(visible_devices() if on_gpu else (), shared=self.settings.n_jobs is not None)
        for job in on_gpu:
            pool.check(job.devices)
        return pool

    def _limit(self, jobs: Sequence[Job]) -> int:
        """Runs side by side: as many as have cores (on GPUs: devices) of their own, unless ``n_jobs`` says."""
        if self.settings.n_jobs is not None:
            return self.settings.n_jobs
        if self.pool.users:
            return len(self.pool.users)
        threads = self.settings.threads_per_job * max((job.devices for job in jobs), default=1)
        return max(1, available_cores() // threads)

    def _devices(self, job: Job) -> tuple[str, ...] | None:
        """The GPUs for a job, of which it may need none; None when they are not free at present."""
        return self.pool.take(job.devices) if job.on_gpu else ()

    def _start(self, job: Job, devices: tuple[str, ...]) -> Running:
        """Raises ``OSError`` when there is no room for its console or its process."""
        line = command(self.program, self.config.hydra, job)
        variables = {VISIBLE: ",".join(devices)} if devices else {}
        if job.devices > 1:
            line = [sys.executable, "-m", "varscale.app.torchrun", str(job.devices), *line]
            variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(round(self.grace_s))
        job.begin()
        threads, console = self.settings.threads_per_job, job.folder / CONSOLE_FILE
        process = spawn(line, console=console, threads=threads, variables=variables)
        return Running(job, process, devices, time.monotonic())

    def _settle(self, job: Job, bar: tqdm) -> list[Job]:
        """Tell the end of a job; the job itself, when it is to be started again."""
        told, again = f"{job.name}: {job.status}, {duration(job.elapsed_s)}", job.may_retry(self.settings.retries)
        if again:
            bar.write(f"{told}; it will be started again", file=sys.stderr)
            return [job]
        self.ended += 1
        bar.update()
        bar.write(f"[{self.ended}/{bar.total}] {told}", file=sys.stderr)
        return []

    def _note(self, ended: Running, *, stopped: bool = False) -> None:
        job, code = ended.job, ended.process.returncode
        self.pool.give_back(ended.devices)
        job.elapsed_s = (job.elapsed_s or 0.0) + time.monotonic() - ended.started
        job.end(INTERRUPTED if stopped and code else code)

    def _stop(self, running: Sequence[Running]) -> None:
        if running:
            print(f"stopping {len(running)} runs; they write their checkpoints", file=sys.stderr)
        stop([one.process for one in running], grace_s=self.grace_s)
        for one in running:
            self._note(one, stopped=True)


def register() -> None:
    """Make ``hydra/launcher=processes`` and ``slurm``, ``hydra/sweeper=runs`` and our resolvers known to Hydra.

    To be called before it composes.

    ``${run_name:${hydra.overrides.task}}`` lets a single run have the folder that it has in a sweep.
    """
    from varscale.app import isoflop
    from varscale.app.slurm import SlurmConf, SlurmLauncher
    from varscale.app.sweeper import RunsSweeper, RunsSweeperConf

    def resolver(overrides: ListConfig) -> str:
        texts = OmegaConf.to_container(overrides, resolve=False)  # an override may itself hold ${...}
        assert isinstance(texts, list)
        return run_name([str(text) for text in texts])

    OmegaConf.register_new_resolver("run_name", resolver, replace=True)
    isoflop.register()
    try:
        namespace = importlib.import_module("hydra_plugins")
    except ModuleNotFoundError:  # it exists only where another plugin is installed
        namespace = sys.modules.setdefault("hydra_plugins", types.ModuleType("hydra_plugins"))
        namespace.__path__ = []
    module = types.ModuleType(PLUGIN_MODULE)
    sys.modules[PLUGIN_MODULE] = module
    setattr(namespace, PLUGIN_MODULE.rpartition(".")[2], module)
    for name, launcher, conf in (("processes", ProcessesLauncher, ProcessesConf), ("slurm", SlurmLauncher, SlurmConf)):
        setattr(module, launcher.__name__, launcher)
        Plugins.instance().register(launcher)
        ConfigStore.instance().store(group="hydra/launcher", name=name, node=conf, provider="varscale")
    setattr(module, RunsSweeper.__name__, RunsSweeper)
    Plugins.instance().register(RunsSweeper)
    ConfigStore.instance().store(group="hydra/sweeper", name="runs", node=RunsSweeperConf, provider="varscale")
