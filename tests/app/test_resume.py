"""Runs that end early go on as if they had not: after kills, signals, time limits and damage, and from a trunk."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file

from varscale.app import cache, tokenizer
from varscale.app.cli import main
from varscale.app.compose import compose, composing
from varscale.app.entry import user_message
from varscale.app.identity import CONFIG_FILE
from varscale.app.train import run_training
from varscale.records import CURVE_FILE, Run, read_curve, read_json, read_run, write_json
from varscale.training.checkpoints import CHECKPOINTS, CheckpointError, Checkpoints, Owner, described
from varscale.training.generator_task import GeneratorTask
from varscale.training.health import DivergedError
from varscale.training.saving import Saving

SMALL = [
    "data.resolution=16",
    "tokenizer.resolution=16",
    "tokenizer.schedule=1-2-4",
    "tokenizer.vocabulary=16",
    "tokenizer.latent_channels=4",
    "tokenizer.width=8",
    "tokenizer.blocks=1",
    "stage1.steps=4",
    "stage1.batch=8",
    "stage1.val_images=8",
    "cache.train_images=64",
    "cache.val_images=8",
    "cache.shard_images=64",
    "model.width=16",
    "train.batch=4",
    "train.evaluations=3",
    "train.val_images=8",
    "logger.mode=disabled",
]
# One constant rate with an average, its warm-up in steps.
CONSTANT = {
    "optim.schedule": "constant",
    "optim.warmup_length": 3,
    "train.average": {"kind": "power", "gamma": 9.0},
}


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> DictConfig:
    """The configuration of a small run, composed once: composing takes longer than training."""
    outputs = tmp_path_factory.mktemp("outputs")
    with composing():
        composed, _ = compose("train", ["study=small", f"paths.outputs={outputs}", *SMALL], str(outputs))
    config = OmegaConf.create(OmegaConf.to_container(composed))
    assert isinstance(config, DictConfig)
    tokenizer.main(config)
    cache.main(config)
    return config


def train(cfg: DictConfig, name: str, changes: dict[str, Any]) -> bool:
    """Train in the folder ``name``; whether to the end, and not interrupted."""
    changed = cfg.copy()
    OmegaConf.set_readonly(changed, False)
    for key, value in changes.items():
        OmegaConf.update(changed, key, value)
    try:
        run_training(changed, run_folder(cfg, name))
    except SystemExit as leaving:
        assert isinstance(leaving.__context__, KeyboardInterrupt)
        return False
    return True


def run_folder(cfg: DictConfig, name: str) -> Path:
    folder = Path(cfg.paths.runs) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def rows(folder: Path, after: int = 0, split: str | None = None) -> list[tuple[str, ...]]:
    """What no clock decides, without the run's id."""
    return [
        tuple(value for key, value in row.items() if key != "run_id")
        for row in read_curve(folder / CURVE_FILE)
        if row["metric"] != "images_per_s" and int(row["step"]) > after and split in (None, row["split"])
    ]


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def interrupted_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """SIGTERM, as a scheduler sends it, in the middle of ``step``."""
    original = GeneratorTask.training_step

    def training_step(task: GeneratorTask, batch: Any, batch_idx: int) -> Any:
        if task.global_step == step:
            signal.raise_signal(signal.SIGTERM)
        return original(task, batch, batch_idx)

    monkeypatch.setattr(GeneratorTask, "training_step", training_step)


def test_twenty_kills_leave_no_trace(repository: Path) -> None:
    command = [sys.executable, str(repository / "benchmarks/bench_kills.py"), "--kills", "20"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert (result["kills"], result["bitwise_mismatches"], result["rows_lost"]) == (20, 0, 0)
    assert all(result["kills_by_stage"][stage] >= 4 for stage in ("stage 1", "caching", "stage 2"))


@pytest.fixture(scope="module")
def whole(cfg: DictConfig) -> Path:
    """A run that was left alone."""
    assert train(cfg, "whole", {"train.steps": 8})
    folder = run_folder(cfg, "whole")
    assert not (folder / CHECKPOINTS).exists()  # none has to stay
    return folder


@pytest.mark.parametrize("damage", ["none", "truncated", "flipped"])
def test_a_preempted_run_continues(
    cfg: DictConfig, whole: Path, damage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name, changes = f"preempted_{damage}", {"train.steps": 8, "train.checkpoint_every": 2}
    folder = run_folder(cfg, name)
    with monkeypatch.context() as patch:
        interrupted_at(patch, 4)
        assert not train(cfg, name, changes)
    assert read_run(folder).status == "stopped" and [c.step for c in described(folder / CHECKPOINTS)] == [4, 5]
    newest = folder / CHECKPOINTS / "step_00000005.ckpt"
    content = bytearray(newest.read_bytes())
    if damage == "truncated":
        newest.write_bytes(content[:-100])
    elif damage == "flipped":
        content[len(content) // 2] ^= 4
        newest.write_bytes(content)
    with caplog.at_level(logging.INFO):
        assert train(cfg, name, changes)
    assert ("is damaged" in caplog.text) == (damage != "none")
    assert f"continues from step {5 if damage == 'none' else 4} of 8" in caplog.text
    assert_same_weights(folder, whole)
    assert rows(folder) == rows(whole)
    assert read_run(folder).status == "finished"


def test_the_time_limit_is_no_failure_and_no_other_run(
    cfg: DictConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends with the exit code of an interruption, and the limit is no part of the run's id or folder."""
    original = Saving.out_of_time
    asked: list[float] = []

    def hours_later(saving: Saving, now: float) -> bool:
        asked.append(now)
        return original(saving, now + (3600 if len(asked) > 3 else 0))

    command = ["train", "study=small", f"paths.outputs={cfg.paths.outputs}", *SMALL, "seed=7", "train.steps=8"]
    with monkeypatch.context() as patch:
        patch.setattr(Saving, "out_of_time", hours_later)
        assert main([*command, "train.time_limit=1"]) == 130
    assert "again to continue" in capsys.readouterr().err
    (folder,) = Path(cfg.paths.runs).glob("*seed=7*")
    stopped = read_run(folder)
    assert (stopped.status, stopped.images_seen) == ("stopped", 3 * 4.0)
    assert [c.step for c in described(folder / CHECKPOINTS)] == [3]
    assert main(command) == 0
    assert read_run(folder).run_id == stopped.run_id and read_run(folder).status == "finished"


def test_changed_data_under_a_resumed_run_is_refused(cfg: DictConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupted_at(patch, 2)
        assert not train(cfg, "other_data", {"train.steps": 8})
    path = Path(cfg.paths.cache) / "manifest.json"
    manifest = read_json(path)
    write_json(path, {**manifest, "dataset_fingerprint": "0123456789ab"})
    try:
        with pytest.raises(CheckpointError, match=r"data set .*, not 0123456789ab"):
            train(cfg, "other_data", {"train.steps": 8})
    finally:
        write_json(path, manifest)
    assert train(cfg, "other_data", {"train.steps": 8})


def test_another_configuration_in_the_folder_is_refused(cfg: DictConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unfinished or finished: a changed line in a sweep must not cost what is trained."""
    folder = run_folder(cfg, "reused")
    with monkeypatch.context() as patch:
        interrupted_at(patch, 2)
        assert not train(cfg, "reused", {"train.steps": 8})
    kept, mine = described(folder / CHECKPOINTS), read_run(folder).run_id
    with pytest.raises(CheckpointError, match=rf"another run's \(run {mine}, not .*another study=NAME") as refusal:
        train(cfg, "reused", {"train.steps": 6})
    assert user_message(refusal.value) is not None  # the user's error: a sweep does not try it again
    assert described(folder / CHECKPOINTS) == kept and OmegaConf.load(folder / CONFIG_FILE).train.steps == 8
    assert train(cfg, "reused", {"train.steps": 8})
    with pytest.raises(ValueError, match="holds a finished run with other settings"):
        train(cfg, "reused", {"train.steps": 6})


def test_an_unfinished_tokenizer_of_another_configuration_is_refused(cfg: DictConfig, tmp_path: Path) -> None:
    changed = cfg.copy()
    OmegaConf.set_readonly(changed, False)
    OmegaConf.update(changed, "paths.tokenizer", str(tmp_path))
    checkpoints = Checkpoints(tmp_path, Owner("another", "data"))
    checkpoints.save_checkpoint({"global_step": 2}, checkpoints.path(2))
    with pytest.raises(CheckpointError, match=r"another run's .run another, not .*another study=NAME"):
        tokenizer.main(changed)
    assert checkpoints.last_step() == 2 and not (tmp_path / tokenizer.STAGE_FILE).exists()


def test_a_run_that_dies_after_its_kept_last_step_is_finished(
    cfg: DictConfig, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a trunk does whose weights find a full disk."""
    changes = {"train.steps": 8, "train.keep_steps": [8], "train.checkpoint_every": 3}
    folder = run_folder(cfg, "died_at_the_end")

    def dies(*_: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr("varscale.training.recorder.save_weights", dies)
        train(cfg, "died_at_the_end", changes)
    assert [c.step for c in described(folder / CHECKPOINTS)] == [3, 6, 8] and read_run(folder).status == "failed"
    assert train(cfg, "died_at_the_end", changes)
    assert_same_weights(folder, whole)
    assert rows(folder) == rows(whole) and read_run(folder).status == "finished"
    assert [c.step for c in described(folder / CHECKPOINTS)] == [8]


def test_divergence_says_on_which_images(cfg: DictConfig) -> None:
    with pytest.raises(DivergedError, match=r"lower optim\.lr"):
        train(cfg, "diverged", {"train.steps": 8, "optim.lr": 1e30, "optim.lr_rule": "constant"})
    folder = run_folder(cfg, "diverged")
    told = read_json(folder / "diverged.json")
    assert read_run(folder).status == "diverged" and len(told["images"]) == 4 and told["checkpoint_step"] is None


def test_an_output_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    for verb in ("tokenizer", "train"):
        assert main([verb, f"paths.outputs={tmp_path}/file", *SMALL]) == 2
        error = capsys.readouterr().err
        assert f"{tmp_path}/file" in error and "Traceback" not in error and "paths.outputs" in error


@pytest.fixture(scope="module")
def trunk(cfg: DictConfig) -> Run:
    assert train(cfg, "trunk", {"train.steps": 12, "train.keep_steps": [6, 12], **CONSTANT})
    folder = run_folder(cfg, "trunk")
    assert [c.step for c in described(folder / CHECKPOINTS)] == [6, 12]
    return read_run(folder)


def branch_of(trunk: str, step: int | None = None) -> dict[str, Any]:
    return {"train.branch": {"trunk": trunk, "step": step}}


@pytest.mark.parametrize(("steps", "cooldown", "start"), [(9, 0.33, 6), (15, 0.2, 12)], ids=["middle", "end"])
def test_a_branch_is_a_run_from_scratch(cfg: DictConfig, trunk: Run, steps: int, cooldown: float, start: int) -> None:
    changes = {"train.steps": steps, "optim.cooldown": cooldown, **CONSTANT}
    assert train(cfg, f"straight_{steps}", changes)
    straight, branch = (run_folder(cfg, f"{kind}_{steps}") for kind in ("straight", "branch"))
    budget = {"train.budget_flops": read_run(straight).flops_train}  # of one horizon: the trunk has none
    assert train(cfg, f"branch_{steps}", {**changes, **branch_of("trunk"), **budget})
    assert_same_weights(straight, branch)
    for split in ("val", "val_raw"):
        assert rows(branch, split=split) == rows(straight, after=start, split=split) != []
    one, other = read_run(straight), read_run(branch)
    assert (other.trunk_id, other.branch_step) == (trunk.run_id, start) and one.branch_step is None
    assert other.run_id != one.run_id and other.ema == "power, gamma 9"
    same = ("flops_train", "tokens_seen", "images_seen", "val_nats_per_token_avg", "lr_schedule", "warmup_steps")
    assert [getattr(one, name) for name in same] == [getattr(other, name) for name in same]
    assert other.lr_schedule == f"constant, cooldown {cooldown:g}"


def test_a_branch_may_leave_the_average_behind(cfg: DictConfig, trunk: Run) -> None:
    """Its weights, and what is measured of them, are those of a run that never had one."""
    changes = {"train.steps": 9, "optim.cooldown": 0.33, **CONSTANT, "train.average": None}
    assert train(cfg, "straight_raw", changes) and train(cfg, "branch_raw", {**changes, **branch_of("trunk")})
    straight, branch = (run_folder(cfg, f"{kind}_raw") for kind in ("straight", "branch"))
    assert_same_weights(straight, branch)
    assert rows(branch, split="val") == rows(straight, after=6, split="val") != []
    assert read_run(branch).ema is None


def test_an_interrupted_branch_continues(cfg: DictConfig, trunk: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its trunk, whose checkpoints may have been removed by then."""
    changes = {"train.steps": 9, "optim.cooldown": 0.33, **CONSTANT, **branch_of("trunk", 6)}
    assert train(cfg, "unbroken_branch", changes)
    with monkeypatch.context() as patch:
        interrupted_at(patch, 7)
        assert not train(cfg, "broken_branch", changes)
    run_folder(cfg, "trunk").rename(run_folder(cfg, "trunk").with_name("away"))
    try:
        assert train(cfg, "broken_branch", changes)
    finally:
        (Path(cfg.paths.runs) / "away").rename(Path(cfg.paths.runs) / "trunk")
    record = read_run(run_folder(cfg, "broken_branch"))
    assert (record.trunk_id, record.branch_step) == (trunk.run_id, 6)
    broken, unbroken = (run_folder(cfg, f"{kind}_branch") for kind in ("broken", "unbroken"))
    assert_same_weights(broken, unbroken)
    assert rows(broken) == rows(unbroken)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (branch_of("nowhere"), "nowhere cannot be read .*varscale train -m sweeps=trunk"),
        (branch_of("trunk", 5), "has no checkpoint of step 5; it has 6, 12"),
        (branch_of("trunk", 7), "a branch starts from step 1 to 6"),
        ({**branch_of("trunk"), "model.width": 32}, "model.width is 16, not 32"),
        ({**branch_of("trunk"), "seed": 4}, "seed is 0, not 4"),
        ({**branch_of("trunk"), "train.average": {"kind": "power", "gamma": 5.0}}, "train.average.gamma is 9"),
        ({**branch_of("trunk"), "optim.warmup_length": 4}, "at step 1 the trunk"),
        # Held to step 5: it is the branch's own first step that would take another rate.
        (
            {**branch_of("trunk", 6), "optim.schedule": "linear", "optim.cooldown": None, "optim.hold": 0.4},
            "at step 6 the",
        ),
        ({"train.average": {"kind": "ema", "gamma": 1}}, "the only average is power"),
        ({"train.keep_steps": ["a"]}, "train.keep_steps"),
        ({"train.checkpoint_every": 0}, "train.checkpoint_every is 0"),
        ({"train.time_limit": 0}, "train.time_limit is 0"),
    ],
    ids=str,
)
def test_bad_settings(cfg: DictConfig, trunk: Run, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(cfg, "bad", {"train.steps": 9, "optim.cooldown": 0.33, **CONSTANT, **changes})


def test_checkpoints_beside_other_settings_are_not_branched_off(cfg: DictConfig, trunk: Run) -> None:
    path = run_folder(cfg, "trunk") / CONFIG_FILE
    before = path.read_text()
    path.write_text(before.replace("steps: 12", "steps: 13"))
    try:
        with pytest.raises(ValueError, match=f"settings of run .*, but checkpoints of {trunk.run_id}; launch it again"):
            train(cfg, "of_two_minds", {"train.steps": 9, "optim.cooldown": 0.33, **CONSTANT, **branch_of("trunk")})
    finally:
        path.write_text(before)


def test_a_damaged_trunk_is_not_used(cfg: DictConfig, trunk: Run) -> None:
    path = run_folder(cfg, "trunk") / CHECKPOINTS / "step_00000006.ckpt"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    try:
        with pytest.raises(CheckpointError, match="is damaged"):
            changes = {"train.steps": 9, "optim.cooldown": 0.33, **CONSTANT, **branch_of("trunk")}
            train(cfg, "of_a_damaged_trunk", changes)
    finally:
        path.write_bytes(content)


def test_a_compiled_run_is_the_same(cfg: DictConfig, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as a whole, but not lowered: the compiler proper changes rounding, and takes a minute."""
    compiled: list[torch.nn.Module] = []
    original = torch.nn.Module.compile

    def traced(module: torch.nn.Module) -> None:
        compiled.append(module)
        original(module, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    assert train(cfg, "compiled", {"train.steps": 8, "trainer.compile": True})
    assert len(compiled) == 1
    assert_same_weights(run_folder(cfg, "compiled"), whole)


def test_deterministic_algorithms_on_request(cfg: DictConfig, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU they change nothing; every operation of a step has one."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # which Lightning sets
    try:
        assert train(cfg, "deterministic", {"train.steps": 8, "trainer.deterministic": True})
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same_weights(run_folder(cfg, "deterministic"), whole)
