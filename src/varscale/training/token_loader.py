"""Token batches for training and validation from a cache, in the order of images that (seed, step) gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import DataLoader, Dataset

from varscale.cache.reader import TokenCache
from varscale.data.loader import Steps, as_it_is
from varscale.data.order import batch_indices
from varscale.tokenizers.tokens import TokenBatch


@dataclass(frozen=True)
class StepTokens(Dataset[TokenBatch]):
    """Maps a step to its token batch."""

    cache: TokenCache
    seed: int
    batch: int

    def __getitem__(self, step: int) -> TokenBatch:
        size = self.cache.size("train")
        indices, _ = batch_indices(seed=self.seed, step=step, batch=self.batch, size=size)
        return self.cache.batch("train", indices)


def token_loader(
    cache: TokenCache, *, seed: int, batch: int, first_step: int, last_step: int
) -> DataLoader[TokenBatch]:
    """One ``TokenBatch`` a step for the steps ``first_step .. last_step - 1``. Reading a cache needs no workers."""
    steps = Steps(first_step, last_step)
    return DataLoader(StepTokens(cache, seed, batch), batch_size=None, sampler=steps, collate_fn=as_it_is)


def val_token_batches(cache: TokenCache, *, batch: int, limit: int | None = None) -> Iterator[TokenBatch]:
    """The cached validation images in order, or the first ``limit``."""
    end = cache.size("val") if limit is None else min(limit, cache.size("val"))
    for start in range(0, end, batch):
        yield cache.batch("val", np.arange(start, min(start + batch, end)))
