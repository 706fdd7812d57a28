"""Schedules of learning rate and weight decay, rules by size, and which parameters decay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from varscale.codes import CodeSpec
from varscale.models.shape import ladder_rule
from varscale.models.var import VAR
from varscale.schedule import ScaleSchedule
from varscale.training.groups import parameter_groups
from varscale.training.optim import Optimisation, StepSchedule, build_adamw, released_schedule


def test_rules_by_size_and_batch() -> None:
    assert Optimisation(lr=0.64, lr_rule="inverse_width").lr_peak(width=64, batch=16) == pytest.approx(0.01)
    from_width = Optimisation(lr=3e-4, lr_rule="inverse_width", base_width=1024)
    assert from_width.lr_peak(width=1024, batch=16) == 3e-4
    assert from_width.lr_peak(width=1920, batch=16) == pytest.approx(1.6e-4)
    assert Optimisation(lr=1e-4, lr_rule="per_256_images").lr_peak(width=64, batch=768) == pytest.approx(3e-4)
    assert Optimisation(lr=1e-3).lr_peak(width=64, batch=16) == 1e-3


def test_factor_warms_up_and_decays() -> None:
    linear = Optimisation(lr=1.0, warmup=0.1, final=0.1)
    assert linear.factor(0, 100) == 0.005
    assert linear.factor(10, 100) == 1.0
    assert linear.factor(55, 100) == pytest.approx(0.55)
    assert linear.factor(100, 100) == pytest.approx(0.1)
    cosine = Optimisation(lr=1.0, warmup=0.0, schedule="cosine")
    assert [cosine.factor(s, 100) for s in (0, 50, 100)] == pytest.approx([1.0, 0.5, 0.0])
    assert Optimisation(lr=1.0, warmup=0.0, schedule="constant").factor(99, 100) == 1.0


def test_a_cooldown_ends_a_constant_rate() -> None:
    """1 - sqrt over the last share of the steps, after a warm-up that has its own length (arXiv:2405.18392)."""
    optim = Optimisation(lr=1.0, schedule="constant", warmup_length=4, cooldown=0.2, final=0.1)
    assert [optim.warmup_steps(steps) for steps in (20, 100)] == [4, 4]
    assert [optim.cooldown_start(steps) for steps in (20, 100)] == [16, 80]
    assert [optim.factor(step, 100) for step in (3, 4, 79, 80)] == pytest.approx([0.75125, 1.0, 1.0, 1.0])
    assert [optim.factor(step, 100) for step in (85, 95, 100)] == pytest.approx([0.55, 1 - 0.9 * 0.75**0.5, 0.1])
    assert optim.schedule_name == "constant, cooldown 0.2"
    trunk = Optimisation(lr=1.0, schedule="constant", warmup_length=4)
    assert trunk.cooldown_start(100) == 100
    assert all(trunk.factor(step, 60) == optim.factor(step, 100) for step in range(81))
    assert Optimisation(lr=1.0, schedule="constant", warmup_length=50, cooldown=0.9).cooldown_start(60) == 50


@pytest.mark.parametrize(
    "bad",
    [
        {"lr": 0.0},
        {"cooldown": 0.2},
        {"cooldown": 1.0, "schedule": "constant"},
        {"warmup_length": -1},
        {"warmup": 1.0},
        {"schedule": "step"},
        {"lr_rule": "mine"},
        {"base_width": 0},
        {"hold": 1.0},
        {"knee": 1.0},
        {"knee": 0.5, "hold": 0.1},
        {"knee": 0.5, "schedule": "cosine"},
        {"schedule": "exponential"},
        {"weight_decay": 0.0, "weight_decay_final": 0.1},
    ],
    ids=str,
)
def test_refuses(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"optim\."):
        Optimisation(**({"lr": 1.0} | bad))  # type: ignore[arg-type]


@pytest.mark.parametrize("shared_adaln", [False, True])
def test_decay_groups_are_the_released_ones(shared_adaln: bool) -> None:
    model = VAR(
        ladder_rule(32), schedule=ScaleSchedule.square(1, 2), code=CodeSpec.index(8), latent_channels=4,
        num_classes=3, shared_adaln=shared_adaln,
    )  # fmt: skip
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, undecayed = ({names[id(p)] for p in group["params"]} for group in parameter_groups(model, 0.05))
    assert len(decayed) + len(undecayed) == len(names)
    assert "class_embed.weight" in decayed and "head.weight" in decayed and "word_embed.weight" in decayed
    assert {"start_1ND", "position_1LD", "level_embed.weight", "blocks.0.attention.log_scale_H11"} <= undecayed
    assert all(not name.endswith("bias") for name in decayed)
    adaln = "blocks.0.norms.offset_16D" if shared_adaln else "blocks.0.norms.linear.weight"
    assert (adaln in undecayed) == shared_adaln


def test_optimizer_follows_the_schedule() -> None:
    layer = torch.nn.Linear(2, 2)
    optim = Optimisation(lr=0.5, warmup=0.0)
    optimizer, schedule = build_adamw(layer, optim, lr_peak=0.5, steps=2)
    rates = []
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.5, 0.25, 0.0])


@pytest.mark.golden
@pytest.mark.parametrize("name", ["cos", "lin", "lin0", "lin00", "lin0.5", "lin0.8", "exp"])
def test_released_schedules(test_data: Path, name: str) -> None:
    """Learning rate and weight decay of every row of the released code's table."""
    table = json.loads((test_data / "golden" / "lr_schedule.json").read_text())
    run = table["args"]
    assert set(table["rows_it_lr_wd_wdND"]) == {"cos", "lin", "lin0", "lin00", "lin0.5", "lin0.8", "exp"}
    optim = Optimisation(
        lr=run["peak_lr"], weight_decay=run["wd"], weight_decay_final=run["wd_end"],
        warmup=run["wp_it"] / run["max_it"], warmup_start=run["wp0"], final=run["wpe"], **released_schedule(name),
    )  # fmt: skip
    for step, lr, decay, undecayed in table["rows_it_lr_wd_wdND"][name]:
        assert optim.lr * optim.factor(step, run["max_it"]) == pytest.approx(lr, rel=1e-12, abs=0)
        assert optim.weight_decay_at(step, run["max_it"]) == pytest.approx(decay, rel=1e-12, abs=0)
        assert undecayed == 0.0


@pytest.mark.parametrize("name", ["linear", "lin1.5", "lin0.", "lin0.8x", ""])
def test_refuses_schedules_that_were_not_released(name: str) -> None:
    with pytest.raises(ValueError, match="has no schedule"):
        released_schedule(name)


def test_the_schedule_is_named_with_its_hold_and_knee() -> None:
    names = [Optimisation(lr=1.0, final=0.1, **released_schedule(n)).schedule_name for n in ("lin0", "lin0.8", "cos")]
    assert names == ["linear, hold 0.05", "linear, knee 0.8", "cosine"]
    assert Optimisation(lr=1.0).schedule_name == "linear"


def moving(optim: Optimisation, steps: int) -> tuple[torch.optim.AdamW, StepSchedule]:
    torch.manual_seed(0)
    return build_adamw(torch.nn.Linear(2, 2), optim, lr_peak=optim.lr, steps=steps)


def test_weight_decay_moves_in_the_decayed_group_alone_and_resumes() -> None:
    optim = Optimisation(lr=0.5, weight_decay=0.05, weight_decay_final=0.08, warmup=0.0)
    optimizer, schedule = moving(optim, 5)
    seen: list[tuple[Any, ...]] = []
    for step in range(5):
        seen.append(tuple((group["lr"], group["weight_decay"]) for group in optimizer.param_groups))
        if step == 2:
            state: tuple[Any, Any] = (optimizer.state_dict(), schedule.state_dict())
        optimizer.step()
        schedule.step()
    assert [decayed for (_, decayed), _ in seen] == pytest.approx([optim.weight_decay_at(s, 5) for s in range(5)])
    assert seen[0][0][1] == 0.05 and seen[-1][0][1] == pytest.approx(0.08)
    assert all(undecayed == 0.0 for _, (_, undecayed) in seen)
    optimizer, schedule = moving(optim, 5)
    optimizer.load_state_dict(state[0])
    schedule.load_state_dict(state[1])
    for step in range(2, 5):
        assert tuple((group["lr"], group["weight_decay"]) for group in optimizer.param_groups) == seen[step]
        optimizer.step()
        schedule.step()


def test_decoupled_decay_uses_the_present_weight_decay() -> None:
    """Without a gradient AdamW only shrinks the weights: by lr * decay of that step."""
    layer = torch.nn.Linear(2, 2, bias=False)
    optim = Optimisation(lr=0.5, weight_decay=0.1, weight_decay_final=0.3, warmup=0.0, schedule="constant")
    optimizer, schedule = build_adamw(layer, optim, lr_peak=0.5, steps=3)
    for step in range(3):
        before = layer.weight.detach().clone()
        layer.weight.grad = torch.zeros_like(layer.weight)
        optimizer.step()
        schedule.step()
        torch.testing.assert_close(layer.weight.detach(), before * (1 - 0.5 * [0.1, 0.2, 0.3][step]))
