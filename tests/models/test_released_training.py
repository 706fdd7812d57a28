"""A training step of the released code on its own random weights: groups, loss, gradients, AdamW."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from varscale.models.pretrained import load_released_var, released_name
from varscale.models.var import VAR
from varscale.schedule import VAR_256
from varscale.tokenizers.tokens import TokenBatch
from varscale.training.groups import parameter_groups
from varscale.training.optim import Optimisation, build_adamw, clip_gradients

pytestmark = pytest.mark.golden
SETS = ["var_d2_256", "var_d3_256_shared_adaln"]
ADAMW = Optimisation(lr=1e-3, warmup=0.0, schedule="constant", weight_decay=0.05, betas=(0.9, 0.95), eps=1e-8)


def golden(test_data: Path, name: str) -> tuple[VAR, TokenBatch, dict[str, Any]]:
    """The set's model, its batch and what its ``meta.json`` says."""
    folder = test_data / "golden" / name
    io = load_file(folder / "io.safetensors")
    ids_BL = torch.cat([io[f"idx_{k}"].flatten(1) for k in range(10)], dim=1)
    model = load_released_var(load_file(folder / "var.safetensors"), VAR_256)
    return model, TokenBatch(ids_BL, io["labels"], io["var_input"]), json.loads((folder / "meta.json").read_text())


@pytest.fixture
def stored(test_data: Path) -> dict[str, Tensor]:
    """Tensors of the released training step."""
    return load_file(test_data / "golden" / SETS[0] / "train.safetensors")


def under_released_names(model: VAR) -> dict[str, torch.nn.Parameter]:
    """The model's parameters by their released names."""
    return {released_name(ours): parameter for ours, parameter in model.named_parameters()}


def part(stored: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under ``prefix`` without it."""
    return {key[len(prefix) :]: value for key, value in stored.items() if key.startswith(prefix)}


@pytest.mark.parametrize("name", SETS)
def test_decay_groups(test_data: Path, name: str) -> None:
    model, _, meta = golden(test_data, name)
    names = {id(parameter): name for name, parameter in under_released_names(model).items()}
    for group, listed in zip(parameter_groups(model, 0.05), ("decay", "no_decay"), strict=True):
        assert sorted(names[id(parameter)] for parameter in group["params"]) == sorted(meta["metrics"][listed])


@pytest.mark.parametrize("checkpoint_blocks", [False, True])
def test_loss_and_clipped_gradients(test_data: Path, stored: dict[str, Tensor], checkpoint_blocks: bool) -> None:
    model, batch, meta = golden(test_data, SETS[0])
    model.checkpoint_blocks = checkpoint_blocks
    loss = model.loss(batch).per_token_avg_B.mean()
    loss.backward()
    assert loss.item() == pytest.approx(stored["var_loss"].item(), abs=2e-6)
    gradients = {name: parameter.grad for name, parameter in under_released_names(model).items()}
    norm = torch.linalg.vector_norm(torch.stack([gradient.norm() for gradient in gradients.values()]))
    assert norm.item() == pytest.approx(stored["var_grad_norm"].item(), rel=1e-5)
    assert norm > meta["adamw_step"]["clip"], "nothing would be clipped"
    clip_gradients(model.parameters(), meta["adamw_step"]["clip"])
    wanted = part(stored, "grad.")
    assert wanted.keys() == gradients.keys()
    for name, gradient in wanted.items():
        difference = (gradients[name].view_as(gradient) - gradient).norm() / gradient.norm()
        assert difference < 1e-5, f"{name}: {difference:.1e}"


@pytest.mark.parametrize("name", SETS)
def test_mean_cross_entropy(test_data: Path, name: str) -> None:
    model, batch, meta = golden(test_data, name)
    with torch.no_grad():
        loss = model.loss(batch)
    assert loss.per_token_avg_B.mean().item() == pytest.approx(meta["metrics"]["L_mean"], abs=1e-5)


def test_adamw_step_from_the_released_gradients(test_data: Path, stored: dict[str, Tensor]) -> None:
    model, _, meta = golden(test_data, SETS[0])
    assert meta["adamw_step"] == {"lr": ADAMW.lr, "wd": ADAMW.weight_decay, "betas": [0.9, 0.95], "clip": ADAMW.clip}
    ours, gradients = under_released_names(model), part(stored, "grad.")
    for name, parameter in ours.items():
        parameter.grad = gradients[name].view_as(parameter).clone()
    before = {name: parameter.detach().clone() for name, parameter in ours.items()}
    optimizer, _ = build_adamw(model, ADAMW, lr_peak=ADAMW.lr, steps=1)
    optimizer.step()
    after = part(stored, "after_adamw.")
    assert {"word_embed.weight", "pos_1LC"} < after.keys() <= ours.keys()
    for name, value in after.items():
        torch.testing.assert_close(ours[name].detach(), value.view_as(ours[name]), atol=1e-6, rtol=0)
        assert (ours[name] - before[name]).abs().max() > 1e-4, name
