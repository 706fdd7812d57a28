"""Optimisation: how the learning rate follows size and batch, and how it and the weight decay move over a run.

Source: VAR's released code (AdamW betas 0.9 / 0.95, decay 0.05, schedules: utils/lr_control.py); the inverse-width rule
is the one the CPU ladder was found to need; CompleteP, arXiv:2505.01618. Learning rate and weight decay are functions
of the step alone, so that a resumed run continues exactly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LRScheduler

from varscale.models.var import VAR
from varscale.training.groups import complete_p_groups, parameter_groups

LearningRateRule = Literal["constant", "inverse_width", "per_256_images", "complete_p"]
Schedule = Literal["linear", "cosine", "exponential", "constant"]


@dataclass(frozen=True)
class Optimisation:
    """Hyper-parameters of AdamW, the learning rate and the weight decay.

    Args:
        lr: the rate the rule starts from.
        lr_rule: ``constant`` lr; ``inverse_width`` lr * base_width / width; ``per_256_images`` lr * batch / 256 (VAR);
            ``complete_p`` lr of the model's base shape, and from it rate, decay and epsilon of every role
            (``complete_p_groups``): ``lr_peak`` is then that lr, the rate of embeddings and biases at every size.
        base_width: width whose peak rate ``inverse_width`` makes equal to lr.
        weight_decay: of the decayed group at the first step.
        weight_decay_final: of the decayed group at the last step, reached by half a cosine; None keeps it constant.
        warmup: share of the steps over which the rate rises linearly from ``warmup_start`` of its peak.
        schedule: what follows the warm-up, down to ``final`` of the peak.
        hold: share of the steps after the warm-up that stay at the peak before the decay begins.
        knee: for ``linear``, share of the steps after the warm-up at which the rate has fallen half as far as it would
            have on a straight line, and goes straight to its end from there; None for one straight line.
        final_at_last_step: whether the last step takes ``final`` (the released code), or the step after it would.
        clip: global gradient norm above which gradients are scaled down; None leaves them.
        warmup_length: steps of warm-up, instead of the share: runs of several lengths then begin alike.
        cooldown: for ``constant``, share of the steps at the end over which the rate falls to ``final`` of its peak as
            1 - sqrt (Hagele et al., arXiv:2405.18392); None for no end.
    """

    lr: float
    lr_rule: LearningRateRule = "constant"
    base_width: int = 1
    weight_decay: float = 0.05
    weight_decay_final: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    warmup: float = 0.06
    warmup_start: float = 0.005
    schedule: Schedule = "linear"
    hold: float = 0.0
    knee: float | None = None
    final: float = 0.0
    final_at_last_step: bool = False
    clip: float | None = 2.0
    warmup_length: int | None = None
    cooldown: float | None = None

    def __post_init__(self) -> None:
        for name, choices in (("lr_rule", get_args(LearningRateRule)), ("schedule", get_args(Schedule))):
            if getattr(self, name) not in choices:
                raise ValueError(f"optim.{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}")
        if not self.lr > 0:
            raise ValueError(f"optim.lr is {self.lr}; it must be above 0")
        if self.base_width < 1:
            raise ValueError(f"optim.base_width is {self.base_width}; it must be at least 1")
        for name in ("warmup", "hold"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"optim.{name} is {getattr(self, name)}; it is a share of the steps, from 0 to below 1"
                )
        if self.knee is not None and (self.schedule != "linear" or self.hold or not 0 < self.knee < 1):
            raise ValueError(
                f"optim.knee is {self.knee} with optim.schedule={self.schedule} and optim.hold={self.hold}; a knee is "
                "a share of the steps, above 0 and below 1, of a linear schedule without hold"
            )
        if self.warmup_length is not None and self.warmup_length < 0:
            raise ValueError(f"optim.warmup_length is {self.warmup_length}; it is a number of steps, at least 0")
        if self.cooldown is not None and (self.schedule != "constant" or not 0 < self.cooldown < 1):
            raise ValueError(
                f"optim.cooldown is {self.cooldown} with optim.schedule={self.schedule}; a cooldown is a share of the "
                "steps, above 0 and below 1, at the end of a constant rate"
            )
        if self.schedule == "exponential" and not self.final > 0:
            raise ValueError(
                f"optim.final is {self.final}; an exponential decay never reaches 0: give it a value above"
            )
        if self.weight_decay_final is not None and not self.weight_decay > 0:
            raise ValueError(
                f"optim.weight_decay_final is {self.weight_decay_final} with optim.weight_decay={self.weight_decay}; "
                "only a decay above 0 can move to another"
            )

    @property
    def schedule_name(self) -> str:
        """The schedule as the run table names it: its form, and where it holds or bends."""
        name: str = self.schedule
        name += f", hold {self.hold:g}" if self.hold else ""
        name += f", cooldown {self.cooldown:g}" if self.cooldown is not None else ""
        return name + (f", knee {self.knee:g}" if self.knee is not None else "")

    def lr_peak(self, *, width: int, batch: int) -> float:
        """The peak learning rate of a model of this width trained with this batch."""
        factors = {"inverse_width": self.base_width / width, "per_256_images": batch / 256}
        return self.lr * factors.get(self.lr_rule, 1.0)

    def warmup_steps(self, steps: int) -> int:
        """Steps of warm-up in a run of ``steps``."""
        return round(self.warmup * steps) if self.warmup_length is None else self.warmup_length

    def cooldown_start(self, steps: int) -> int:
        """First step of the cooldown in a run of ``steps``, the warm-up at the earliest; ``steps`` without one."""
        if self.cooldown is None:
            return steps
        return max(steps - round(self.cooldown * steps), self.warmup_steps(steps))

    def factor(self, step: int, steps: int) -> float:
        """Learning rate at ``step`` (0 is the first) as a share of its peak."""
        warm = self.warmup_steps(steps)
        if step < warm:
            return self.warmup_start + (1 - self.warmup_start) * step / warm
        if self.schedule == "constant":
            start = self.cooldown_start(steps)
            if self.cooldown is None or step <= start:  # where a branch starts: the trunk's rate, without rounding
                return 1.0
            passed = min(1.0, (step - start) / max(1, steps - self.final_at_last_step - start))
            return self.final + (1 - self.final) * (1 - math.sqrt(passed))
        passed = min(1.0, (step - warm) / max(1, steps - self.final_at_last_step - warm))
        if self.knee is not None:
            straight = self.final + (1 - self.final) * (1 - self.knee)
            middle = (1 + straight) / 2
            if passed < self.knee:
                return 1 + (middle - 1) * passed / self.knee
            return self.final + (middle - self.final) * (1 - passed) / (1 - self.knee)
        decayed = max(0.0, (passed - self.hold) / (1 - self.hold))
        if self.schedule == "exponential":
            return self.final**decayed
        shape = 1 - decayed if self.schedule == "linear" else 0.5 + 0.5 * math.cos(math.pi * decayed)
        return self.final + (1 - self.final) * shape

    def weight_decay_at(self, step: int, steps: int) -> float:
        """Weight decay of the decayed group at ``step``: half a cosine over the whole run, warm-up included."""
        if self.weight_decay_final is None:
            return self.weight_decay
        passed = min(1.0, step / max(1, steps - 1))
        shape = 0.5 + 0.5 * math.cos(math.pi * passed)
        return self.weight_decay_final + (self.weight_decay - self.weight_decay_final) * shape


def released_schedule(name: str) -> dict[str, Any]:
    """The settings of `Optimisation` behind a schedule of the released code (its flag ``sche``).

    ``cos``; ``lin00``; ``lin0`` (its default) and ``lin``, which hold for 5 and 15 %; ``exp``; ``lin0.8`` and the like,
    whose number is the knee. Raises ``ValueError`` for any other name.
    """
    forms: dict[str, dict[str, Any]] = {
        "cos": {"schedule": "cosine"},
        "lin00": {"schedule": "linear"},
        "lin0": {"schedule": "linear", "hold": 0.05},
        "lin": {"schedule": "linear", "hold": 0.15},
        "exp": {"schedule": "exponential", "hold": 0.15},
    }
    if name in forms:
        return {**forms[name], "final_at_last_step": True}
    if re.fullmatch(r"lin0\.\d+", name):
        return {"schedule": "linear", "knee": float(name.removeprefix("lin")), "final_at_last_step": True}
    raise ValueError(
        f"the released code has no schedule {name!r}; there are {', '.join(forms)} and lin0.8 and the like"
    )


class StepSchedule(LRScheduler):
    """Sets learning rate and weight decay of the next step, as functions of the step.

    A group's weight decay keeps its ratio to that of the settings, 0 included. Its state is the step alone.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, optim: Optimisation, steps: int):
        self.settings, self.steps = optim, steps
        moves = optim.weight_decay_final is not None
        self.decays = [group["weight_decay"] / optim.weight_decay for group in optimizer.param_groups] if moves else []
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The rates of the groups at the present step."""
        return [base * self.settings.factor(self.last_epoch, self.steps) for base in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        """Go on by one step."""
        super().step()
        if self.settings.weight_decay_final is not None:
            decay = self.settings.weight_decay_at(self.last_epoch, self.steps)
            for group, ratio in zip(self.optimizer.param_groups, self.decays, strict=True):
                group["weight_decay"] = ratio * decay

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers only: settings belong to the configuration."""
        return {name: getattr(self, name) for name in ("last_epoch", "base_lrs", "_step_count", "_last_lr")}


def scheduled_adamw(
    groups: list[dict[str, Any]], optim: Optimisation, *, lr_peak: float, steps: int, fused: bool = True
) -> tuple[torch.optim.AdamW, StepSchedule]:
    """AdamW over ``groups`` and its schedule, one scheduler step a training step.

    ``lr_peak`` is of groups that state no ``lr``. Raises ``ValueError`` where a rule wants every group to state one.
    """
    groups = [group for group in groups if group["params"]]
    if optim.lr_rule == "complete_p" and not all("lr" in group for group in groups):
        raise ValueError("lr_rule=complete_p is for generative models; set stage1.optim.lr_rule=constant")
    optimizer = torch.optim.AdamW(groups, lr=lr_peak, betas=optim.betas, eps=optim.eps, fused=fused)
    return optimizer, StepSchedule(optimizer, optim, steps)


def build_adamw(
    model: nn.Module, optim: Optimisation, *, lr_peak: float, steps: int, fused: bool = True
) -> tuple[torch.optim.AdamW, StepSchedule]:
    """``scheduled_adamw`` over the groups of a generative model, those of ``optim.lr_rule``."""
    if optim.lr_rule == "complete_p":
        assert isinstance(model, VAR)
        groups = complete_p_groups(model, lr=lr_peak, weight_decay=optim.weight_decay, eps=optim.eps)
    else:
        groups = parameter_groups(model, optim.weight_decay)
    return scheduled_adamw(groups, optim, lr_peak=lr_peak, steps=steps, fused=fused)


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float | None) -> Tensor:
    """Scale gradients down to a global norm of ``limit``; None leaves them. Returns the norm before."""
    parameters = list(parameters)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(norm, DTensor):  # of gradients that are divided among processes
        norm = norm.full_tensor()
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm
