"""AdamW with its moments on disk takes the ordinary step, to the bit."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from varscale.training.optim import Optimisation, build_adamw, clip_gradients


@pytest.fixture(scope="module")
def script(repository: Path) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(repository / "benchmarks")
        return importlib.import_module("step_d30")


def test_two_steps_equal_those_of_the_ordinary_optimiser(script: ModuleType, tmp_path: Path) -> None:
    optim, tokens, lr = Optimisation(lr=1e-3, schedule="constant", warmup=0.0), script.random_tokens(1), 1e-3
    models = [script.build(1), script.build(1)]
    models[1].checkpoint_blocks = False
    assert models[0].checkpoint_blocks
    ordinary, _ = build_adamw(models[1], optim, lr_peak=lr, steps=10)
    for optimizer, model in ((script.AdamWOnDisk(models[0], optim, tmp_path, lr=lr), models[0]), (ordinary, models[1])):
        for _ in range(2):
            model.loss(tokens).per_token_avg_B.mean().backward()
            clip_gradients(model.parameters(), optim.clip)
            optimizer.step()
            model.zero_grad()
    start = dict(script.build(1).named_parameters())
    for (name, ours), (_, wanted) in zip(*(model.named_parameters() for model in models), strict=True):
        assert torch.equal(ours, wanted), name
    assert not torch.equal(models[0].head.weight, start["head.weight"])
    assert len(list(tmp_path.iterdir())) == len(start)


def test_a_small_model_runs_through(script: ModuleType, tmp_path: Path) -> None:
    result = script.run(1, 1, tmp_path, 1e-3)
    assert result["loss_after"] < result["loss_before"]
    assert result["moments_on_disk_gib"] == pytest.approx(result["weights_and_gradients_gib"])


def test_a_disk_too_small_is_told(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1})())
    with pytest.raises(ValueError, match="--folder"):
        script.run(1, 1, tmp_path, 1e-3)
