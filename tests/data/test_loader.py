"""Loaders: one batch a step, the same with any number of workers, resumed at any step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning.fabric.utilities import move_data_to_device

from varscale.data.dead_leaves import DeadLeaves
from varscale.data.loader import train_loader, val_batches
from varscale.data.source import ImageBatch


def same(a: ImageBatch, b: ImageBatch) -> bool:
    return torch.equal(a.pixels, b.pixels) and torch.equal(a.labels, b.labels) and torch.equal(a.ids, b.ids)


def test_workers_and_resuming_do_not_change_the_batches() -> None:
    source = DeadLeaves()
    alone = list(train_loader(source, seed=2, batch=5, first_step=0, last_step=7))
    workers = list(train_loader(source, seed=2, batch=5, first_step=0, last_step=7, workers=2))
    resumed = list(train_loader(source, seed=2, batch=5, first_step=4, last_step=7))
    assert len(alone) == len(workers) == 7 and len(resumed) == 3
    assert all(same(a, b) for a, b in zip(alone, workers, strict=True))
    assert all(same(a, b) for a, b in zip(alone[4:], resumed, strict=True))
    assert not same(alone[0], next(iter(train_loader(source, seed=3, batch=5, first_step=0, last_step=1))))


def test_validation_goes_through_the_split_once_in_order() -> None:
    source = DeadLeaves(val_size=23)
    ids = [batch.ids.tolist() for batch in val_batches(source, batch=10)]
    assert [len(row) for row in ids] == [10, 10, 3] and [i for row in ids for i in row] == list(range(23))
    assert sum(len(b.ids) for b in val_batches(source, batch=10, limit=12)) == 12
    assert sum(len(b.ids) for b in val_batches(source, batch=10, limit=99)) == 23


def test_lightning_can_move_a_batch() -> None:
    batch = DeadLeaves().read("val", np.arange(2), 0)
    moved = move_data_to_device(batch, torch.device("meta"))
    assert isinstance(moved, ImageBatch) and {t.device.type for t in (moved.pixels, moved.labels, moved.ids)} == {
        "meta"
    }


def test_out_of_range_arguments_are_refused_at_once() -> None:
    source = DeadLeaves()
    for wrong in ({"batch": 0}, {"workers": -1}, {"first_step": 5}, {"first_step": -1}):
        with pytest.raises(ValueError, match="at least"):
            train_loader(source, **{"seed": 0, "batch": 2, "first_step": 0, "last_step": 4, **wrong})
    for wrong in ({"batch": 0}, {"limit": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            val_batches(source, **{"batch": 2, **wrong})
    source.size = lambda split: None  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="infinite"):
        val_batches(source, batch=2)
