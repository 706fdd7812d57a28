"""Dead leaves: a pure function of (seed, split, i), with classes that differ and two levels of difficulty."""

from __future__ import annotations

import hashlib
import pickle
import zlib

import numpy as np
import pytest
import torch

from varscale.data.dead_leaves import DeadLeaves, palettes
from varscale.data.source import DataError, ImageSource


@pytest.mark.parametrize("setting", ["easy", "rich"])
def test_an_image_does_not_depend_on_its_batch(setting: str) -> None:
    source = DeadLeaves(setting=setting)
    indices = np.array([5, 2**41 + 3, 0, 77, 5, *range(100, 170)])
    together = source.read("train", indices, 0)
    assert together.pixels.shape == (75, 3, 32, 32) and together.pixels.dtype == torch.float32
    assert together.labels.dtype == together.ids.dtype == torch.int64
    assert together.ids.tolist() == indices.tolist()
    for row in (0, 1, 4, 70):
        alone = pickle.loads(pickle.dumps(source)).read("train", indices[row : row + 1], 9)
        assert torch.equal(alone.pixels[0], together.pixels[row]) and alone.labels[0] == together.labels[row]


def test_seeds_splits_and_indices_give_different_images() -> None:
    images = [
        DeadLeaves(seed=seed).read(split, np.arange(3), 0).pixels for seed in (0, 1) for split in ("train", "val")
    ]
    flat = torch.cat(images).flatten(1)
    assert len(torch.unique(flat, dim=0)) == len(flat)


def test_pixels_stay_the_same_for_ever() -> None:
    # A change here changes the data of every recorded run: raise _RECIPE with it.
    digests = {}
    for setting in ("easy", "rich"):
        batch = DeadLeaves(setting=setting).read("val", np.arange(64), 0)
        grey = ((batch.pixels + 1) * 127.5).round().to(torch.uint8).numpy()
        digests[setting] = hashlib.sha256(grey.tobytes() + batch.labels.numpy().tobytes()).hexdigest()[:16]
    assert digests == {"easy": "281ddc66d991793c", "rich": "a4f0bbe054a1c229"}


def test_pixels_fill_the_range_and_labels_are_even() -> None:
    batch = DeadLeaves().read("val", np.arange(2000), 0)
    assert batch.pixels.min() >= -1 and batch.pixels.max() <= 1 and batch.pixels.std() > 0.3
    counts = np.bincount(batch.labels.numpy(), minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 28  # chi-squared, 9 degrees of freedom: exceeded once in 1,000


def test_classes_can_be_told_apart_by_their_palettes() -> None:
    batch = DeadLeaves(seed=4).read("val", np.arange(300), 0)
    colours = (batch.pixels.permute(0, 2, 3, 1).reshape(300, -1, 3).numpy() + 1) * 127.5
    table = palettes(10)
    distance = np.stack([np.abs(colours[:, :, None] - table[c]).sum(-1).min(-1).mean(-1) for c in range(10)], axis=1)
    assert (distance.argmin(1) == batch.labels.numpy()).mean() > 0.99


def test_rich_images_hold_more_information_than_easy_ones() -> None:
    def packed(setting: str) -> int:
        pixels = DeadLeaves(setting=setting).read("val", np.arange(50), 0).pixels
        return len(zlib.compress(((pixels + 1) * 127.5).to(torch.uint8).numpy().tobytes()))

    assert packed("rich") > 3 * packed("easy")


def test_resolution_leaves_and_classes_are_settings_and_change_the_fingerprint() -> None:
    sources = [
        DeadLeaves(),
        DeadLeaves(resolution=48),
        DeadLeaves(num_classes=3),
        DeadLeaves(leaves=2),
        DeadLeaves(seed=1),
        DeadLeaves(val_size=10),
        DeadLeaves(setting="rich"),
    ]
    assert len({source.fingerprint for source in sources}) == len(sources)
    assert DeadLeaves().fingerprint == DeadLeaves(leaves=6).fingerprint == sources[0].fingerprint
    assert sources[1].read("val", np.arange(2), 0).pixels.shape == (2, 3, 48, 48)
    assert sources[2].read("val", np.arange(100), 0).labels.max() == 2
    assert DeadLeaves(resolution=1).read("val", np.arange(2), 0).pixels.shape == (2, 3, 1, 1)
    assert isinstance(sources[0], ImageSource) and sources[0].size("train") is None and sources[5].size("val") == 10


@pytest.mark.parametrize(
    "wrong", [{"resolution": 0}, {"num_classes": 0}, {"leaves": 0}, {"val_size": 0}, {"setting": "hard"}]
)
def test_bad_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(DataError, match=str(next(iter(wrong.values())))):
        DeadLeaves(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([2000], "image 2000 is outside the val split of dead_leaves"),
        ([0, -1], "image -1 is outside"),
        ([0.5], "row of integers"),
    ],
)
def test_an_index_outside_the_split_is_refused(indices: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        DeadLeaves().read("val", np.array(indices), 0)
    with pytest.raises(DataError, match="not negative"):
        DeadLeaves().read("train", np.array([-1]), 0)
