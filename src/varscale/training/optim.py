"""Optimisation: which parameters decay, how the learning rate follows size and batch, and how it moves over a run.

Source: VAR's released code (groups, AdamW betas 0.9 / 0.95, decay 0.05); the inverse-width rule is the one the CPU
ladder was found to need. All factors are functions of the step alone, so that a resumed run continues exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

LearningRateRule = Literal["constant", "inverse_width", "per_256_images"]
Schedule = Literal["linear", "cosine", "constant"]

# Embeddings of positions and levels, gates and temperatures are not decayed, whatever their shape.
UNDECAYED = ("bias", "start_1ND", "position_1LD", "level_embed.weight", "offset_16D", "log_scale_H11")


@dataclass(frozen=True)
class Optimisation:
    """Hyper-parameters of AdamW and the learning rate.

    Args:
        lr: the rate the rule starts from.
        lr_rule: ``constant`` lr; ``inverse_width`` lr / width; ``per_256_images`` lr * batch / 256 (VAR).
        warmup: share of the steps over which the rate rises linearly from ``warmup_start`` of its peak.
        schedule: what follows the warm-up, down to ``final`` of the peak.
        clip: global gradient norm above which gradients are scaled down; None leaves them.
    """

    lr: float
    lr_rule: LearningRateRule = "constant"
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    warmup: float = 0.06
    warmup_start: float = 0.005
    schedule: Schedule = "linear"
    final: float = 0.0
    clip: float | None = 2.0

    def __post_init__(self) -> None:
        for name, choices in (("lr_rule", ("constant", "inverse_width", "per_256_images")),
                              ("schedule", ("linear", "cosine", "constant"))):  # fmt: skip
            if getattr(self, name) not in choices:
                raise ValueError(f"optim.{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}")
        if not self.lr > 0:
            raise ValueError(f"optim.lr is {self.lr}; it must be above 0")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"optim.warmup is {self.warmup}; it is a share of the steps, from 0 to below 1")

    def lr_peak(self, *, width: int, batch: int) -> float:
        """The peak learning rate of a model of this width trained with this batch."""
        return self.lr * {"constant": 1.0, "inverse_width": 1 / width, "per_256_images": batch / 256}[self.lr_rule]

    def warmup_steps(self, steps: int) -> int:
        """Steps of warm-up in a run of ``steps``."""
        return round(self.warmup * steps)

    def factor(self, step: int, steps: int) -> float:
        """Learning rate at ``step`` (0 is the first) as a share of its peak."""
        warm = self.warmup_steps(steps)
        if step < warm:
            return self.warmup_start + (1 - self.warmup_start) * step / warm
        if self.schedule == "constant":
            return 1.0
        passed = min(1.0, (step - warm) / max(1, steps - warm))
        shape = 1 - passed if self.schedule == "linear" else 0.5 + 0.5 * math.cos(math.pi * passed)
        return self.final + (1 - self.final) * shape


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two AdamW groups: decayed matrices (the class embedding included), and everything else."""
    decayed, undecayed = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (undecayed if parameter.ndim == 1 or name.endswith(UNDECAYED) else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]


def scheduled_adamw(
    groups: list[dict[str, Any]], optim: Optimisation, *, lr_peak: float, steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW over ``groups`` and its schedule, one scheduler step a training step."""
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=lr_peak, betas=optim.betas, eps=optim.eps, fused=True)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: optim.factor(step, steps))


def build_adamw(
    model: nn.Module, optim: Optimisation, *, lr_peak: float, steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """``scheduled_adamw`` over the two groups of a generative model."""
    return scheduled_adamw(parameter_groups(model, optim.weight_decay), optim, lr_peak=lr_peak, steps=steps)


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float | None) -> None:
    """Scale gradients down to a global norm of ``limit``; None leaves them."""
    if limit is not None:
        torch.nn.utils.clip_grad_norm_(parameters, limit)
