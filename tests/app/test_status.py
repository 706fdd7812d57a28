"""varscale status: the state of each run from its files, quickly and without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from varscale.app import status as status_verb
from varscale.app.attempts import Attempts
from varscale.app.cli import main
from varscale.app.lock import LOCK_FILE, hold
from varscale.app.run_state import progress, queued_jobs, read_state
from varscale.records import Run

Begun = Callable[..., Path]
FAKE_SQUEUE = """#!/bin/sh
echo "$@" > "{log}"
echo 71_1
"""


@pytest.fixture
def begun(record: Callable[..., Run]) -> Callable[..., Path]:
    """Writes a run of 100 steps of 4 images that has measured itself at step 20; returns its folder."""

    def write(folder: Path, **changes: Any) -> Path:
        so_far = {"status": "running", "batch_images": 4, "images_seen": 80.0, "wall_s": 8.0}
        record(folder, steps=(20,), **so_far | {"val_nats_per_token_avg": 3.5} | changes)
        return folder

    return write


def beat(folder: Path, *, step: int, ago_s: float = 0.0) -> None:
    values = {"time": time.time() - ago_s, "step": step, "steps": 100, "loss": 3.25, "images_per_s": 20.0}
    (folder / "progress.json").write_text(json.dumps(values))


def test_the_states_of_a_run(begun: Begun, tmp_path: Path) -> None:
    assert read_state(tmp_path / "a").state == "waiting"
    failed = tmp_path / "b"
    failed.mkdir()
    Attempts("abc", 2, 2, "failed (killed by SIGSEGV)").write(failed)
    state = read_state(failed)
    assert (state.state, state.failures, state.outcome) == ("failed", 2, "failed (killed by SIGSEGV)")
    with hold(failed / LOCK_FILE, what="x", remedy="y"):
        assert read_state(failed).state == "running"  # tried again, and nothing measured yet
    for status in ("finished", "stopped", "diverged", "failed"):
        assert read_state(begun(tmp_path / status, status=status)).state == status
    assert read_state(begun(tmp_path / "c"), queued=True).state == "queued"
    assert read_state(tmp_path / "finished", queued=True).state == "finished"
    (tmp_path / "c/run.json").write_text("{")
    state = read_state(tmp_path / "c")
    assert state.state == "failed" and "not whole JSON" in str(state.outcome)


def test_step_loss_speed_and_time_left(begun: Begun, tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    state = read_state(folder)
    assert (state.state, state.step, state.steps, state.loss, state.images_per_s) == ("interrupted", 20, 100, 3.5, 10.0)
    assert state.left_s is None and progress(folder) == "step 20/100"
    beat(folder, step=60, ago_s=3600)
    os.utime(folder / "progress.json", (time.time() - 3600,) * 2)
    with hold(folder / LOCK_FILE, what="x", remedy="y"):
        state = read_state(folder)  # started again since, from a checkpoint that nobody has told of
        assert (state.step, state.left_s) == (20, pytest.approx(80 * 4 / 10))
        beat(folder, step=60, ago_s=2)
        state = read_state(folder)
        assert (state.step, state.loss, state.images_per_s) == (60, 3.25, 20.0)
        assert state.left_s == pytest.approx(40 * 4 / 20 - 2, abs=0.2)
        beat(folder, step=10)  # of a start before; the record knows more
        assert read_state(folder).step == 20
        (folder / "progress.json").write_text("{")
        assert read_state(folder).step == 20
    assert progress(tmp_path) == ""
    branch = begun(tmp_path / "branch", branch_step=15)
    assert read_state(branch).images_per_s == (80 - 15 * 4) / 8  # its own steps took its time


def test_which_runs_slurm_still_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, number in zip(folders, ("71_0", "71_1"), strict=False):
        folder.mkdir()
        (folder / "slurm_job").write_text(f"{number}\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert queued_jobs(folders) is None  # no squeue here
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho Unable to contact slurm controller >&2\nexit 1\n")
    squeue.chmod(0o755)
    assert queued_jobs(folders) is None
    squeue.write_text("#!/bin/sh\necho slurm_load_jobs error: Invalid job id specified >&2\nexit 1\n")
    assert queued_jobs(folders) == {}
    squeue.write_text(FAKE_SQUEUE.format(log=tmp_path / "asked"))
    squeue.chmod(0o755)
    assert queued_jobs(folders[2:]) == {} and not (tmp_path / "asked").exists()
    assert queued_jobs(folders) == {folders[1]: "71_1"}
    assert "--jobs=71_0,71_1" in (tmp_path / "asked").read_text()


@pytest.fixture
def status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def call(*arguments: str) -> tuple[int, str]:
        code = main(["status", f"paths.outputs={tmp_path}", *arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


def test_the_runs_of_a_sweep_with_those_to_come(
    begun: Begun, status: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    runs = tmp_path / "quickstart/runs"
    begun(runs / "model.width=8,seed=0", status="finished", images_seen=400.0)
    begun(runs / "model.width=8,seed=1")
    code, text = status("sweeps=quickstart")
    lines = text.splitlines()
    assert code == 0 and len(lines) == 14, text
    assert lines[1].split() == ["model.width=8,seed=0", "finished", "100/100", "3.5000", "50.0", "-", "0"]
    assert lines[2].split()[:3] == ["model.width=8,seed=1", "interrupted", "20/100"]
    assert lines[-1].endswith("10 waiting, 1 interrupted, 1 finished")
    code, text = status("sweeps=quickstart", "status.json=true", "seed=1")
    found = json.loads(text)
    assert found["counts"]["waiting"] == 5 and len(found["runs"]) == 6
    assert found["runs"][0]["name"] == "model.width=8,seed=1" and found["runs"][0]["left_s"] is None


def test_all_runs_of_a_study_and_none(
    begun: Begun, status: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text = status("study=mine")
    assert code == 2 and "there is no run in" in text
    begun(tmp_path / "mine/runs/single", status="finished")
    failed = begun(tmp_path / "mine/runs/another", status="failed")
    run, launch = ExitStack(), ExitStack()
    run.enter_context(hold(failed / LOCK_FILE, what="x", remedy="y"))
    launch.enter_context(hold(tmp_path / "mine/runs/.launch-adhoc.lock", what="x", remedy="y"))
    waits = iter([run.close, launch.close])  # a run that has failed may be started again while it is being launched
    monkeypatch.setattr(status_verb, "time", SimpleNamespace(sleep=lambda seconds: next(waits)()))
    code, text = status("study=mine", "status.watch=0.1")
    assert code == 0 and "single   finished" in text and text.count("another  failed") == 2 and not list(waits)
    assert status("study=mine", "status.watch=0")[0] == 2
    (tmp_path / "mine/runs/single/slurm_job").write_text("71\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "squeue does not answer" in status("study=mine")[1]


def test_it_needs_no_torch() -> None:
    forbidden = {"torch", "lightning", "wandb", "pandas"}
    script = f"import sys, varscale.app.status\nsys.exit(' '.join({forbidden} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
