"""Batches for training and validation: workers change the speed, never the order.

The data set of the DataLoader is map-style over *steps*, so a worker makes whole batches and resuming at step s is
``first_step=s``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import DataLoader, Dataset

from varscale.data.order import batch_indices
from varscale.data.source import ImageBatch, ImageSource

T = TypeVar("T")


@dataclass(frozen=True)
class StepBatches(Dataset[ImageBatch]):
    """Maps a step to its training batch."""

    source: ImageSource
    seed: int
    batch: int

    def __getitem__(self, step: int) -> ImageBatch:
        indices, draws = batch_indices(seed=self.seed, step=step, batch=self.batch, size=self.source.size("train"))
        return self.source.read("train", indices, draws)


@dataclass(frozen=True)
class Steps:
    """The steps ``first .. last - 1`` as a sampler without a length.

    Lightning counts the batches of an epoch, and a resumed run's loader is shorter than the epoch its checkpoint was
    written in: given a length, it would end the epoch early and read the first batches of the loader a second time.
    Without one the epoch is the run, and ``max_steps`` ends it.
    """

    first: int
    last: int

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.last))


def as_it_is(batch: Any) -> Any:
    """Instead of torch's default conversion: a batch is a batch already."""
    return batch


def train_loader(
    source: ImageSource,
    *,
    seed: int,
    batch: int,
    first_step: int,
    last_step: int,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[ImageBatch]:
    """A DataLoader that yields one ``ImageBatch`` a step for the steps ``first_step .. last_step - 1``.

    Raises:
        ValueError: for a batch below 1, negative workers or ``first_step > last_step``.
        DataError: when the source cannot be read.
    """
    if batch < 1 or workers < 0 or not 0 <= first_step <= last_step:
        raise ValueError(
            f"batch {batch}, workers {workers}, steps {first_step} to {last_step}: the batch must be at least 1, the "
            "workers at least 0, and the first step in [0, last step]"
        )
    if workers:
        # A source may prepare itself when it is first read (decode, map a file): once here, not once in each worker.
        source.read("train", np.zeros(1, dtype=np.int64), 0)
    return DataLoader(
        StepBatches(source, seed, batch),
        batch_size=None,
        sampler=Steps(first_step, last_step),
        num_workers=workers,
        collate_fn=as_it_is,
        pin_memory=pin_memory,
    )


def val_batches(source: ImageSource, *, batch: int, limit: int | None = None) -> Iterator[ImageBatch]:
    """The validation split in its own order, or its first ``limit`` images; the last batch may be smaller.

    Raises:
        ValueError: for a batch or limit below 1, or a validation split without an end.
    """
    size = source.size("val")
    if size is None:
        raise ValueError(f"the validation split of {source.name} is infinite; validation needs a fixed set of images")
    if batch < 1 or (limit is not None and limit < 1):
        raise ValueError(f"batch {batch}, limit {limit}: both must be at least 1 (no limit is None)")
    return _val_batches(source, batch, size if limit is None else min(limit, size))


def _val_batches(source: ImageSource, batch: int, end: int) -> Iterator[ImageBatch]:
    for start in range(0, end, batch):
        yield source.read("val", np.arange(start, min(start + batch, end)), 0)
