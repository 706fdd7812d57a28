"""How a run stands, from the files in its folder: state, step, loss, speed, time left. Needs no torch."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varscale.app.attempts import read_attempts
from varscale.app.lock import LOCK_FILE, holder
from varscale.records import CURVE_COLUMNS, CURVE_FILE, PROGRESS_FILE, RUN_FILE, RecordError, read_run

# In the order of a run's life. ``interrupted``: the record says running, but no process is; ``queued``: at a scheduler.
STATES = ("waiting", "queued", "running", "interrupted", "stopped", "failed", "diverged", "finished")
SLURM_FILE = "slurm_job"  # the number of the job that was submitted last for a run
_TAIL_BYTES = 16384


@dataclass(frozen=True)
class RunState:
    """One row of ``varscale status``; what is not known is None.

    Attributes:
        loss: the last training loss, or the held-out one of a run that has ended; nat/token.
        images_per_s: at present where it runs, else over the whole run; image/s.
        left_s: time left at that speed, s.
        by: the process that trains it.
    """

    name: str
    state: str
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    images_per_s: float | None = None
    left_s: float | None = None
    failures: int = 0
    outcome: str | None = None
    by: str | None = None


def read_state(folder: Path, *, queued: bool = False) -> RunState:
    """The state of the run in ``folder``, which need not exist yet; ``queued``: whether a scheduler has a job of it."""
    by = holder(folder / LOCK_FILE)
    attempts = read_attempts(folder)
    failures = 0 if attempts is None else attempts.failures
    outcome = None if attempts is None else attempts.outcome
    run = None
    if (folder / RUN_FILE).exists():
        try:
            run = read_run(folder)
        except RecordError as error:
            outcome = f"failed ({error})"
    state = _state(None if run is None else run.status, by, outcome)
    if by is None and state != "finished" and queued:
        state = "queued"
    if run is None:
        return RunState(folder.name, state, failures=failures, outcome=outcome, by=by)
    last = last_row(folder)
    beat = _heartbeat(folder, running=by is not None)
    steps, batch = run.steps, run.batch_images
    step = max(int(run.images_seen // batch), int(last.get("step", 0)))
    loss = run.val_nats_per_token_avg
    trained = run.images_seen - (run.branch_step or 0) * batch  # of a branch: the trunk took the time of the others
    speed = trained / run.wall_s if run.wall_s and trained > 0 else None
    if state in ("running", "interrupted") and beat and beat["step"] >= step:
        step, loss, speed = beat["step"], beat["loss"] or loss, beat["images_per_s"]
    left = None
    if state == "running" and speed:
        passed = time.time() - beat["time"] if beat and beat["step"] == step else 0.0
        left = max(0.0, (steps - step) * batch / speed - passed)
    return RunState(folder.name, state, step, steps, loss, speed, left, failures, outcome, by)


def _state(recorded: str | None, by: str | None, outcome: str | None) -> str:
    if by is not None:
        return "running"
    if recorded in (None, "running"):
        crashed = outcome is not None and outcome.startswith("failed")
        return "failed" if crashed else "waiting" if recorded is None else "interrupted"
    return recorded


def last_row(folder: Path) -> dict[str, str]:
    """The last whole row of the run's curve by column; empty when there is none."""
    try:
        with (folder / CURVE_FILE).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            cells = file.read().decode().split("\n")[-2].split(",")
    except (OSError, IndexError, UnicodeDecodeError):
        return {}
    whole = len(cells) == len(CURVE_COLUMNS) and cells[1].isdigit()  # not the header
    return dict(zip(CURVE_COLUMNS, cells, strict=True)) if whole else {}


def progress(folder: Path) -> str:
    """``step i/n`` of a run from its files, or nothing before the first measurement."""
    state = read_state(folder)
    return "" if not state.step else f"step {state.step}/{state.steps}"


def queued_jobs(folders: Iterable[Path]) -> dict[Path, str] | None:
    """The Slurm jobs of these runs that still wait or run; None when Slurm does not say.

    Asks nothing where none was submitted.
    """
    noted = {folder: path.read_text().strip() for folder in folders if (path := folder / SLURM_FILE).exists()}
    if not noted:
        return {}
    ask = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={','.join(sorted(set(noted.values())))}"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode and "Invalid job id" not in answer.stderr:  # one that Slurm has forgotten
        return None
    alive = set(answer.stdout.split())
    return {folder: number for folder, number in noted.items() if number in alive}


def _heartbeat(folder: Path, *, running: bool) -> dict[str, Any] | None:
    """The last sign of life; of a running one only of its present start, which has written the lock's file."""
    path = folder / PROGRESS_FILE
    try:
        if running and path.stat().st_mtime < (folder / LOCK_FILE).stat().st_mtime:
            return None
        values = json.loads(path.read_text())
        return values if {"time", "step", "loss", "images_per_s"} <= set(values) else None
    except (OSError, ValueError, TypeError):
        return None
