"""The Slurm path, run by submitit's local executor, and what would be handed to sbatch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from varscale.app.processes import spawn, stop
from varscale.app.slurm import SlurmConf, SlurmLauncher

Verb = Callable[..., tuple[int, str]]
SWEEP = ("train", "-m", "sweeps=widths", "launcher=slurm", "hydra.launcher.cluster=local", "hydra.launcher.poll_s=0.1")
FOLDERS = [f"model.width=8,seed={seed}" for seed in (0, 1)]
SBATCH = """#!/bin/sh
cp "$1" "{folder}/submitted"
echo once >> "{folder}/submissions"
echo Submitted batch job 71
"""
SACCT = """#!/bin/sh
printf 'JobID|State|NodeList\\n71|CANCELLED by 1000|None assigned\\n'
"""
# A task of submitit's whose run is a script, and which says when it is requeued.
TASK = """
import signal, sys
from pathlib import Path
from varscale.app.jobs import Job
from varscale.app.slurm import RunInJob

def requeue(number, frame):
    print("requeued", flush=True)
    sys.exit(3)

signal.signal(signal.SIGUSR2, requeue)
folder = Path(sys.argv[1])
RunInJob(Job("run", (), folder), [sys.executable, str(folder / "run.py")], 1, 10.0)()
"""
RUN = """
import sys, time
from pathlib import Path
from varscale.app.processes import follow_parent
follow_parent()
(Path(__file__).parent / "ready").touch()
try:
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture
def program(study: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(os.path.abspath, sys.path)))
    return f"hydra.launcher.program=[{sys.executable},{study / 'driver.py'}]"


def attempts(study: Path, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((study / f"outputs/runs/{name}/attempts.json").read_text())
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds submitit's task in Linux's /proc")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # submitit leaves its subprocess to the garbage collector
def test_two_runs_end_to_end_one_of_them_warned_and_requeued(verb: Verb, program: str, study: Path) -> None:
    names = [f"act=sleep_once_at_8_0,{name}" for name in FOLDERS]
    warned, other = (study / "outputs/runs" / name for name in names)

    def warn() -> None:
        while not (warned / "started").exists() or b'"finished"' not in read(other / "attempts.json"):
            time.sleep(0.05)
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            line = read(path)
            if b"submitit.core._submit" in line and str(study).encode() in line:
                os.kill(int(path.parent.name), signal.SIGUSR2)

    thread = threading.Thread(target=warn)
    thread.start()
    code, text = verb(*SWEEP, "model.width=8", "act=sleep_once_at_8_0", program)
    thread.join()
    assert code == 0, text
    assert "submitted 2 of 2 runs" in text and "[2/2]" in text
    assert (warned / "checkpoint").exists() and (warned / "done").exists()
    counted = {"run_id": "8-0-20", "starts": 2, "failures": 0, "outcome": "finished", "retryable": True}
    assert attempts(study, names[0]) == counted
    assert not list(study.glob("outputs/runs/*/slurm_job"))  # numbers that squeue does not know
    assert attempts(study, names[1])["starts"] == 1 and "hello from 8" in (other / "console.log").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_failed_run_is_submitted_again_as_often_as_allowed(verb: Verb, program: str, study: Path) -> None:
    code, text = verb(*SWEEP, "model.width=8", "seed=0", "act=segfault", program)
    assert code == 1 and "submitted again" in text and "failed (killed by SIGSEGV)" in text
    assert attempts(study, f"act=segfault,{FOLDERS[0]}")["failures"] == 2


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_error_of_the_users_is_not_submitted_again(verb: Verb, program: str, study: Path) -> None:
    code, text = verb(*SWEEP, "model.width=8", "seed=0", "trainer.devices=2", "act=user_error", program)
    assert code == 1 and "failed (exit code 2)" in text and "submitted again" not in text
    name = f"act=user_error,{FOLDERS[0]}"
    starts = (study / f"outputs/runs/{name}/started").read_text().splitlines()
    assert len(starts) == 1  # one task, though the run has two devices: it starts its processes itself
    found = attempts(study, name)
    assert (found["failures"], found["retryable"]) == (0, False)


@pytest.mark.parametrize(
    ("cluster", "signals", "requeued"),
    [
        ("local", ["SIGUSR2"], True),
        ("local", ["SIGTERM", "SIGUSR2"], True),
        ("local", ["SIGTERM"], False),
        ("slurm", ["SIGTERM"], False),
    ],
)
def test_which_signals_requeue_a_run(tmp_path: Path, cluster: str, signals: list[str], requeued: bool) -> None:
    (tmp_path / "run.py").write_text(RUN)
    names = {"SUBMITIT_EXECUTOR": cluster, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    task = subprocess.Popen([sys.executable, "-c", TASK, str(tmp_path)], stdout=subprocess.PIPE, env=os.environ | names)
    try:
        wait_for(lambda: (tmp_path / "ready").exists())
        for name in signals:
            task.send_signal(getattr(signal, name))
            time.sleep(0.02)  # one after the other
        wait_for(lambda: b'"stopped"' in read(tmp_path / "attempts.json"))
        if (cluster, signals) == ("slurm", ["SIGTERM"]):
            with pytest.raises(subprocess.TimeoutExpired):
                task.wait(1)  # for Slurm to requeue it, which only happens to jobs that are still there
            task.send_signal(signal.SIGUSR2)
            requeued = True
        said, _ = task.communicate(timeout=20)
        assert (b"requeued" in said, task.returncode) == (requeued, 3 if requeued else 0)
    finally:
        task.kill()
        task.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_run_does_not_hear_the_warning_itself(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(RUN)
    child = spawn([sys.executable, str(tmp_path / "run.py")])
    try:
        wait_for(lambda: (tmp_path / "ready").exists())
        child.send_signal(signal.SIGUSR2)
        time.sleep(0.2)
        assert child.poll() is None
    finally:
        stop([child], grace_s=10)
    assert child.returncode == 130


@pytest.fixture
def commands(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's commands, as far as they are used: every job is cancelled before it begins."""
    for name, text in (("sbatch", SBATCH.format(folder=study)), ("srun", "#!/bin/sh\n"), ("sacct", SACCT)):
        (study / name).write_text(text)
        (study / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{study}:{os.environ['PATH']}")


@pytest.mark.usefixtures("commands")
def test_a_job_cancelled_while_it_waits_is_not_submitted_again(verb: Verb, study: Path) -> None:
    code, text = verb(
        "train", "-m", "sweeps=widths", "launcher=slurm", "model.width=8", "seed=0", "hydra.launcher.poll_s=0.1"
    )
    assert code == 1 and "stopped" in text and "1 of 1 runs are unfinished" in text, text
    assert (study / "submissions").read_text().split() == ["once"]
    assert attempts(study, FOLDERS[0])["failures"] == 0


@pytest.mark.usefixtures("commands")
def test_what_slurm_is_asked_for(verb: Verb, study: Path) -> None:
    code, text = verb(
        "train", "-m", "sweeps=widths", "launcher=slurm", "trainer.accelerator=gpu", "trainer.devices=4",
        "hydra.launcher.wait=false", "hydra.launcher.n_jobs=3", "hydra.launcher.partition=long",
        "hydra.launcher.threads_per_job=8", "hydra.launcher.timeout_min=90", "hydra.launcher.setup=[module load cuda]",
        "+hydra.launcher.sbatch.exclusive=true",
    )  # fmt: skip
    assert code == 0, text
    assert "submitted 4 of 4 runs: 71" in text and text.count("queued") == 4
    script = (study / "submitted").read_text()
    for line in ("--array=0-3%3", "--gpus-per-node=4", "--ntasks-per-node=4", "--nodes=1", "--cpus-per-task=8",
                 "--partition=long", "--time=90", "--signal=USR2@120", "--requeue", "--exclusive"):  # fmt: skip
        assert f"#SBATCH {line}\n" in script, script
    assert "module load cuda" in script and "--kill-on-bad-exit=1 --cpus-per-task=8" in script
    assert (study / f"outputs/runs/{FOLDERS[1]}/slurm_job").read_text() == "71_1\n"
    (study / "squeue").write_text("#!/bin/sh\necho cannot reach the controller >&2\nexit 1\n")
    (study / "squeue").chmod(0o755)
    code, text = verb("train", "-m", "sweeps=widths", "launcher=slurm")
    assert code == 2 and "squeue does not say" in text and "slurm_job if Slurm has none" in text


def test_without_slurm_or_with_a_bad_setting(verb: Verb, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    code, text = verb("train", "-m", "sweeps=widths", "launcher=slurm", program)
    assert code == 2 and "submitit cannot reach slurm" in text
    with pytest.raises(ValueError, match="signal_delay_s=5 must be above 20"):
        SlurmLauncher(**{key: value for key, value in vars(SlurmConf(signal_delay_s=5)).items() if key != "_target_"})


def wait_for(condition: Callable[[], bool], timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
