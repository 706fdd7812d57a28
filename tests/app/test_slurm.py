"""The Slurm path, run by submitit's local executor, and what would be handed to sbatch."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from varscale.app.slurm import SlurmConf, SlurmLauncher

Verb = Callable[..., tuple[int, str]]
SWEEP = ("train", "-m", "sweeps=widths", "launcher=slurm", "hydra.launcher.cluster=local", "hydra.launcher.poll_s=0.1")
FOLDERS = [f"model.width=8,seed={seed}" for seed in (0, 1)]
SBATCH = """#!/bin/sh
cp "$1" "{folder}/submitted"
echo Submitted batch job 71
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
    assert attempts(study, names[0]) == {"run_id": "8-0-20", "starts": 2, "failures": 0, "outcome": "finished"}
    assert attempts(study, names[1])["starts"] == 1 and "hello from 8" in (other / "console.log").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_failed_run_is_submitted_again_as_often_as_allowed(verb: Verb, program: str, study: Path) -> None:
    code, text = verb(*SWEEP, "model.width=8", "seed=0", "act=segfault", program)
    assert code == 1 and "submitted again" in text and "failed (killed by SIGSEGV)" in text
    assert attempts(study, f"act=segfault,{FOLDERS[0]}")["failures"] == 2


def test_what_slurm_is_asked_for(verb: Verb, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("sbatch", SBATCH.format(folder=study)), ("srun", "#!/bin/sh\n")):
        (study / name).write_text(text)
        (study / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{study}:{os.environ['PATH']}")
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
    assert "module load cuda" in script and "--kill-on-bad-exit=1" in script
    assert (study / f"outputs/runs/{FOLDERS[1]}/slurm_job").read_text() == "71_1\n"


def test_without_slurm_or_with_a_bad_setting(verb: Verb, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    code, text = verb("train", "-m", "sweeps=widths", "launcher=slurm", program)
    assert code == 2 and "submitit cannot reach slurm" in text
    with pytest.raises(ValueError, match="signal_delay_s=5 must be above 20"):
        SlurmLauncher(**{key: value for key, value in vars(SlurmConf(signal_delay_s=5)).items() if key != "_target_"})


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
