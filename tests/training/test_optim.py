"""Learning-rate schedule, rules by size, and which parameters decay."""

from __future__ import annotations

import pytest
import torch

from varscale.codes import CodeSpec
from varscale.models.shape import ladder_rule
from varscale.models.var import VAR
from varscale.schedule import ScaleSchedule
from varscale.training.optim import Optimisation, build_adamw, parameter_groups


def test_rules_by_size_and_batch() -> None:
    assert Optimisation(lr=0.64, lr_rule="inverse_width").lr_peak(width=64, batch=16) == pytest.approx(0.01)
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


@pytest.mark.parametrize("bad", [{"lr": 0.0}, {"lr": 1.0, "warmup": 1.0}, {"lr": 1.0, "schedule": "step"},
                                 {"lr": 1.0, "lr_rule": "mine"}])  # fmt: skip
def test_refuses(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"optim\."):
        Optimisation(**bad)  # type: ignore[arg-type]


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
