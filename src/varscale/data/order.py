"""The order of images: which image a step trains on, as a pure function of (seed, step).

No state, so a run resumed at step s goes on exactly where it stopped, whatever the number of workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from varscale.data.counter import counter_hash

IMAGES_PER_SEED = 2**40
MAX_SEED = 2**22 - 1  # the last index of an infinite stream stays below 2^62


@dataclass(frozen=True)
class BatchPart:
    """Part ``index`` of a step's batch, cut into ``parts`` equal ones in the order of its images.

    One process and one pass a step is the whole batch. What is random in a step is drawn for the whole batch, and each
    part takes its own: then neither the number of processes nor that of passes changes what an image meets.
    """

    index: int = 0
    parts: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.parts:
            raise ValueError(f"part {self.index} of {self.parts}; parts are counted from 0")

    def of(self, whole: Any) -> Any:
        """This part of a sequence, array or tensor with one entry an image of the whole batch."""
        size = len(whole) // self.parts
        return whole[self.index * size : (self.index + 1) * size]


WHOLE_BATCH = BatchPart()


@lru_cache(maxsize=4)  # only to save time: a batch at the end of an epoch touches two of them
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """The images 0..size-1 in the order of their 64-bit hashes: .15 s for a million, once an epoch."""
    order = np.argsort(counter_hash(seed, epoch, np.arange(size)), kind="stable")
    order.setflags(write=False)
    return order


def batch_indices(*, seed: int, step: int, batch: int, size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The images of one step.

    A finite split (``size`` images) is passed through epoch by epoch, each in a permutation of its own that follows
    from (seed, epoch); batches may straddle two epochs, so no image is left out. An infinite split (``size`` None) is
    read as ``seed * 2^40 + step * batch + j``: a pass never repeats an image, and the streams of different seeds are
    disjoint (up to 2^40 images a run).

    Returns:
        ``(indices, draws)``, int64 (batch,) each; the draw is the epoch (0 for an infinite split).

    Raises:
        ValueError: if ``batch`` or ``size`` is below 1, ``step`` is negative or ``seed`` is outside [0, 2^22).
    """
    if batch < 1 or step < 0:
        raise ValueError(f"step {step} with a batch of {batch}: the step must be at least 0 and the batch at least 1")
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"the seed of the order is {seed}; it must lie in [0, {MAX_SEED}]")
    position = step * batch + np.arange(batch, dtype=np.int64)
    if size is None:
        if position[-1] >= IMAGES_PER_SEED:
            raise ValueError(f"step {step} with a batch of {batch} is past the {IMAGES_PER_SEED} images of one seed")
        return seed * IMAGES_PER_SEED + position, np.zeros(batch, dtype=np.int64)
    if size < 1:
        raise ValueError(f"cannot order {size} images; a split needs at least one")
    epochs, places = np.divmod(position, size)
    indices = np.empty(batch, dtype=np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        here = epochs == epoch
        indices[here] = _permutation(seed, epoch, size)[places[here]]
    return indices, epochs
