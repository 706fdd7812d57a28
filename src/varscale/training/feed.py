"""Where a run's tokens come from: a cache, or images that the tokenizer encodes on the fly. One interface for both.

The order of images is a function of (seed, step) in either case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from varscale.cache.reader import TokenCache
from varscale.data.loader import ALONE, Batches, Share, Steps, as_it_is, train_loader, val_batches
from varscale.data.order import batch_indices
from varscale.data.source import ImageBatch, ImageSource
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.tokenizers.tokens import TokenBatch

STD_IMAGES = 64  # behind the scale of the inputs


class Feed(Protocol):
    """What a run trains on and is measured on."""

    @property
    def num_classes(self) -> int:
        """Classes of the labels."""
        ...

    @property
    def dataset_fingerprint(self) -> str:
        """Content hash of the data."""
        ...

    @property
    def train_images(self) -> int | None:
        """Distinct training images; None when they never repeat."""
        ...

    def input_std(self) -> float:
        """Standard deviation of the teacher-forcing inputs of the first training images."""
        ...

    def training(
        self, *, seed: int, batch: int, first_step: int, last_step: int, share: Share = ALONE
    ) -> DataLoader[Any]:
        """The share of a batch of ``batch`` images for each of the steps ``first_step .. last_step - 1``."""
        ...

    def held_out(self, *, batch: int, limit: int | None) -> Sequence[ImageBatch | TokenBatch]:
        """The validation images in order, or the first ``limit``."""
        ...


def spread(inputs_BNC: Tensor) -> float:
    """Standard deviation of inputs, 1 where a one-scale schedule has none."""
    return float(inputs_BNC.std()) if inputs_BNC.numel() else 1.0


@dataclass(frozen=True)
class StepTokens(Dataset[TokenBatch]):
    """Maps a step to its token batch. Epoch e passes through every image once, at draw e mod crops."""

    cache: TokenCache
    seed: int
    batch: int

    def __getitem__(self, step: int) -> TokenBatch:
        size = self.cache.size("train")
        indices, epochs = batch_indices(seed=self.seed, step=step, batch=self.batch, size=size)
        return self.cache.batch("train", indices, epochs % self.cache.crops)


@dataclass(frozen=True)
class CacheFeed:
    """Tokens from a cache. Implements ``Feed``."""

    cache: TokenCache
    tokenizer: VQAutoencoder
    pin_memory: bool = False  # for a GPU: copies to it then wait for nothing

    @property
    def num_classes(self) -> int:
        """Classes of the labels."""
        return self.cache.num_classes

    @property
    def dataset_fingerprint(self) -> str:
        """Content hash of the data."""
        return self.cache.dataset_fingerprint

    @property
    def train_images(self) -> int | None:
        """Cached training images; further crops of an image are no further images."""
        return self.cache.size("train")

    def input_std(self) -> float:
        """Standard deviation of the teacher-forcing inputs of the first training images."""
        batch = self.cache.batch("train", np.arange(min(STD_IMAGES, self.cache.size("train"))))
        return spread(self.tokenizer.pyramid.inputs(batch.ids_BL) if batch.inputs_BNC is None else batch.inputs_BNC)

    def training(
        self, *, seed: int, batch: int, first_step: int, last_step: int, share: Share = ALONE
    ) -> DataLoader[TokenBatch]:
        """A ``TokenBatch`` for each part of the share; reading a cache needs no workers."""
        steps = StepTokens(self.cache, seed, share.batch(batch))
        sampler = Steps(first_step, last_step, share)
        pinned = self.pin_memory
        return DataLoader(steps, batch_size=None, sampler=sampler, collate_fn=as_it_is, pin_memory=pinned)

    def held_out(self, *, batch: int, limit: int | None) -> Batches[TokenBatch]:
        """The cached validation images in order, or the first ``limit``."""
        end = self.cache.size("val") if limit is None else min(limit, self.cache.size("val"))
        return Batches(lambda numbers: self.cache.batch("val", numbers), end, batch)


@dataclass(frozen=True)
class ImageFeed:
    """Images, encoded by the task when it gets them. Implements ``Feed``."""

    source: ImageSource
    tokenizer: VQAutoencoder
    workers: int = 0
    pin_memory: bool = False

    @property
    def num_classes(self) -> int:
        """Classes of the labels."""
        return self.source.num_classes

    @property
    def dataset_fingerprint(self) -> str:
        """Content hash of the data."""
        return self.source.fingerprint

    @property
    def train_images(self) -> int | None:
        """Images of the training split."""
        return self.source.size("train")

    def input_std(self) -> float:
        """Standard deviation of the teacher-forcing inputs of the first training images."""
        size = self.source.size("train")
        indices = np.arange(STD_IMAGES if size is None else min(STD_IMAGES, size))
        ids_BL = self.tokenizer.encode(self.source.read("train", indices, 0).pixels)
        return spread(self.tokenizer.pyramid.inputs(ids_BL))

    def training(
        self, *, seed: int, batch: int, first_step: int, last_step: int, share: Share = ALONE
    ) -> DataLoader[ImageBatch]:
        """An ``ImageBatch`` for each part of the share."""
        return train_loader(
            self.source,
            seed=seed,
            batch=batch,
            first_step=first_step,
            last_step=last_step,
            workers=self.workers,
            pin_memory=self.pin_memory,
            share=share,
        )

    def held_out(self, *, batch: int, limit: int | None) -> Batches[ImageBatch]:
        """The validation images in order, or the first ``limit``."""
        return val_batches(self.source, batch=batch, limit=limit)
