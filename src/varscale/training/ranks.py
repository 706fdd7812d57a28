"""What the processes of a run tell each other: what the first one found out, what they all measured, what they want.

Everything goes through the CPU (gloo), so that none of it waits for the queue of a GPU. A process alone tells nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from varscale.ranks import place

T = TypeVar("T")


def from_first(make: Callable[[], T]) -> T:
    """What ``make`` gives in the first process, in all of them; the others wait for it."""
    rank, world = place()
    if world == 1:
        return make()
    made: list[Any] = [make() if rank == 0 else None]
    dist.broadcast_object_list(made, src=0)
    result: T = made[0]
    return result


def mean_of_all(values: Tensor) -> Tensor:
    """The mean of equally large CPU or device tensors over the processes, float64, on the CPU."""
    world = place()[1]
    total = values.detach().double().cpu()
    if world > 1:
        dist.all_reduce(total)
        total /= world
    return total


def largest(wish: int) -> int:
    """The largest of the numbers that the processes of the run give; the same answer in all of them."""
    if place()[1] == 1:
        return wish
    votes = torch.tensor(wish)
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return int(votes)
