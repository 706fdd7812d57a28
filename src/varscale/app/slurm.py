"""Hydra launcher ``slurm``: every run of a sweep is a task array's job of Slurm, submitted through submitit.

A thin launcher of ours rather than hydra-submitit-launcher: that one pickles Hydra's task function and runs it inside
the job, past the command line's checks, in numbered folders, and waits without retries. Here a job is the very command
that the launcher ``processes`` starts, in the same folder, so both can take turns on one sweep.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from tqdm import tqdm

from varscale.app.config import ConfigError
from varscale.app.jobs import CONSOLE_FILE, Job, LauncherConf, command
from varscale.app.launcher import PLUGIN_MODULE, SweepLauncher
from varscale.app.processes import spawn, stop
from varscale.app.run_state import SLURM_FILE, read_state
from varscale.records import atomic_write

LOGS = ".slurm"  # submitit's folder, beside the runs
_POLL_S = 0.2
_MARGIN_S = 20  # of the warning before the end, for requeueing


class RunFailedError(RuntimeError):
    """The run of a Slurm job failed; its console says how."""


@dataclass
class SlurmConf(LauncherConf):
    """The settings of the launcher, under ``hydra.launcher``. ``n_jobs`` limits the array's jobs side by side."""

    _target_: str = f"{PLUGIN_MODULE}.SlurmLauncher"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    timeout_min: int = 1440
    mem_gb: float | None = None  # of a machine
    signal_delay_s: int = 120  # seconds before the end that a run is warned, to write its checkpoint
    max_timeouts: int = 100  # so often a job is requeued at its time limit; after preemption always
    setup: list[str] = field(default_factory=list)  # shell lines before the job, such as module load cuda
    sbatch: dict[str, Any] = field(default_factory=dict)  # other options: +hydra.launcher.sbatch.exclusive=true
    wait: bool = True  # until all runs have ended; false: submit and return
    poll_s: float = 10.0
    cluster: str = "slurm"  # local: submitit's own processes on this machine, to try a sweep out


@dataclass
class RunInJob:
    """What a Slurm job does: the run's command as a child, stopped with a checkpoint when Slurm warns, then requeued.

    A task a device, each with its own child; the first one keeps the count and decides on requeueing.
    """

    job: Job
    line: list[str]
    threads: int
    grace_s: float

    def __call__(self) -> None:
        """Run to the end. Raises ``RunFailedError``, or leaves the process when the job is requeued or ended."""
        from submitit import JobEnvironment

        environment = JobEnvironment()
        first = environment.global_rank == 0
        warning = getattr(signal, f"SIG{environment.USR_SIG}")  # before the time limit, or preemption
        requeue = signal.getsignal(warning)  # submitit's: writes the job anew and requeues it, in the first task
        heard: list[int] = []
        for number in (warning, signal.SIGTERM):
            signal.signal(number, lambda number, frame: heard.append(number))
        self.job.read_attempts()
        if first:
            self.job.begin()
        child = spawn(self.line, console=self.job.folder / CONSOLE_FILE, threads=self.threads)
        while child.poll() is None and not heard:
            time.sleep(_POLL_S)
        if heard:
            stop([child], grace_s=self.grace_s)
        code = child.returncode
        if heard and code:
            if first:
                self.job.end(130)
            # SIGTERM alone: cancelled, or preempted by a Slurm that requeues by itself, but only a job that is still
            # there when its time of grace ends. Either way Slurm kills it; the warning may come after SIGTERM, too.
            while warning not in heard and environment.cluster == "slurm":
                time.sleep(_POLL_S)
            if warning in heard and callable(requeue):
                requeue(warning, None)  # leaves the process in the first task
            sys.exit(0)
        if first:
            self.job.end(code)
        if code:
            raise RunFailedError(f"{self.job.name}: {self.job.status}; see {self.job.folder / CONSOLE_FILE}")

    def checkpoint(self) -> Any:
        """Asked by submitit before it requeues: the same again, which continues from the run's checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class SlurmLauncher(SweepLauncher):
    """Submits each job as ``python -m varscale VERB OVERRIDES`` in RUN mode. Settings: `SlurmConf`."""

    __module__ = PLUGIN_MODULE

    def __init__(self, **settings: Any) -> None:
        self.settings: SlurmConf = SlurmConf(**settings)
        self.settings.check()
        if self.settings.signal_delay_s <= _MARGIN_S:
            raise ConfigError(
                f"hydra.launcher.signal_delay_s={self.settings.signal_delay_s} must be above {_MARGIN_S}: the seconds "
                "in which a run writes its checkpoint and the job is requeued"
            )

    def run(self, jobs: Sequence[Job]) -> None:
        waiting = sorted((job for job in jobs if job.status == "waiting"), key=_shape)
        submitted: list[tuple[Job, Any]] = []
        for _, alike in groupby(waiting, key=_shape):  # the jobs of an array have the same devices
            submitted += self._submit(list(alike))
        if submitted:
            print(f"submitted {len(submitted)} of {len(jobs)} runs: {_numbers(submitted)}", file=sys.stderr)
        if not self.settings.wait:
            return
        try:
            self._follow(submitted)
        except KeyboardInterrupt:
            numbers = _numbers([(job, task) for job, task in submitted if job.status == "queued"])
            print(f"\nthe jobs go on; varscale status shows them, scancel {numbers} ends them", file=sys.stderr)
            raise

    def _submit(self, jobs: Sequence[Job]) -> list[tuple[Job, Any]]:
        executor = self._executor(jobs[0], len(jobs))
        for job in jobs:  # before the job itself writes there
            job.attempts = replace(job.attempts, outcome=None)
            job.attempts.write(job.folder)
        with executor.batch():
            tasks = [executor.submit(self._task(job)) for job in jobs]
        for job, task in zip(jobs, tasks, strict=True):
            job.status = "queued"
            if self.settings.cluster == "slurm":
                with atomic_write(job.folder / SLURM_FILE) as file:
                    file.write(f"{task.job_id}\n".encode())
        return list(zip(jobs, tasks, strict=True))

    def _task(self, job: Job) -> RunInJob:
        line = command(self.program, self.config.hydra, job)
        return RunInJob(job, line, self.settings.threads_per_job, self.settings.signal_delay_s - _MARGIN_S)

    def _executor(self, job: Job, count: int) -> Any:
        try:
            from submitit import AutoExecutor
        except ModuleNotFoundError:
            raise ConfigError("launcher=slurm needs submitit: pip install 'varscale[slurm]'") from None
        settings, folder = self.settings, Path(self.config.hydra.sweep.dir).absolute() / LOGS
        try:
            executor = AutoExecutor(folder, cluster=settings.cluster, slurm_max_num_timeout=settings.max_timeouts)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"submitit cannot reach {settings.cluster}: {error}") from error
        options = {
            "name": "varscale",
            "timeout_min": settings.timeout_min,
            "nodes": job.nodes,
            # submitit's local processes know nothing of each other; there the run starts its own for its devices.
            "tasks_per_node": job.devices if settings.cluster == "slurm" else 1,
            "cpus_per_task": settings.threads_per_job,
            "gpus_per_node": job.devices if job.on_gpu else None,
            "mem_gb": settings.mem_gb,
            "slurm_partition": settings.partition,
            "slurm_account": settings.account,
            "slurm_qos": settings.qos,
            "slurm_constraint": settings.constraint,
            "slurm_signal_delay_s": settings.signal_delay_s,
            "slurm_array_parallelism": settings.n_jobs or count,
            "slurm_setup": list(settings.setup) or None,
            # A task that fails takes the others with it. srun takes the cores from sbatch only before Slurm 22.05.
            "slurm_srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={settings.threads_per_job}"],
            # --requeue lets Slurm's own preemption start the job again.
            "slurm_additional_parameters": {"requeue": True, **settings.sbatch},
        }
        executor.update_parameters(**{key: value for key, value in options.items() if value is not None})
        return executor

    def _follow(self, submitted: list[tuple[Job, Any]]) -> None:
        """Wait for the jobs, and submit those again that may be retried."""
        following, ended = list(submitted), 0
        with tqdm(total=len(following), desc="runs", unit="run", disable=None) as bar:
            while following:
                for job, task in [pair for pair in following if pair[1].done()]:
                    following.remove((job, task))
                    _settle(job, task)
                    if job.may_retry(self.settings.retries):
                        bar.write(f"{job.name}: {job.status}; it is submitted again", file=sys.stderr)
                        following += self._submit([job])
                    else:
                        ended += 1
                        bar.update()
                        bar.write(f"[{ended}/{bar.total}] {job.name}: {job.status}", file=sys.stderr)
                if following:
                    time.sleep(self.settings.poll_s)


def _settle(job: Job, task: Any) -> None:
    """How the job ended, as its first task has noted it in the run's folder; a lost machine has noted nothing."""
    job.read_attempts()
    job.status = job.attempts.outcome or ""
    if not job.status:
        if read_state(job.folder).state == "finished":
            job.status = "finished"
        elif task.state.upper().startswith("CANCELLED"):  # by scancel, before it began
            job.status = "stopped"
        else:
            job.status = f"failed (Slurm says {task.state})"
        job.attempts = job.attempts.ended(job.status, crashed=job.crashed)
        job.attempts.write(job.folder)


def _shape(job: Job) -> tuple[int, int, bool]:
    return job.nodes, job.devices, job.on_gpu


def _numbers(submitted: Sequence[tuple[Job, Any]]) -> str:
    return " ".join(sorted({str(task.job_id).split("_")[0] for _, task in submitted}))
