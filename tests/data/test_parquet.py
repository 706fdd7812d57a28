"""Parquet images: the Hub's layout, decoded once, broken rows replaced."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from varscale.data.loader import train_loader
from varscale.data.parquet import ParquetImages
from varscale.data.source import DataError, ImageSource


def pixels_of(number: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)


def png(number: int, side: int = 8) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels_of(number, side)).save(stream, "PNG")
    return stream.getvalue()


def write(
    file: Path, images: Sequence[bytes | None], labels: Sequence[Any], names: Sequence[str] = ("img", "label")
) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": image, "path": None} for image in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({names[0]: pa.array(cells, kind), names[1]: labels}), file)
    return file


def dataset(root: Path, train: int = 20, val: int = 6) -> Path:
    """Training images 0, 1, ... in two files, validation images 100, 101, ... in one; the label is i mod 4."""
    half = train // 2
    write(root / "data" / "train-00000-of-00002.parquet", [png(i) for i in range(half)], [i % 4 for i in range(half)])
    rest = range(half, train)
    write(root / "data" / "train-00001-of-00002.parquet", [png(i) for i in rest], [i % 4 for i in rest])
    write(
        root / "data" / "test-00000-of-00001.parquet", [png(100 + i) for i in range(val)], [i % 4 for i in range(val)]
    )
    return root


def opened(path: Path | str, tmp_path: Path, **settings: Any) -> ParquetImages:
    return ParquetImages(
        str(path), resolution=settings.pop("resolution", 8), cache_dir=str(tmp_path / "cache"), **settings
    )


def as_pixels(images: Sequence[np.ndarray]) -> torch.Tensor:
    unit = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2)).float() / 255
    return unit * 2 - 1


def test_splits_pixels_and_labels_are_those_of_the_files(tmp_path: Path) -> None:
    source = opened(dataset(tmp_path / "set"), tmp_path)
    assert isinstance(source, ImageSource)
    assert (source.size("train"), source.size("val"), source.num_classes) == (20, 6, 4)
    batch = source.read("train", np.array([13, 0, 9]), 0)
    assert torch.equal(batch.pixels, as_pixels([pixels_of(i) for i in (13, 0, 9)]))
    assert batch.labels.tolist() == [1, 0, 1] and batch.ids.tolist() == [13, 0, 9]
    assert torch.equal(source.read("val", np.array([2]), 0).pixels, as_pixels([pixels_of(102)]))


def test_images_are_decoded_once_and_copies_do_not_carry_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = dataset(tmp_path / "set")
    first = opened(root, tmp_path)
    before = first.read("train", np.arange(20), 0)
    assert len(pickle.dumps(first)) < 8 * 8 * 3 * 20 + 4000
    copy = pickle.loads(pickle.dumps(first))
    monkeypatch.setattr("varscale.data.decoded.decode_rgb", None)  # decoding again would fail
    for source in (opened(root, tmp_path), copy):
        assert torch.equal(source.read("train", np.arange(20), 0).pixels, before.pixels)
    assert not list((tmp_path / "cache").glob(".*"))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_do_not_change_the_batches(tmp_path: Path, workers: int) -> None:
    source = opened(dataset(tmp_path / "set"), tmp_path)
    ids = [b.ids.tolist() for b in train_loader(source, seed=1, batch=6, first_step=0, last_step=5, workers=workers)]
    fresh = [b.ids.tolist() for b in train_loader(source, seed=1, batch=6, first_step=0, last_step=5)]
    assert ids == fresh and sorted([i for row in ids for i in row][:20]) == list(range(20))


def test_without_validation_files_a_share_of_the_rows_is_held_out(tmp_path: Path) -> None:
    file = write(tmp_path / "all.parquet", [png(i) for i in range(100)], [0] * 100, ("image", "labels"))
    source = opened(file, tmp_path, val_share=0.2)
    train, val = (source.read(split, np.arange(source.size(split)), 0) for split in ("train", "val"))
    assert len(train.ids) + len(val.ids) == 100 and 8 < len(val.ids) < 34
    both = torch.cat([train.pixels, val.pixels]).flatten(1)
    assert len(torch.unique(both, dim=0)) == 100
    assert source.fingerprint != opened(file, tmp_path, val_share=0.3).fingerprint


def test_images_of_another_size_are_resized_and_cropped_to_the_middle(tmp_path: Path) -> None:
    wide = Image.fromarray(np.concatenate([pixels_of(1, 16), pixels_of(2, 16)], axis=1))
    stream = io.BytesIO()
    wide.save(stream, "PNG")
    file = write(tmp_path / "train.parquet", [stream.getvalue()] * 40, [0] * 40)
    batch = opened(file, tmp_path, resolution=8).read("train", np.array([0]), 0)
    expected = np.asarray(wide.resize((16, 8), Image.Resampling.LANCZOS))[:, 4:12]
    assert torch.equal(batch.pixels, as_pixels([expected]))


def test_flip_turns_some_training_images_and_no_others(tmp_path: Path) -> None:
    root = dataset(tmp_path / "set")
    plain, flipped = opened(root, tmp_path), opened(root, tmp_path, flip=True)
    before, after = (source.read("train", np.arange(20), 1).pixels for source in (plain, flipped))
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    turned = [torch.equal(a.flip(-1), b) for a, b in zip(before, after, strict=True)]
    assert 3 < sum(same) < 17 and sum(same) + sum(turned) == 20
    assert torch.equal(flipped.read("train", np.array([7]), 1).pixels[0], after[7])
    assert torch.equal(*(source.read("val", np.arange(6), 1).pixels for source in (plain, flipped)))
    assert plain.fingerprint != flipped.fingerprint


def test_broken_rows_are_named_counted_and_replaced_also_from_the_cache(tmp_path: Path) -> None:
    images: list[bytes | None] = [png(i) for i in range(20)]
    images[5], images[6], images[19] = png(5)[:-40], None, b"no image at all"
    write(tmp_path / "set" / "train.parquet", images, list(range(20)))
    write(tmp_path / "set" / "val.parquet", [png(50)], [0])
    for _ in range(2):  # the second time from the cache
        source = opened(tmp_path / "set", tmp_path, max_bad_share=0.2)
        batch = source.read("train", np.array([4, 5, 6, 7, 19]), 0)
        assert batch.ids.tolist() == batch.labels.tolist() == [4, 7, 7, 7, 0]
        assert torch.equal(batch.pixels, as_pixels([pixels_of(i) for i in (4, 7, 7, 7, 0)]))
        assert source.bad_files.bad == 3 and [name[-2:] for name in source.bad_files.reasons] == [":5", ":6", "19"]
    with pytest.raises(DataError, match=r"3 of 20 images are broken, more than max_bad_share = 0.1"):
        opened(tmp_path / "set", tmp_path, max_bad_share=0.1).read("train", np.array([0]), 0)


def test_too_many_broken_rows_leave_nothing_half_written(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.parquet", [png(1), b"no image", png(2)], [0, 1, 2])
    write(tmp_path / "set" / "val.parquet", [png(50)], [0])
    with pytest.raises(DataError, match=r"train.parquet:1 \(UnidentifiedImageError"):
        opened(tmp_path / "set", tmp_path).read("train", np.array([0]), 0)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_full_disk_or_a_damaged_cache_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = dataset(tmp_path / "set")
    opened(root, tmp_path).read("train", np.array([0]), 0)
    (stored,) = (tmp_path / "cache").glob("*.npy")
    stored.write_bytes(stored.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"is damaged.*delete it"):
        opened(root, tmp_path).read("train", np.array([0]), 0)
    stored.unlink()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("varscale.records.os.fsync", full)
    with pytest.raises(DataError, match=r"3840 bytes.*No space left on device.*data.cache_dir"):
        opened(root, tmp_path).read("train", np.array([0]), 0)
    assert not list((tmp_path / "cache").glob("*.npy")) and not list((tmp_path / "cache").glob(".*"))


def test_missing_data_names_the_path_the_variable_and_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VARSCALE_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
    message = r"cifar10 at .*absent.*VARSCALE_DATA \(not set\).*uoft-cs/cifar10.*pip install huggingface_hub"
    with pytest.raises(DataError, match=message):
        opened(tmp_path / "absent", tmp_path, hub_id="uoft-cs/cifar10", name="cifar10")
    with pytest.raises(DataError, match="absent"):
        opened(tmp_path / "absent", tmp_path)
    with pytest.raises(DataError, match=r"no .parquet file"):
        opened(tmp_path, tmp_path)


def test_the_hub_is_asked_where_the_path_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, asked = dataset(tmp_path / "set"), []

    def snapshot_download(hub_id: str, **settings: Any) -> str:
        asked.append((hub_id, settings["repo_type"], settings["revision"]))
        if hub_id == "org/unreachable":
            raise OSError("no network")
        return str(root)

    hub = ModuleType("huggingface_hub")
    hub.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert opened(tmp_path / "absent", tmp_path, hub_id="org/set", hub_revision="v1").size("train") == 20
    assert asked == [("org/set", "dataset", "v1")]
    with pytest.raises(DataError, match="org/unreachable, but the download failed: no network"):
        opened(tmp_path / "absent", tmp_path, hub_id="org/unreachable")


def test_files_that_are_no_data_set_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    write(file, [png(1)] * 30, [0] * 30, ("photo", "label"))
    with pytest.raises(DataError, match=r"no image column img or image.*columns are photo, label.*image_column"):
        opened(file, tmp_path).read("train", np.array([0]), 0)
    assert opened(file, tmp_path, image_column="photo").read("train", np.array([0]), 0).pixels.shape == (1, 3, 8, 8)
    with pytest.raises(DataError, match="no label column colour; its columns are photo, label"):
        opened(file, tmp_path, label_column="colour")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match=r"cannot be read as parquet.*fetch it again"):
        opened(file, tmp_path)
    for labels, message in ((["a"], "holds string"), ([None], "1 empty rows"), ([-1], "hidden labels")):
        write(file, [png(1)], labels if labels != [None] else pa.array([None], pa.int64()))
        with pytest.raises(DataError, match=message):
            opened(file, tmp_path)
    pq.write_table(pa.table({"img": [1, 2] * 20, "label": [0, 1] * 20}), file)
    with pytest.raises(DataError, match="holds int64; it must hold encoded images"):
        opened(file, tmp_path).read("train", np.array([0]), 0)
    write(tmp_path / "only" / "test-0.parquet", [png(1)], [0])
    with pytest.raises(DataError, match=r"validation files .* but no training file"):
        opened(tmp_path / "only", tmp_path)


def test_settings_and_indices_out_of_range_are_refused(tmp_path: Path) -> None:
    root = dataset(tmp_path / "set")
    for wrong in ({"resolution": 0}, {"val_share": 0.0}, {"max_bad_share": -1.0}, {"num_classes": 3}):
        with pytest.raises(DataError, match="must"):
            opened(root, tmp_path, **wrong)
    with pytest.raises(DataError, match=r"image 6 is outside the val split of parquet, whose index lies in \[0, 6\)"):
        opened(root, tmp_path).read("val", np.array([6]), 0)


def test_real_cifar10(test_data: Path, tmp_path: Path) -> None:
    source = opened(test_data / "cifar10", tmp_path, resolution=32, name="cifar10", max_bad_share=0.0)
    assert (source.size("train"), source.size("val"), source.num_classes) == (50_000, 10_000, 10)
    batch = source.read("val", np.arange(10_000), 0)
    assert batch.labels.bincount().tolist() == [1000] * 10
    # Published channel means of the test images: .4942 .4851 .4504 (of [0, 1]); re-encoding as JPEG moves them little.
    means = (batch.pixels.mean(dim=(0, 2, 3)) + 1) / 2
    assert torch.allclose(means, torch.tensor([0.4942, 0.4851, 0.4504]), atol=2e-3)


@pytest.mark.slow
def test_real_cifar10_trains(test_data: Path, tmp_path: Path) -> None:
    source = opened(test_data / "cifar10", tmp_path, resolution=32, name="cifar10", max_bad_share=0.0)
    ids = torch.cat([b.ids for b in train_loader(source, seed=0, batch=500, first_step=0, last_step=100, workers=2)])
    assert sorted(ids.tolist()) == list(range(50_000))
