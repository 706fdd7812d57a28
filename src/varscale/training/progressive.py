"""Progressive training: coarse scales first, then one finer scale after another, so that early steps cost less.

Source: VAR's released code (train.py and trainer.py; flags pg, pg0 and pgwp), used for its 512 px models. A stage is a
function of the step alone, so that a resumed run continues exactly. As released, the weight of a token stays 1 / L with
the L of all scales, and a new scale comes in by a ramp, but not the last one: with it training is whole at once.
Shapes: B batch, L tokens of all scales, K scales.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from varscale.models.counting import train_flops_per_image
from varscale.models.var import VAR
from varscale.records import FlopsRule
from varscale.schedule import ScaleSchedule
from varscale.tokenizers.tokens import TokenBatch
from varscale.training.optim import Optimisation

LEAST_WEIGHT = 0.01


@dataclass(frozen=True)
class Stage:
    """Steps ``first_step .. last_step - 1`` train the ``scales`` coarsest scales.

    ramp_steps: steps over which the weight of the newest scale rises to 1; None where it is 1 throughout.
    """

    first_step: int
    last_step: int
    scales: int
    ramp_steps: float | None = None

    def newest_weight(self, step: int) -> float:
        """Factor on the loss of the newest scale at ``step``."""
        if self.ramp_steps is None:
            return 1.0
        return min(max((step - self.first_step + 1) / self.ramp_steps, LEAST_WEIGHT), 1.0)


@dataclass(frozen=True)
class Progressive:
    """Which scales are trained when.

    Args:
        first: number of the finest scale of the first stage, which lasts at least through the warm-up (pg0, 4).
        until: share of the steps after which all scales are trained (pg).
        ramp: share of the steps over which the weight of a new scale rises (pgwp, 1/300).

    Raises:
        ValueError: for values outside their range.
    """

    first: int
    until: float
    ramp: float = 1 / 300

    def __post_init__(self) -> None:
        if self.first < 1:
            raise ValueError(
                f"train.progressive.first is {self.first}; start with scale 1 or a finer one (4 as released): scale 0 "
                "has no teacher-forcing input to learn from"
            )
        if not 0 < self.until < 1:
            raise ValueError(
                f"train.progressive.until is {self.until}; it is a share of the steps, above 0 and below 1"
            )
        if not 0 < self.ramp < 1:
            raise ValueError(f"train.progressive.ramp is {self.ramp}; it is a share of the steps, above 0 and below 1")

    def check(self, optim: Optimisation) -> None:
        """Raise ``ValueError`` unless the rate bends where the last scale comes in, which the released code forces."""
        if optim.knee != self.until:
            raise ValueError(
                f"progressive training until {self.until:g} of the steps goes with a linear rate that has its knee "
                f"there; set optim.schedule=linear optim.hold=0 optim.knee={self.until:g} (optim.knee is {optim.knee})"
            )

    def stages(self, *, steps: int, warmup: int, num_scales: int) -> tuple[Stage, ...]:
        """The stages of a run of ``steps``, in order and without gaps.

        The finest scale is ``first`` during the warm-up, K - 1 from ``until`` on, and between them
        ``first + round(progress (K - 1 - first))``.

        Raises:
            ValueError: if ``first`` is not a scale, or the warm-up outlasts ``until``.
        """
        last = num_scales - 1
        if self.first > last:
            raise ValueError(f"train.progressive.first is {self.first}; the schedule's last scale is number {last}")
        end = self.until * steps
        if end <= warmup:
            raise ValueError(
                f"train.progressive.until={self.until:g} of {steps} steps is over before the warm-up of {warmup}; "
                "raise it or lower optim.warmup"
            )

        def finest(step: int) -> int:
            if step <= warmup:
                return self.first
            if step >= end:
                return last
            return self.first + round((step - warmup) / (end - warmup) * (last - self.first))

        starts = [bisect_left(range(steps), scale, key=finest) for scale in range(self.first, last + 1)]
        stages: list[Stage] = []
        for scale, start, stop in zip(range(self.first, last + 1), starts, [*starts[1:], steps], strict=True):
            ramped = bool(stages) and scale < last
            if start < stop:  # a short run may jump over a scale
                stages.append(Stage(start, stop, scale + 1, self.ramp * steps if ramped else None))
        return tuple(stages)


def stages_of(
    progressive: Progressive | None, optim: Optimisation, *, steps: int, num_scales: int
) -> tuple[Stage, ...]:
    """The stages of a run; without progressive training a single one of all scales. Raises as `Progressive` does."""
    if progressive is None:
        return (Stage(0, steps, num_scales),)
    progressive.check(optim)
    return progressive.stages(steps=steps, warmup=optim.warmup_steps(steps), num_scales=num_scales)


def stage_at(stages: Sequence[Stage], step: int) -> Stage:
    """The stage that ``step`` belongs to; beyond the run the last one."""
    return next((stage for stage in stages if step < stage.last_step), stages[-1])


def coarsest_scales(batch: TokenBatch, schedule: ScaleSchedule, scales: int) -> TokenBatch:
    """The batch without the tokens, and the inputs, of finer scales."""
    if scales == schedule.num_scales:
        return batch
    assert batch.inputs_BNC is not None
    stop = schedule.slices[scales - 1].stop
    return TokenBatch(
        batch.ids_BL[:, :stop], batch.labels_B, batch.inputs_BNC[:, : stop - schedule.tokens_per_scale[0]]
    )


@dataclass(frozen=True)
class StageCost:
    """What an image costs in a stage: tokens, and training FLOPs by one rule."""

    stage: Stage
    tokens: int
    flops: float


def stage_costs(stages: Sequence[Stage], model: VAR, rule: FlopsRule) -> tuple[StageCost, ...]:
    """Tokens and FLOPs an image of every stage: shorter sequences, and in attention their square."""
    schedules = [model.schedule.coarsest(stage.scales) for stage in stages]
    return tuple(
        StageCost(stage, schedule.num_tokens, train_flops_per_image(model, rule, schedule))
        for stage, schedule in zip(stages, schedules, strict=True)
    )


def spent(costs: Sequence[StageCost], step: int, batch: int) -> tuple[float, float]:
    """Tokens and FLOPs of the first ``step`` steps of ``batch`` images."""
    tokens = flops = 0.0
    for cost in costs:
        images = float(max(0, min(step, cost.stage.last_step) - cost.stage.first_step) * batch)
        tokens += images * cost.tokens
        flops += images * cost.flops
    return tokens, flops
