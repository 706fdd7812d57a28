"""What a generative model of token maps must offer, and the loss it returns.

Shapes: B batch, K scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from varscale.codes import CodeSpec
from varscale.data.order import WHOLE_BATCH, BatchPart
from varscale.schedule import ScaleSchedule
from varscale.tokenizers.tokens import TokenBatch

Role = Literal["token", "image", "embed", "head"]
ROLES: tuple[Role, ...] = ("token", "image", "embed", "head")


@dataclass(frozen=True)
class ScaleLoss:
    """Nats per image for each scale, summed over its tokens, and how many of its tokens were guessed wrong.

    nats_BK: float32, with gradient in training; of the coarsest scales only where the batch held no more. wrong_BK:
    float32 counts of top-1 errors, or None where not asked for.
    """

    nats_BK: Tensor
    wrong_BK: Tensor | None
    schedule: ScaleSchedule

    @property
    def per_token_avg_B(self) -> Tensor:
        """L_avg of each image: nats a token, sum over the batch's scales by all L tokens of the schedule."""
        return self.nats_BK.sum(1) / self.schedule.num_tokens

    @property
    def per_token_last_B(self) -> Tensor:
        """L_last of each image: nats a token, mean over the last scale."""
        assert self.nats_BK.shape[1] == self.schedule.num_scales, "the batch does not reach the last scale"
        return self.nats_BK[:, -1] / self.schedule.tokens_per_scale[-1]


class GenerativeModel(Protocol):
    """A model of token maps. Its loss never depends on train() or eval() beyond declared dropout."""

    schedule: ScaleSchedule
    code: CodeSpec
    num_classes: int
    depth: int
    width: int
    heads: int

    def loss(
        self,
        batch: TokenBatch,
        *,
        label_drop: float = 0.0,
        rng: torch.Generator | None = None,
        errors: bool = False,
        part: BatchPart = WHOLE_BATCH,
    ) -> ScaleLoss:
        """Cross-entropy of the batch; ``label_drop`` of the labels become the null class, drawn from ``rng``.

        The batch may be a ``part`` of a step's: what is random is drawn for the whole and the part takes its own.
        """
        ...

    def roles(self) -> Mapping[Role, list[nn.Parameter]]:
        """Disjoint, complete groups of parameters: see ``counting``."""
        ...
