"""The launcher: every run a process, crashes contained, nothing left running, finished runs skipped."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from varscale.app.launcher import progress, run_name
from varscale.records import CURVE_COLUMNS, CURVE_FILE, RUN_FILE, write_json

Start = Callable[..., "subprocess.Popen[str]"]
FOLDERS = [f"model.width={width},seed={seed}" for width in (8, 16) for seed in (0, 1)]
SWEEP = ("train", "-m", "sweeps=widths")


def finish(process: subprocess.Popen[str], timeout: float = 60) -> tuple[int, str]:
    text, _ = process.communicate(timeout=timeout)
    return process.returncode, text


def wait_for(condition: Callable[[], bool], timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def started(study: Path) -> list[list[str]]:
    """For each start of a run: process id, threads, steps, width, seed."""
    return [
        line.split() for path in sorted(study.glob("outputs/runs/*/started")) for line in path.read_text().splitlines()
    ]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_a_sweep_runs_skips_what_is_finished_and_leaves_out(start: Start, study: Path) -> None:
    code, text = finish(start(*SWEEP, "hydra.launcher.leave_out=['model.width=16']"))
    assert code == 0, text
    assert text.count("left out") == 2
    assert sorted(path.name for path in study.glob("outputs/runs/*/done")) == ["done", "done"]
    code, text = finish(start(*SWEEP, "hydra.launcher.threads_per_job=2"))
    assert code == 0, text
    assert text.count("finished before") == 2
    assert sorted(path.parent.name for path in study.glob("outputs/runs/*/done")) == sorted(FOLDERS)
    rows = [row[1:] for row in started(study)]  # each run once; steps are the sweep's, the threads the launcher's
    assert rows == [["2", "20", "16", "0"], ["2", "20", "16", "1"], ["1", "20", "8", "0"], ["1", "20", "8", "1"]]
    assert "hello from 8" in (study / "outputs/runs" / FOLDERS[0] / "console.log").read_text()


@pytest.mark.parametrize(
    ("act", "status"), [("fail_at_8_0", "failed (exit code 1)"), ("segfault_at_8_0", "failed (killed by SIGSEGV)")]
)
def test_a_crash_leaves_the_others_running_and_fails_the_sweep(
    start: Start, study: Path, act: str, status: str
) -> None:
    code, text = finish(start(*SWEEP, f"act={act}"))
    assert code == 1, text
    assert status in text and "1 of 4 runs failed" in text and f"{study}/outputs/runs/act={act},{FOLDERS[0]}" in text
    assert "Traceback" not in text
    assert len(list(study.glob("outputs/runs/*/done"))) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_passed_on_and_nothing_keeps_running(start: Start, study: Path, number: int) -> None:
    process = start(*SWEEP, "act=sleep", "hydra.launcher.n_jobs=2")
    wait_for(lambda: len(started(study)) == 2)
    process.send_signal(number)
    code, text = finish(process)
    assert code == 130, text
    assert text.count("stopped") == 2 and text.count("waiting") == 2 and "again to continue" in text
    assert len(list(study.glob("outputs/runs/*/checkpoint"))) == 2
    assert not any(alive(int(row[0])) for row in started(study))


def test_a_run_that_does_not_stop_is_killed(start: Start, study: Path) -> None:
    process = start(*SWEEP, "act=stubborn", "hydra.launcher.n_jobs=1", "hydra.launcher.grace_s=0.5")
    wait_for(lambda: len(started(study)) == 1)
    time.sleep(0.3)  # from the line it writes to ignoring the signal
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    assert not alive(int(started(study)[0][0]))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the death signal of a parent is Linux's")
def test_no_run_survives_a_killed_launcher(start: Start, study: Path) -> None:
    process = start(*SWEEP, "act=sleep", "hydra.launcher.n_jobs=2")
    wait_for(lambda: len(started(study)) == 2)
    os.kill(process.pid, signal.SIGKILL)
    finish(process)
    wait_for(lambda: not any(alive(int(row[0])) for row in started(study)), timeout=5)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["sweeps=wdiths"], "Did you mean widths?"),
        (["sweeps=widths", "+model.wdith=3"], "Did you mean model.width?"),
        (["sweeps=widths", "train.steps=many"], "train.steps"),
        (["sweeps=widths", "hydra.launcher.leave_out=['model.width=17']"], "no run has the override model.width=17"),
        (["sweeps=widths", "hydra.launcher.n_jobs=0"], "must be at least 1"),
        (["paths.study=a,b"], "share the folder single"),
    ],
)
def test_a_wrong_sweep_starts_nothing(
    verb: Callable[..., tuple[int, str]], study: Path, overrides: list[str], expected: str
) -> None:
    code, text = verb("train", "-m", *overrides)
    assert code == 2, text
    assert expected in text and "Traceback" not in text
    assert started(study) == []


def test_run_names() -> None:
    unnamed = ["sweeps", "paths"]
    assert run_name(["seed=0", "model.width=8", "sweeps=x", "paths.runs=/a"], unnamed) == "model.width=8,seed=0"
    assert run_name(["+data.folder=/a/b"], unnamed) == "data.folder=%2Fa%2Fb"
    assert run_name(["sweeps=x"], unnamed) == "single"
    assert run_name(["pathsx=1"], unnamed) == "pathsx=1"
    long = [run_name([f"model.name={'x' * 300}{i}"], unnamed) for i in range(2)]
    assert long[0] != long[1] and all(len(name.encode()) <= 200 for name in long)


def test_progress_of_a_run(tmp_path: Path) -> None:
    assert progress(tmp_path) == ""
    write_json(tmp_path / RUN_FILE, {"steps": 50})
    (tmp_path / CURVE_FILE).write_text(",".join(CURVE_COLUMNS) + "\n")
    assert progress(tmp_path) == ""
    with (tmp_path / CURVE_FILE).open("a") as file:
        file.write("id,7,1,1,1,train,loss,,2.5\n" * 1000 + "id,12,1,1,1,train,loss,,2.5\n")
    assert progress(tmp_path) == "step 12/50"
