"""How each of the processes that write one cache together tells the others what it has done.

Only lists of shards travel, so any backend will do, and nothing is exchanged while images are encoded.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch.distributed as dist

from varscale.cache.manifest import CacheError
from varscale.ranks import place

T = TypeVar("T")


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
