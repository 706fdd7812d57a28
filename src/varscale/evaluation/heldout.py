"""Held-out nats per scale: the loss that goes into a law. No label is dropped, whatever training does.

Processes divide the batches, not the images within: each batch is computed as one process would, and every process
works out the same means from the numbers of all images, in float64 and in their order.
Shapes: B batch, K scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from varscale.models.protocol import GenerativeModel
from varscale.ranks import place
from varscale.tokenizers.tokens import TokenBatch


@dataclass(frozen=True)
class HeldOut:
    """Means over held-out images. Nats a token; errors are 1 - top-1 accuracy; sem is of ``nats_avg`` over images."""

    nats_avg: float
    nats_last: float
    nats_per_scale: tuple[float, ...]
    error_avg: float
    error_last: float
    sem: float
    images: int

    def curve_values(self) -> list[tuple[str, int | None, float]]:
        """The rows of a curve: (metric, scale, value)."""
        values: list[tuple[str, int | None, float]] = [
            ("nats_per_token_avg", None, self.nats_avg),
            ("nats_per_token_last", None, self.nats_last),
            ("error_avg", None, self.error_avg),
            ("error_last", None, self.error_last),
        ]
        return values + [("nats_per_token", k, nats) for k, nats in enumerate(self.nats_per_scale)]


@torch.no_grad()
def held_out(
    model: GenerativeModel, batches: Sequence[Any], tokens: Callable[[Any], TokenBatch] = lambda batch: batch
) -> HeldOut:
    """Measure a model on held-out batches; where there are several processes, all must call it.

    Args:
        batches: token batches, or what ``tokens`` makes one of; each process reads its own only.

    Raises:
        ValueError: when there is none.
    """
    if not len(batches):
        raise ValueError("there is no held-out image; give the validation split at least one")
    rank, world = place()
    measured: dict[int, tuple[Tensor, Tensor]] = {}
    # As many on every process, because sharded weights are gathered by all: some measure the last batch once more.
    for number in range(rank, math.ceil(len(batches) / world) * world, world):
        loss = model.loss(tokens(batches[min(number, len(batches) - 1)]), errors=True)
        assert loss.wrong_BK is not None
        if number < len(batches):
            measured[number] = loss.nats_BK.double().cpu(), loss.wrong_BK.double().cpu()
    if world > 1:
        of_each: list[Any] = [None] * world
        dist.all_gather_object(of_each, measured)
        measured = {number: values for one in of_each for number, values in one.items()}
    nats, wrong = zip(*(measured[number] for number in range(len(batches))), strict=True)
    nats_BK, wrong_BK = torch.cat(nats), torch.cat(wrong)
    sizes_K = torch.tensor(model.schedule.tokens_per_scale, dtype=torch.float64)
    avg_B = nats_BK.sum(1) / model.schedule.num_tokens
    count = len(avg_B)
    return HeldOut(
        nats_avg=float(avg_B.mean()),
        nats_last=float(nats_BK[:, -1].mean() / sizes_K[-1]),
        nats_per_scale=tuple((nats_BK.mean(0) / sizes_K).tolist()),
        error_avg=float(wrong_BK.sum(1).mean() / model.schedule.num_tokens),
        error_last=float(wrong_BK[:, -1].mean() / sizes_K[-1]),
        sem=float(avg_B.std() / math.sqrt(count)) if count > 1 else 0.0,
        images=count,
    )
