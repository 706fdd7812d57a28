"""The processes that write one cache together, and how each tells the others what it has done.

Whoever starts them (Lightning, torchrun, Slurm) initialises ``torch.distributed``; without it a process is alone. Only
lists of shards travel, so any backend will do, and nothing is exchanged while images are encoded.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch.distributed as dist

from varscale.cache.manifest import CacheError

T = TypeVar("T")


def place() -> tuple[int, int]:
    """The rank of this process and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def of_all(value: T) -> list[T]:
    """The value of every process, by rank. Waits until all have given theirs.

    Raises:
        CacheError: if another process has ended instead.
    """
    world = place()[1]
    if world == 1:
        return [value]
    values: list[Any] = [None] * world
    try:
        dist.all_gather_object(values, value)
    except RuntimeError as error:
        raise CacheError(
            f"another process of this cache ended early, which its own output explains ({error}); what is whole is "
            "kept: launch the verb cache again"
        ) from error
    return values
