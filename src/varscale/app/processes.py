"""Child processes that never outlive their parent, each with its own threads and console log.

A child runs in a session of its own, so that Ctrl-C reaches it once, from the parent, and not a second time from the
terminal. Should the parent vanish (SIGKILL), Linux kills the child; elsewhere it runs to its end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

PARENT_VARIABLE = "VARSCALE_PARENT_PID"
GRACE_S = 90.0  # for a process to finish its step, write its checkpoint and leave
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def available_cores() -> int:
    """Cores this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def follow_parent() -> None:
    """Called first in a process that `spawn` started: be killed with the parent, hear SIGINT. Else no effect."""
    parent = os.environ.pop(PARENT_VARIABLE, None)
    if parent is None:
        return
    # A parent in the background of a script ignores SIGINT and hands that down; the launcher stops jobs with SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Slurm's warning is for the parent, but a Slurm that tracks processes by their parents sends it to all of them.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before prctl took effect
        raise SystemExit(1)


def spawn(
    command: Sequence[str],
    *,
    console: Path | None = None,
    threads: int | None = None,
    variables: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``command`` (a varscale command line: it must call `follow_parent`).

    Args:
        console: file to which its output and errors are appended; None shows them on this process's own.
        threads: OpenMP and MKL threads; None leaves the environment as it is.
        variables: of the environment, beside this process's own.
    """
    environment = os.environ | {PARENT_VARIABLE: str(os.getpid())} | dict(variables or {})
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if console is None:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, start_new_session=True)
    console.parent.mkdir(parents=True, exist_ok=True)
    with console.open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def stop(processes: Iterable[subprocess.Popen[bytes]], *, grace_s: float) -> None:
    """Interrupt every process that still runs, let it write a checkpoint for ``grace_s`` seconds, then kill the rest.

    A second Ctrl-C in the meantime kills at once.
    """
    running = [process for process in processes if process.poll() is None]
    try:
        for process in running:
            process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline and any(process.poll() is None for process in running):
            time.sleep(0.05)
    except KeyboardInterrupt:
        pass
    finally:
        for process in running:
            if process.poll() is None:
                # The whole group: a data-loading worker of the job goes with it.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def describe_exit(code: int) -> str:
    """What an exit code of a child means: ``exit code 1``, ``killed by SIGSEGV``."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
