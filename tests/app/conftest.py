"""A tiny study in a temporary folder: real Hydra, launcher and command line, with a verb that takes no time."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from varscale.records import CurveWriter, Run, write_run

FILES = {
    "conf/study.yaml": """
        defaults:
          - _self_
          - data: leaves
          - model: ladder
          - paths: default
          - experiment: null
          - sweeps: null
          - launcher: processes
        seed: 0
        act: finish
        train: {steps: 10, lr: 0.5}
        trainer: {accelerator: cpu, devices: 1, num_nodes: 1}
        """,
    "conf/train.yaml": """
        defaults:
          - study
          - _self_
          - override hydra/job_logging: stdout
        hydra:
          output_subdir: null
          run: {dir: "${paths.runs}/${run_name:${hydra.overrides.task}}"}
          sweep: {dir: "${paths.runs}", subdir: none}
        """,
    "conf/data/leaves.yaml": "{_target_: a.Leaves, size: 32, options: {}}\n",
    "conf/data/cifar10.yaml": "{_target_: a.Cifar, folder: here}\n",
    "conf/model/ladder.yaml": "{_target_: a.Model, width: 32, sides: [1, 2], bias: false, schedule: 1-2-4}\n",
    "conf/paths/default.yaml": "{runs: outputs/runs, study: outputs}\n",
    "conf/launcher/processes.yaml": """
        # @package _global_
        defaults: [override /hydra/launcher: processes]
        """,
    "conf/launcher/slurm.yaml": """
        # @package _global_
        defaults: [override /hydra/launcher: slurm]
        """,
    "sweeps/widths.yaml": """
        # @package _global_
        train: {steps: 20}
        hydra: {sweeper: {params: {model.width: "8,16", seed: "0,1"}}}
        """,
    "sweeps/bad_key.yaml": """
        # @package _global_
        model: {wdith: 3}
        """,
}
SCHEMA = """
from __future__ import annotations
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Train:
    steps: int = 1
    lr: float = 1.0


@dataclass
class StudyConfig:
    seed: int = 0
    act: str = "finish"
    train: Train = field(default_factory=Train)
    data: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
"""
IDENTITY = """
def finished(cfg, folder):
    return (folder / "done").exists()


def identify(cfg):
    return f"{cfg.model.width}-{cfg.seed}-{cfg.train.steps}"
"""
TRAIN = """
import json, os, signal, time
from pathlib import Path
from hydra.core.hydra_config import HydraConfig


def main(cfg):
    folder = Path(HydraConfig.get().runtime.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "started").open("a") as file:
        print(os.getpid(), os.environ.get("OMP_NUM_THREADS"), cfg.train.steps, cfg.model.width, cfg.seed, file=file)
    names = ("CUDA_VISIBLE_DEVICES", "RANK", "WORLD_SIZE")
    (folder / f"environment{os.environ.get('RANK', '')}").write_text(" ".join(os.environ.get(n, "-") for n in names))
    print("hello from", cfg.model.width, flush=True)
    act = cfg.act if not cfg.act.endswith("_at_8_0") or (cfg.model.width, cfg.seed) == (8, 0) else "finish"
    match act.removesuffix("_at_8_0"):
        case "fail":
            raise RuntimeError("this run fails")
        case "user_error":
            raise ValueError("the value 3 is above the limit 2; choose 1")
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "killed_once":
            if not (folder / "killed").exists():
                (folder / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        case "diverge":
            run_id = f"{cfg.model.width}-{cfg.seed}-{cfg.train.steps}"
            (folder / "run.json").write_text(json.dumps({"status": "diverged", "run_id": run_id}))
            raise RuntimeError("the loss is not finite")
        case "stop_by_itself":
            raise KeyboardInterrupt
        case "sleep" | "sleep_once" if act == "sleep" or not (folder / "checkpoint").exists():
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                (folder / "checkpoint").write_text("saved")
                raise
        case "stubborn":
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            time.sleep(60)
    (folder / "done").write_text("done")
"""
MODULES = {"schema": SCHEMA, "identity": IDENTITY, "train": TRAIN}
DRIVER = """
import sys, types
from pathlib import Path
from varscale.app import resources
from varscale.app.cli import main

root = Path({root!r})
resources.resources_root = lambda: root
for name in ("schema", "identity", "train"):
    module = types.ModuleType("varscale.app." + name)
    sys.modules[module.__name__] = module
    exec(compile((root / (name + ".py")).read_text(), module.__name__, "exec"), module.__dict__)
sys.exit(main())
"""


# A finished run of 100 steps.
RUN: dict[str, Any] = {
    "schema_version": 1, "run_id": "abc", "created_utc": "2026-01-01T00:00:00+00:00", "study": "s", "design": "widths",
    "status": "finished", "varscale_version": "0.1.0", "config_path": "config.yaml", "family": "var",
    "tokenizer_id": "t", "dataset_id": "d", "seed": 0, "flops_train": 1.2345678901234567e18, "flops_rule": "dense",
    "resolution_px": 32, "frames": 1, "schedule": "1-2-4", "num_tokens": 21, "code": "index(256)", "depth": 2,
    "width": 8, "heads": 1, "params_token": 10, "params_image": 5, "params_blocks": 15, "params_embed": 3,
    "params_head": 2, "params_total": 20, "batch_images": 16, "steps": 100, "lr_peak": 0.08, "weight_decay": 0.05,
    "warmup_steps": 6, "lr_schedule": "linear", "label_drop": 0.1, "images_seen": 1600.0, "unique_images": 1600.0,
    "tokens_seen": 33600.0, "val_nats_per_token_avg": 4.0, "device": "cpu", "num_devices": 1, "precision": "bf16-mixed",
}  # fmt: skip


@pytest.fixture(scope="session")
def record() -> Callable[..., Run]:
    """Writes the record of a finished run into a folder, and its loss at some steps into the curve."""

    def write(folder: Path, *, steps: Sequence[int] = (10,), **changes: Any) -> Run:
        run = Run(**RUN | changes)
        folder.mkdir(parents=True, exist_ok=True)
        write_run(folder, run)
        curve = CurveWriter(folder, run.run_id)
        for step in steps:
            axes = {"images_seen": 16.0 * step, "tokens_seen": 336.0 * step, "flops": 1e9 * step}
            curve.append(step=step, **axes, values={"val": [("nats_per_token_avg", None, run.val_nats_per_token_avg)]})
        return run

    return write


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """The folder of the study, with ``conf/``, ``sweeps/`` and ``driver.py``, its ``varscale``."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip())
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "driver.py").write_text(DRIVER.format(root=str(tmp_path)))
    return tmp_path


@pytest.fixture
def verb(
    study: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Runs ``varscale ARGS`` in this process; returns the exit code and all it printed."""
    from varscale.app import resources
    from varscale.app.cli import main

    monkeypatch.chdir(study)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(resources, "resources_root", lambda: study)
    for name, text in MODULES.items():
        module = types.ModuleType(f"varscale.app.{name}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(text, module.__name__, "exec"), module.__dict__)

    def call(*arguments: str) -> tuple[int, str]:
        capfd.readouterr()
        code = main(arguments)
        captured = capfd.readouterr()
        return code, captured.out + captured.err

    return call


@pytest.fixture
def start(study: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts ``varscale ARGS`` as a process of its own in the study's folder; none outlives the test."""
    processes: list[subprocess.Popen[str]] = []

    def call(*arguments: str) -> subprocess.Popen[str]:
        driver = [sys.executable, str(study / "driver.py")]
        program = f"hydra.launcher.program=[{','.join(driver)}]"
        process = subprocess.Popen(
            [*driver, *arguments, *([program] if "-m" in arguments else [])],
            cwd=study,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return process

    yield call
    for process in processes:
        process.kill()
        process.communicate()
