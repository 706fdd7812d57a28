"""Progressive training: the stages of the released code, shorter sequences that equal masked ones, honest costs."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from varscale.codes import CodeSpec
from varscale.models.counting import train_flops_per_image
from varscale.models.shape import ladder_rule
from varscale.models.var import VAR
from varscale.schedule import VAR_256, VAR_512, ScaleSchedule
from varscale.tokenizers.tokens import TokenBatch
from varscale.training.optim import Optimisation
from varscale.training.progressive import Progressive, Stage, coarsest_scales, spent, stage_at, stage_costs, stages_of

SCHEDULE = ScaleSchedule.square(1, 2, 3, 4)
KNEE = Optimisation(lr=1.0, knee=0.8, warmup=0.02)


def released_stage(step: int, steps: int, warmup: int, first: int, until: float, num_scales: int) -> int:
    """The rule as the specification states it, one step at a time."""
    if step <= warmup:
        return first
    if step >= until * steps:
        return num_scales - 1
    return first + round((step - warmup) / (until * steps - warmup) * (num_scales - 1 - first))


@pytest.mark.parametrize("steps", [7, 100, 3001])
@pytest.mark.parametrize(("first", "until"), [(4, 0.8), (1, 0.5), (9, 0.9)])
def test_stages_and_ramps_are_the_released_ones(steps: int, first: int, until: float) -> None:
    warmup = round(0.02 * steps)
    stages = Progressive(first=first, until=until).stages(steps=steps, warmup=warmup, num_scales=10)
    assert stages[0].first_step == 0 and stages[-1].last_step == steps
    assert all(a.last_step == b.first_step for a, b in pairwise(stages))
    before, since, first_stage = None, 0, True
    for step in range(steps):
        stage, finest = stage_at(stages, step), released_stage(step, steps, warmup, first, until, 10)
        assert stage.scales == finest + 1
        if finest != before:
            first_stage, before, since = before is None, finest, 0
        since += 1
        ramp = 1.0 if first_stage or finest == 9 else max(min(since / (steps / 300), 1), 0.01)
        assert stage.newest_weight(step) == pytest.approx(ramp, rel=1e-12)


def test_published_stages_at_512_px() -> None:
    stages = stages_of(Progressive(first=4, until=0.8), KNEE, steps=584150, num_scales=VAR_512.num_scales)
    assert [stage.scales for stage in stages] == [5, 6, 7, 8, 9, 10]
    assert stages[-1].first_step == pytest.approx(0.02 * 584150 + 0.9 * 0.78 * 584150, abs=1)
    assert stages[-1].newest_weight(stages[-1].first_step) == 1.0  # as released, the last scale has no ramp
    assert stages[1].newest_weight(stages[1].first_step) == 0.01


def test_without_progressive_training_there_is_one_stage() -> None:
    assert stages_of(None, Optimisation(lr=1.0), steps=9, num_scales=4) == (Stage(0, 9, 4),)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"first": 0, "until": 0.8}, "start with scale 1 or a finer one"),
        ({"first": 1, "until": 1.0}, "above 0 and below 1"),
        ({"first": 1, "until": 0.5, "ramp": 0.0}, "ramp is 0"),
    ],
)
def test_refuses(bad: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Progressive(**bad)  # type: ignore[arg-type]


def test_refuses_what_does_not_fit_the_run() -> None:
    progressive = Progressive(first=4, until=0.8)
    with pytest.raises(ValueError, match="last scale is number 3"):
        stages_of(progressive, KNEE, steps=100, num_scales=4)
    with pytest.raises(ValueError, match=r"optim\.knee=0\.8"):
        stages_of(progressive, Optimisation(lr=1.0), steps=100, num_scales=10)
    with pytest.raises(ValueError, match="before the warm-up of 90"):
        progressive.stages(steps=100, warmup=90, num_scales=10)


def tiny(schedule: ScaleSchedule = SCHEDULE) -> tuple[VAR, TokenBatch]:
    """A model whose blocks are far from identity, and a batch."""
    torch.manual_seed(0)
    model = VAR(ladder_rule(16), schedule=schedule, code=CodeSpec.index(8), latent_channels=4, num_classes=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    L = schedule.num_tokens
    return model, TokenBatch(torch.randint(8, (2, L)), torch.tensor([0, 2]), torch.randn(2, L - 1, 4))


@pytest.mark.parametrize("schedule", [SCHEDULE, VAR_256], ids=str)
def test_coarse_scales_alone_give_the_losses_of_the_whole(schedule: ScaleSchedule) -> None:
    """Also where they end inside a group of scales that attention takes together."""
    model, batch = tiny(schedule)
    whole = model.loss(batch).nats_BK
    for scales in range(2, schedule.num_scales + 1):
        part = coarsest_scales(batch, schedule, scales)
        assert part.ids_BL.shape[1] == schedule.coarsest(scales).num_tokens
        torch.testing.assert_close(model.loss(part).nats_BK, whole[:, :scales], atol=1e-3, rtol=1e-5)
        assert model.loss(part).per_token_avg_B.shape == (2,)
    torch.testing.assert_close(
        model.loss(coarsest_scales(batch, schedule, 2)).per_token_avg_B, whole[:, :2].sum(1) / schedule.num_tokens
    )


def test_a_batch_that_ends_inside_a_scale_is_refused() -> None:
    model, batch = tiny()
    assert batch.inputs_BNC is not None
    with pytest.raises(ValueError, match="7 tokens are not whole scales"):
        model.loss(TokenBatch(batch.ids_BL[:, :7], batch.labels_B, batch.inputs_BNC[:, :6]))


@pytest.mark.parametrize("rule", ["dense", "blocksparse", "6nd", "forward_macs"])
def test_costs_add_up_over_stages(rule: str) -> None:
    model, _ = tiny()
    stages = (Stage(0, 3, 2), Stage(3, 4, 3, 1.0), Stage(4, 10, 4))
    costs = stage_costs(stages, model, rule)  # type: ignore[arg-type]
    assert [cost.tokens for cost in costs] == [5, 14, 30]
    assert costs[-1].flops == train_flops_per_image(model, rule)  # type: ignore[arg-type]
    assert costs[0].flops < costs[1].flops < costs[2].flops
    for step in range(11):
        each = [next(c for c in costs if s < c.stage.last_step) for s in range(step)]
        tokens, flops = spent(costs, step, batch=5)
        assert tokens == 5.0 * sum(c.tokens for c in each)
        assert flops == pytest.approx(5.0 * sum(c.flops for c in each))


def test_a_shorter_sequence_costs_what_a_model_of_those_scales_costs() -> None:
    model, _ = tiny()
    coarse, _ = tiny(SCHEDULE.coarsest(3))
    for rule in ("dense", "blocksparse"):
        assert train_flops_per_image(model, rule, SCHEDULE.coarsest(3)) == train_flops_per_image(coarse, rule)  # type: ignore[arg-type]
