"""Batches for training and validation: workers and processes change the speed, never the order.

The data set of the DataLoader is map-style over *steps*, so a worker makes whole batches and a run resumed at step s
has ``first_step=s``. A batch that R processes divide, or that is trained in A parts one after another, is R A steps
here, in the order of its images: pass a of process r takes part a R + r (``Share``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

import numpy as np
from torch.utils.data import DataLoader, Dataset

from varscale.data.order import BatchPart, batch_indices
from varscale.data.source import ImageBatch, ImageSource

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """What one process trains on: of each step's batch ``passes`` of its ``world * passes`` equal parts.

    Args:
        rank: of the process, from 0.
        world: number of processes.
        passes: parts that each process trains one after another.
    """

    rank: int = 0
    world: int = 1
    passes: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world or self.passes < 1:
            raise ValueError(
                f"rank {self.rank} of {self.world} with {self.passes} passes a step: there is no such share"
            )

    @property
    def parts(self) -> int:
        """Parts of a step's batch."""
        return self.world * self.passes

    def part(self, number: int) -> BatchPart:
        """The part that this process trains in its pass ``number``, counted over the whole run."""
        return BatchPart(number % self.passes * self.world + self.rank, self.parts)

    def batch(self, whole: int) -> int:
        """Images of a part of a batch of ``whole``. Raises ``ValueError`` when it does not divide."""
        if whole < 1 or whole % self.parts:
            raise ValueError(
                f"a batch of {whole} images cannot be divided equally among {self.world} processes with {self.passes} "
                f"passes each; use a multiple of {self.parts}, or fewer of them"
            )
        return whole // self.parts


ALONE = Share()


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
    """This process's parts of the steps ``first .. last - 1`` as a sampler without a length.

    Lightning counts the batches of an epoch, and a resumed run's loader is shorter than the epoch its checkpoint was
    written in: given a length, it would end the epoch early and read the first batches of the loader a second time.
    Without one the epoch is the run, and ``max_steps`` ends it.
    """

    first: int
    last: int
    share: Share = ALONE

    def __iter__(self) -> Iterator[int]:
        first, last = self.first * self.share.parts, self.last * self.share.parts
        return iter(range(first + self.share.rank, last, self.share.world))


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
    share: Share = ALONE,
) -> DataLoader[ImageBatch]:
    """A DataLoader that yields the share of each step's batch, for the steps ``first_step .. last_step - 1``.

    ``batch`` is the whole batch of a step, whoever shares it.

    Raises:
        ValueError: for a batch below 1 or one that the share does not divide, negative workers or ``first_step >
            last_step``.
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
        StepBatches(source, seed, share.batch(batch)),
        batch_size=None,
        sampler=Steps(first_step, last_step, share),
        num_workers=workers,
        collate_fn=as_it_is,
        pin_memory=pin_memory,
    )


@dataclass(frozen=True)
class Batches(Sequence[T], Generic[T]):
    """The images ``0 .. end - 1`` in their order as batches of ``batch``, each read when it is asked for.

    Args:
        read: the batch of the images of these numbers, (B,) int64.
    """

    read: Callable[[np.ndarray], T]
    end: int
    batch: int

    def __len__(self) -> int:
        return -(-self.end // self.batch)

    @overload
    def __getitem__(self, number: int) -> T: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[T]: ...

    def __getitem__(self, number: int | slice) -> T | Sequence[T]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(number)
        start = number * self.batch
        return self.read(np.arange(start, min(start + self.batch, self.end)))


def val_batches(source: ImageSource, *, batch: int, limit: int | None = None) -> Batches[ImageBatch]:
    """The validation split in its own order, or its first ``limit`` images; the last batch may be smaller.

    Raises:
        ValueError: for a batch or limit below 1, or a validation split without an end.
    """
    size = source.size("val")
    if size is None:
        raise ValueError(f"the validation split of {source.name} is infinite; validation needs a fixed set of images")
    if batch < 1 or (limit is not None and limit < 1):
        raise ValueError(f"batch {batch}, limit {limit}: both must be at least 1 (no limit is None)")
    return Batches(lambda numbers: source.read("val", numbers, 0), size if limit is None else min(limit, size), batch)
