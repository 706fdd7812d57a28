"""A power-law average of the weights, kept while training: it stands for a run whose learning rate had decayed.

Source: Karras et al., arXiv:2312.02696, sec. 3.1 and eq. 2: the average over all steps t with weights in proportion to
t^gamma, updated as avg(t) = beta(t) avg(t - 1) + (1 - beta(t)) weights(t), beta(t) = (1 - 1/t)^(gamma + 1). Its
relative width is the same at every t, so one run gives a loss for every horizon. gamma = 6.94 and 16.97 are their
widths of .10 and .05; gamma = 9 (1 - beta = 10 / t) is what equalled a linear decay on the CPU ladder.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class PowerAverage(nn.Module):
    """A copy of ``model`` whose parameters are the average.

    Args:
        model: whose first weights it starts as; the first update replaces them.
        gamma: the exponent, above -1; 0 is the plain mean of all steps.
    """

    def __init__(self, model: nn.Module, gamma: float):
        super().__init__()
        if not gamma > -1:
            raise ValueError(f"train.average.gamma is {gamma}; it must be above -1 (6.94 to 16.97 are usual)")
        self.gamma = gamma
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.pairs: tuple[list[Tensor], list[Tensor]] | None = None

    @property
    def name(self) -> str:
        """As the run table names it."""
        return f"power, gamma {self.gamma:g}"

    @torch.no_grad()
    def update(self, model: nn.Module, steps: int) -> None:
        """Take in the weights after ``steps`` steps, from 1 on."""
        if self.pairs is None:  # walking the modules takes longer than the update of a small model
            self.pairs = list(self.module.parameters()), list(model.parameters())
        weight = 1.0 - (1.0 - 1.0 / steps) ** (self.gamma + 1.0)
        torch._foreach_lerp_(*self.pairs, weight)
