"""Feeds: from a cache with several crops a run sees what it would see from images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from varscale.cache.reader import TokenCache
from varscale.cache.writer import write_cache
from varscale.data.dead_leaves import DeadLeaves
from varscale.data.source import ImageBatch, Split
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.tokenizers.tokens import TokenBatch
from varscale.training.feed import CacheFeed, ImageFeed

IMAGES, BATCH, SEED = 12, 5, 3


class Augmented:
    """Twelve training images whose brightness follows the draw."""

    name, resolution, num_classes, fingerprint = "augmented", 32, 10, "a" * 12

    def size(self, split: Split) -> int:
        return IMAGES

    def read(self, split: Split, indices: np.ndarray, draw: np.ndarray | int) -> ImageBatch:
        batch = DeadLeaves().read(split, indices, 0)
        shift = torch.from_numpy(np.broadcast_to(draw, indices.shape) * 0.1).float()[:, None, None, None]
        return ImageBatch((batch.pixels + shift).clamp(-1, 1), batch.labels, batch.ids)


@pytest.fixture(scope="module")
def tokenizer() -> VQAutoencoder:
    torch.manual_seed(0)
    return VQAutoencoder(width=16, blocks=1).eval()


def cached(tokenizer: VQAutoencoder, folder: Path, crops: int) -> CacheFeed:
    write_cache(
        tokenizer,
        Augmented(),
        folder,
        train_images=None,
        val_images=None,
        crops=crops,
        shard_images=7,
        batch=4,
        progress=False,
    )
    return CacheFeed(TokenCache.open(folder, tokenizer=tokenizer), tokenizer)


def ids_of(feed: CacheFeed, steps: int) -> torch.Tensor:
    loader = feed.training(seed=SEED, batch=BATCH, first_step=0, last_step=steps)
    return torch.cat([batch.ids_BL for batch in loader])


def test_crops_of_the_cache_are_the_crops_of_training_from_images(tokenizer: VQAutoencoder, tmp_path: Path) -> None:
    crops = 3
    feed, steps = cached(tokenizer, tmp_path, crops), crops * IMAGES // BATCH  # the last batch straddles two epochs
    ids = ids_of(feed, steps)
    images = ImageFeed(Augmented(), tokenizer).training(seed=SEED, batch=BATCH, first_step=0, last_step=steps)
    fresh = torch.cat([tokenizer.encode(batch.pixels) for batch in images])
    assert torch.equal(ids, fresh)
    assert feed.train_images == IMAGES  # further crops are no further images


def test_after_the_last_crop_comes_the_first(tokenizer: VQAutoencoder, tmp_path: Path) -> None:
    feed = cached(tokenizer, tmp_path, 2)
    rows = ids_of(feed, 12)  # five epochs of twelve images
    by_epoch = [sorted(map(tuple, rows[start : start + IMAGES].tolist())) for start in range(0, 60, IMAGES)]
    assert by_epoch[0] == by_epoch[2] == by_epoch[4] and by_epoch[1] == by_epoch[3]
    assert by_epoch[0] != by_epoch[1]


def test_one_crop_keeps_the_order_there_was(tokenizer: VQAutoencoder, tmp_path: Path) -> None:
    feed = cached(tokenizer, tmp_path, 1)
    order = np.array([7, 6, 3, 2, 9, 0, 1, 5, 11, 4, 8, 10, 9, 7, 2])  # written down when caches had one draw
    assert torch.equal(ids_of(feed, 3), feed.cache.batch("train", order).ids_BL)


def test_batches_for_a_gpu_are_pinned(
    tokenizer: VQAutoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = cached(tokenizer, tmp_path, 1)
    for feed in (plain, ImageFeed(Augmented(), tokenizer)):
        for pinned in (False, True):
            loader = replace(feed, pin_memory=pinned).training(seed=SEED, batch=BATCH, first_step=0, last_step=1)
            assert loader.pin_memory == pinned
    moved: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: moved.append(self) or self)
    batch = plain.cache.batch("train", np.arange(2))
    assert isinstance(pin_memory(batch), TokenBatch) and len(moved) == 2  # as the DataLoader does
