"""The launcher: every run a process, crashes contained, nothing left running, finished runs skipped."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from varscale.app import launcher
from varscale.app.devices import DevicePool
from varscale.app.jobs import run_name
from varscale.app.lock import LOCK_FILE, hold, holder

Start = Callable[..., "subprocess.Popen[str]"]
Verb = Callable[..., tuple[int, str]]
FOLDERS = [f"model.width={width},seed={seed}" for width in (8, 16) for seed in (0, 1)]
SWEEP = ("train", "-m", "sweeps=widths")
TWO = (*SWEEP, "model.width=8")
ONE = (*TWO, "seed=0")


@pytest.fixture
def program(study: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The override that lets a launch within this process start the study's own command."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(os.path.abspath, sys.path)))
    return f"hydra.launcher.program=[{sys.executable},{study / 'driver.py'}]"


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
    ("act", "status"),
    [
        ("segfault_at_8_0", "failed (killed by SIGSEGV)"),
        pytest.param("fail_at_8_0", "failed (exit code 1)", marks=pytest.mark.slow),
    ],
)
def test_a_crash_leaves_the_others_running_and_is_retried_as_often_as_allowed(
    verb: Verb, program: str, study: Path, act: str, status: str
) -> None:
    code, text = verb(*TWO, f"act={act}", program)
    assert code == 1, text
    assert status in text and "1 of 2 runs failed" in text and f"{study}/outputs/runs/act={act},{FOLDERS[0]}" in text
    assert "Traceback" not in text
    assert len(list(study.glob("outputs/runs/*/done"))) == 1
    assert len(started(study)) == 3 and text.count("started again") == 1  # retries is 1
    code, text = verb(*TWO, f"act={act}", program)
    assert code == 1 and "failed (2 times, " in text and "hydra.launcher.retries=2 starts it again" in text
    assert len(started(study)) == 3


def test_a_killed_run_is_started_again_and_the_sweep_is_whole(
    verb: Verb, program: str, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    monkeypatch.setattr(launcher, "tqdm", lambda **how: tqdm(**how | {"disable": False}))  # as on a terminal
    monkeypatch.setattr(launcher, "progress", lambda folder: looks.append(time.monotonic()) or "step 3/20")
    code, text = verb(*ONE, "act=killed_once", program)
    assert code == 0, text
    assert "killed by SIGKILL" in text and "it will be started again" in text
    assert len(list(study.glob("outputs/runs/*/done"))) == 1 and len(started(study)) == 2
    attempts = json.loads((study / f"outputs/runs/act=killed_once,{FOLDERS[0]}/attempts.json").read_text())
    assert (attempts["starts"], attempts["failures"], attempts["outcome"]) == (2, 1, "finished")
    assert "step 3/20" in text and all(later - sooner > 1.9 for sooner, later in pairwise(looks))


def test_a_run_that_cannot_be_started_stops_no_other(
    verb: Verb, program: str, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spawn(line: list[str], *, console: Path, **how: Any) -> subprocess.Popen[bytes]:
        if console.parent.name == FOLDERS[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return launch(line, console=console, **how)

    launch = launcher.spawn
    monkeypatch.setattr(launcher, "spawn", spawn)
    monkeypatch.setattr(launcher, "visible_devices", lambda: ("3",))  # which the other run gets, too
    code, text = verb(*TWO, program, "trainer.accelerator=gpu")
    assert code == 1 and "failed (not started: No space left on device)" in text and "1 of 2 runs failed" in text
    assert [row[-1] for row in started(study)] == ["1"] and (study / f"outputs/runs/{FOLDERS[1]}/done").exists()
    attempts = json.loads((study / f"outputs/runs/{FOLDERS[0]}/attempts.json").read_text())
    assert attempts["failures"] == 0  # so that the next launch starts it


def test_what_is_not_retried(verb: Verb, program: str, study: Path) -> None:
    code, text = verb(*ONE, "act=user_error", program)
    assert code == 1 and "failed (exit code 2)" in text and len(started(study)) == 1
    for launches, word in ((1, " diverged\n"), (2, "diverged before")):
        code, text = verb(*ONE, "act=diverge", program)
        assert code == 0 and word in text and len(started(study)) == 2, launches


@pytest.mark.slow
def test_a_run_that_stopped_by_itself_is_continued_by_the_next_launch(verb: Verb, program: str, study: Path) -> None:
    for launches in (1, 2):
        code, text = verb(*ONE, "act=stop_by_itself", "hydra.launcher.retries=0", program)
        assert code == 1 and "1 of 1 runs are unfinished" in text and "stopped" in text
        assert len(started(study)) == launches


def test_a_second_launch_is_refused_until_the_first_has_gone(start: Start, verb: Verb, study: Path) -> None:
    first = start(*TWO, "act=sleep", "hydra.launcher.n_jobs=1")
    wait_for(lambda: len(started(study)) == 1)
    code, text = verb(*TWO, "act=sleep")
    assert code == 2 and f"by process {first.pid} on {socket.gethostname()}" in text and "Traceback" not in text
    assert len(started(study)) == 1
    os.kill(first.pid, signal.SIGKILL)
    finish(first)
    assert holder(study / "outputs/runs/.launch-widths.lock") is None


def test_a_run_in_training_elsewhere_is_left_alone(verb: Verb, program: str, study: Path) -> None:
    folder = study / "outputs/runs" / FOLDERS[0]
    with hold(folder / LOCK_FILE, what="x", remedy="y"):
        code, text = verb(*ONE, program)
    assert code == 1 and f"running elsewhere (process {os.getpid()} on" in text and "1 of 1 runs are unfinished" in text
    assert started(study) == []


def test_a_folder_that_cannot_be_written_is_an_error_before_any_job(verb: Verb, program: str, study: Path) -> None:
    (study / "outputs/runs").mkdir(parents=True)
    (study / "outputs/runs" / FOLDERS[2]).write_text("a file where the folder of a run should be")
    code, text = verb(*SWEEP, program)
    assert code == 2 and f"{FOLDERS[2]} cannot be written" in text and started(study) == []
    (study / "outputs/runs" / FOLDERS[2]).unlink()
    code, text = verb(*SWEEP, program, "paths.runs=driver.py/runs")
    assert code == 2 and "cannot be written" in text and started(study) == []


def test_gpus_are_divided(verb: Verb, program: str, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "visible_devices", lambda: ("3", "5"))
    code, text = verb(*TWO, program, "trainer.accelerator=gpu")
    assert code == 0 and "2 side by side" in text
    seen = {path.read_text().split()[0] for path in study.glob("outputs/runs/*/environment")}
    assert seen <= {"3", "5"} and len(seen) == 2
    code, text = verb(*ONE, program, "trainer.accelerator=gpu", "trainer.devices=3", "train.lr=1")
    assert code == 2 and "trainer.devices=3, but this machine offers 2 GPUs (3, 5)" in text
    code, text = verb(*ONE, program, "trainer.num_nodes=2", "train.lr=1")
    assert code == 2 and "launcher=slurm" in text


def test_which_devices_a_job_gets() -> None:
    own = DevicePool(["0", "1", "2", "3"], shared=False)
    assert own.take(2) == ("0", "1") and own.take(1) == ("2",) and own.take(2) is None
    own.give_back(("0", "1"))
    assert own.take(2) == ("0", "1")
    shared = DevicePool(["0", "1"], shared=True)
    assert [shared.take(1) for _ in range(4)] == [("0",), ("1",), ("0",), ("1",)]


@pytest.mark.parametrize(
    "act", [pytest.param("finish", marks=pytest.mark.slow), pytest.param("user_error", marks=pytest.mark.slow), "sleep"]
)
def test_a_run_of_two_processes_goes_through_torchrun(start: Start, study: Path, act: str) -> None:
    process = start(*ONE, "trainer.devices=2", f"act={act}")
    folder = study / f"outputs/runs/act={act},{FOLDERS[0]}"
    if act == "sleep":
        wait_for(lambda: len(started(study)) == 2)
        process.send_signal(signal.SIGINT)
    code, text = finish(process)
    ranks = sorted(path.read_text().split()[1:] for path in folder.glob("environment?"))
    assert ranks == [["0", "2"], ["1", "2"]], text
    if act == "finish":
        assert code == 0, text
    elif act == "user_error":
        assert code == 1 and "failed (exit code 2)" in text and len(started(study)) == 2
    else:
        assert code == 130 and "stopped" in text and (folder / "checkpoint").exists()
        wait_for(lambda: not any(alive(int(row[0])) for row in started(study)), timeout=5)


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
def test_a_wrong_sweep_starts_nothing(verb: Verb, study: Path, overrides: list[str], expected: str) -> None:
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
