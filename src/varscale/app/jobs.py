"""The jobs of a sweep: their folders and command lines, which of them need no start, and how one that has ended stands.

What the launchers have in common, wherever they start the jobs. A job is ``varscale VERB OVERRIDES`` in RUN mode.
"""

from __future__ import annotations

import copy
import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict
from tqdm import tqdm

from varscale.app.attempts import Attempts, read_attempts
from varscale.app.config import ConfigError, checked, reference
from varscale.app.lock import LOCK_FILE, holder
from varscale.app.processes import describe_exit
from varscale.app.run_state import SLURM_FILE, queued_jobs
from varscale.records import RUN_FILE, RecordError, read_json

CONSOLE_FILE = "console.log"
LAUNCH_LOCK = ".launch-{}.lock"  # of a sweep, in the folder of its runs
# Keys, with all below them, that are no part of a run's folder name: they do not change what is measured.
UNNAMED = (
    "sweeps", "debug", "design", "study", "paths", "trainer", "logger", "sample", "plan", "analysis", "status",
    "launcher", "hydra",
    "train.checkpoint_every", "train.keep", "train.keep_steps", "train.time_limit",
)  # fmt: skip
_LONGEST_NAME = 200  # most file systems allow 255 bytes
# Hydra's own overrides that steer the sweep; a job is a single run.
_OF_THE_SWEEP = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "hydra.sweep.", "hydra.mode")
# Exit codes of varscale, and what a shell makes of SIGTERM.
_USER_ERROR, INTERRUPTED, _TERMINATED = 2, 130, 143


class SweepError(RuntimeError):
    """Some runs of a sweep have not finished; the table of the runs has been printed."""


@dataclass
class LauncherConf:
    """The settings that the launchers share, under ``hydra.launcher``."""

    n_jobs: int | None = None  # runs side by side; null: as many as have devices or cores (in Slurm: no limit)
    threads_per_job: int = 1  # of each process of a run
    retries: int = 1  # starts after a crash, counted over all launches of these settings
    leave_out: list[str] = field(default_factory=list)  # overrides, such as model.width=64, whose runs are not started
    program: list[str] | None = None  # command line in front of the verb; null: this interpreter with -m varscale

    def check(self) -> None:
        """Raise ``ConfigError`` for a number that makes no sense."""
        if self.threads_per_job < 1 or (self.n_jobs is not None and self.n_jobs < 1):
            raise ConfigError(f"n_jobs={self.n_jobs} and threads_per_job={self.threads_per_job} must be at least 1")
        if self.retries < 0:
            raise ConfigError(f"hydra.launcher.retries={self.retries} must be at least 0")


@dataclass
class Job:
    """One run of the sweep and how it stands.

    ``status`` is waiting, queued, running, finished, finished before, left out, running elsewhere (...), stopped,
    diverged, diverged before, or failed (...).
    """

    name: str
    overrides: tuple[str, ...]
    folder: Path
    run_id: str = ""
    on_gpu: bool = False
    devices: int = 1  # of one machine
    nodes: int = 1
    status: str = "waiting"
    elapsed_s: float | None = None
    attempts: Attempts = field(default_factory=lambda: Attempts(""))
    record_before: int | None = None  # modification time of its record when it was started, ns

    def read_attempts(self) -> None:
        """Take the count of these settings from the run's folder, where another process may have changed it."""
        self.attempts = read_attempts(self.folder, self.run_id) or Attempts(self.run_id)

    def begin(self) -> None:
        """Note a start, in the run's folder too."""
        self.status = "running"
        self.record_before = _modified(self.folder / RUN_FILE)
        self.attempts = self.attempts.started()
        self.attempts.write(self.folder)

    def end(self, code: int) -> None:
        """Note the end with an exit code, in the run's folder too."""
        self.status = outcome(code, self.folder, self.record_before)
        self.attempts = self.attempts.ended(self.status, crashed=self.crashed, retryable=code != _USER_ERROR)
        self.attempts.write(self.folder)

    def fail_to_start(self, why: OSError) -> None:
        """Note that no process could be started for it: no crash, so that the next launch tries again."""
        self.status = f"failed (not started: {why.strerror})"
        self.attempts = self.attempts.ended(self.status, crashed=True, retryable=False)
        self.attempts.write(self.folder)

    @property
    def crashed(self) -> bool:
        """Whether it failed."""
        return self.status.startswith("failed")

    def may_retry(self, retries: int) -> bool:
        """Whether a run that has just failed is started again: not after an error of the user's."""
        return self.crashed and self.attempts.retryable and self.attempts.failures <= retries


def outcome(code: int, folder: Path, record_before: int | None = None) -> str:
    """What an exit code means for a run, together with its record if that has been written since ``record_before``."""
    recorded = None
    if _modified(folder / RUN_FILE) != record_before:
        with suppress(RecordError):
            recorded = read_json(folder / RUN_FILE).get("status")
    if recorded in ("stopped", "diverged"):  # said by the run itself, whatever stood in front of it made of its code
        return str(recorded)
    if code in (INTERRUPTED, _TERMINATED):
        return "stopped"
    return "finished" if code == 0 else f"failed ({describe_exit(code)})"


def planned_jobs(
    config: DictConfig, context: HydraContext, job_overrides: Sequence[Sequence[str]], settings: LauncherConf
) -> list[Job]:
    """The jobs of a sweep, each checked as its own process will; those that need no start are marked.

    Raises:
        ConfigError: before any job starts: for a wrong configuration, a folder that two runs share or that cannot be
            written, a ``leave_out`` that fits no run, a Slurm that does not say what it has queued.
    """
    root = Path(config.hydra.sweep.dir).absolute()
    jobs = []
    for overrides in job_overrides:
        name = run_name(overrides)
        jobs.append(Job(name, tuple(overrides), root / name))
    _check_names(jobs, settings.leave_out)
    _check_writable([root, *(job.folder for job in jobs if job.folder.exists())])
    queued = queued_jobs(job.folder for job in jobs)
    if queued is None:
        raise ConfigError(
            "squeue does not say which jobs of this sweep are still queued, and a run must not be started twice; "
            f"launch again when it answers, or remove {root}/*/{SLURM_FILE} if Slurm has none of them"
        )
    for job, cfg in _composed(config, context, jobs):
        _settle_before(job, cfg, settings, queued)
    return jobs


def _composed(config: DictConfig, context: HydraContext, jobs: Sequence[Job]) -> Iterator[tuple[Job, DictConfig]]:
    references: dict[tuple[tuple[str, Any], ...], DictConfig] = {}
    with _hydra_config_kept():
        for job in tqdm(jobs, desc="checking the runs", leave=False, disable=None):
            composed = context.config_loader.load_sweep_config(config, list(job.overrides))
            with open_dict(composed):
                composed.hydra.run.dir = str(job.folder)
                composed.hydra.runtime.output_dir = str(job.folder)
            HydraConfig.instance().set_config(composed)
            choices = tuple(sorted(composed.hydra.runtime.choices.items()))
            if choices not in references:
                references[choices] = reference(composed.hydra)
            task = copy.deepcopy(composed)
            with open_dict(task):
                del task["hydra"]
            yield job, checked(task, references[choices])


def _settle_before(job: Job, cfg: DictConfig, settings: LauncherConf, queued: Mapping[Path, str]) -> None:
    """What is known of a job before any start."""
    from varscale.app.identity import finished, identify

    job.run_id = identify(cfg)
    job.read_attempts()
    job.on_gpu = cfg.trainer.accelerator != "cpu"
    job.devices, job.nodes = cfg.trainer.devices, cfg.trainer.num_nodes
    by = holder(job.folder / LOCK_FILE)
    if set(settings.leave_out) & set(job.overrides):
        job.status = "left out"
    elif finished(cfg, job.folder):
        job.status = "finished before"
    elif by is not None:
        job.status = f"running elsewhere ({by})"
    elif job.folder in queued:
        job.status = f"running elsewhere (Slurm job {queued[job.folder]})"
    elif diverged(job.folder, job.run_id):
        job.status = "diverged before"
    elif (failures := job.attempts.failures) > settings.retries:
        job.status = (
            f"failed ({failures} times, {job.attempts.outcome}; hydra.launcher.retries={failures} starts it again)"
        )


def diverged(folder: Path, run_id: str) -> bool:
    """Whether these settings have diverged in ``folder``: they would again."""
    try:
        run = read_json(folder / RUN_FILE)
    except RecordError:
        return False
    return run.get("status") == "diverged" and run.get("run_id") == run_id


def command(program: Sequence[str], hydra: DictConfig, job: Job) -> list[str]:
    """The command line of a job."""
    quoted = str(job.folder).replace("\\", "\\\\").replace("'", "\\'")
    return command_line(program, hydra, [*job.overrides, f"hydra.run.dir='{quoted}'"], without=_OF_THE_SWEEP)


def command_line(
    program: Sequence[str], hydra: DictConfig, overrides: Sequence[str], *, without: tuple[str, ...]
) -> list[str]:
    """``program`` with the verb of Hydra's node ``hydra``, its --config-dir and hydra overrides, and ``overrides``.

    Hydra's overrides that begin with one of ``without`` are left out.
    """
    folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    return [
        *program,
        hydra.job.config_name,
        *(part for folder in folders for part in ("--config-dir", folder)),
        *(override for override in hydra.overrides.hydra if not override.lstrip("+~").startswith(without)),
        *overrides,
    ]


def run_name(overrides: Sequence[str], unnamed: Sequence[str] = UNNAMED) -> str:
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


def table(jobs: Sequence[Job]) -> str:
    """One line a run: what it differs in, time, crashes and status."""
    names = differing([job.name for job in jobs])
    width = max(3, *(len(name) for name in names))
    lines = [
        f"{name:<{width}}  {duration(job.elapsed_s):>8}  {job.attempts.failures:>7}  {job.status}"
        for name, job in zip(names, jobs, strict=True)
    ]
    return "\n".join([f"{'run':<{width}}  {'time':>8}  crashes  status", *lines])


def differing(names: Sequence[str]) -> list[str]:
    """The names of runs without the overrides that all of them have."""
    common = set.intersection(*(set(name.split(",")) for name in names)) if len(names) > 1 else set()
    return [",".join(part for part in name.split(",") if part not in common) or name for name in names]


def raise_if_incomplete(jobs: Sequence[Job]) -> None:
    """Raise ``SweepError`` when a run failed, was stopped or runs elsewhere. A diverged run has told what it had to."""
    failed = [job for job in jobs if job.crashed]
    unfinished = [job for job in jobs if job.status.startswith(("stopped", "running"))]
    if failed:
        consoles = "\n".join(f"  {job.folder / CONSOLE_FILE}" for job in failed)
        raise SweepError(f"{len(failed)} of {len(jobs)} runs failed; their output:\n{consoles}")
    if unfinished:
        raise SweepError(
            f"{len(unfinished)} of {len(jobs)} runs are unfinished; type the same command to continue them"
        )


def duration(seconds: float | None) -> str:
    """``h:mm:ss`` or ``m:ss``; a dash for nothing."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _check_names(jobs: Sequence[Job], leave_out: Sequence[str]) -> None:
    names = [job.name for job in jobs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"several runs of the sweep share the folder {twice[0]}; let their overrides differ")
    for entry in leave_out:
        if not any(entry in job.overrides for job in jobs):
            raise ConfigError(f"hydra.launcher.leave_out: no run has the override {entry}; it has e.g. {names[0]}")


def _check_writable(folders: Sequence[Path]) -> None:
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be written ({error.strerror}); name another folder (paths.outputs=FOLDER) or change "
                "its permissions"
            ) from error


@contextmanager
def _hydra_config_kept() -> Iterator[None]:
    singleton = HydraConfig.instance()
    before = singleton.cfg
    try:
        yield
    finally:
        singleton.cfg = before


def _modified(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
