"""Class folders: VAR's crops, a held-out share by name, broken files replaced and counted."""

from __future__ import annotations

import io
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from varscale.data.class_folders import ClassFolders
from varscale.data.loader import train_loader
from varscale.data.source import DataError, ImageSource


def picture(number: int, width: int = 40, height: int = 30) -> Image.Image:
    """An image whose top left pixel is its number, and whose other pixels are noise."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[0, 0] = number
    return Image.fromarray(pixels)


def tree(root: Path, classes: int = 3, images: int = 8) -> Path:
    """``root/c<k>/<k>_<i>.png``."""
    for c in range(classes):
        (root / f"c{c}").mkdir(parents=True)
        for i in range(images):
            picture(c * images + i).save(root / f"c{c}" / f"{c}_{i}.png")
    return root


def test_train_and_val_folders_are_read_with_sorted_classes(tmp_path: Path) -> None:
    tree(tmp_path / "train")
    tree(tmp_path / "val", images=2)
    (tmp_path / "train" / "c0" / ".DS_Store").write_text("not an image")
    (tmp_path / "train" / "c0" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "c1" / "images").mkdir()
    (tmp_path / "train" / "c1" / "1_7.png").rename(tmp_path / "train" / "c1" / "images" / "1_7.PNG")
    source = ClassFolders(str(tmp_path), resolution=16)
    assert isinstance(source, ImageSource)
    assert (source.size("train"), source.size("val"), source.num_classes) == (24, 6, 3)
    batch = source.read("val", np.arange(6), 0)
    assert batch.pixels.shape == (6, 3, 16, 16) and batch.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert source.read("train", np.arange(24), 0).labels.bincount().tolist() == [8, 8, 8]


def test_validation_pixels_are_lanczos_to_nine_eighths_and_the_middle(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        picture(1, width=50, height=33).save(tmp_path / split / "a" / "x.png")
    batch = ClassFolders(str(tmp_path), resolution=16).read("val", np.array([0]), 0)
    # Shorter side to round(18) with the longer cut to whole pixels, 27; the crop's left edge at round(5.5) = 6.
    resized = np.asarray(picture(1, width=50, height=33).resize((27, 18), Image.Resampling.LANCZOS), dtype=np.float32)
    expected = torch.from_numpy(resized[1:17, 6:22].transpose(2, 0, 1)) / 255
    assert torch.equal(batch.pixels[0], expected + expected - 1)


def test_random_crops_are_a_pure_function_of_seed_draw_and_index(tmp_path: Path) -> None:
    source = ClassFolders(str(tree(tmp_path)), resolution=16)
    together = source.read("train", np.array([3, 1, 4]), np.array([0, 7, 2]))
    alone = pickle.loads(pickle.dumps(source)).read("train", np.array([1]), 7)
    assert torch.equal(alone.pixels[0], together.pixels[1])
    crops = torch.cat([source.read("train", np.array([1]), draw).pixels for draw in range(40)])
    assert len(torch.unique(crops.flatten(1), dim=0)) > 10  # of 24 x 18 px there are 9 x 3 crops of 16 px
    other = ClassFolders(str(tmp_path), resolution=16, seed=1)
    assert other.fingerprint != source.fingerprint
    assert not torch.equal(torch.cat([other.read("train", np.array([1]), d).pixels for d in range(40)]), crops)
    val = source.read("val", np.array([0]), 0)
    assert torch.equal(val.pixels, source.read("val", np.array([0]), 5).pixels)


def test_flip_turns_half_of_the_training_images(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        picture(1, 18, 18).resize((18, 18)).save(tmp_path / split / "a" / "x.png")
    plain, flipped = (ClassFolders(str(tmp_path), resolution=16, flip=flip) for flip in (False, True))
    turned = 0
    for draw in range(60):
        before, after = (source.read("train", np.array([0]), draw).pixels for source in (plain, flipped))
        assert torch.equal(after, before) or torch.equal(after, before.flip(-1))
        turned += torch.equal(after, before.flip(-1))
    assert 15 < turned < 45
    assert torch.equal(*(source.read("val", np.array([0]), 0).pixels for source in (plain, flipped)))


def test_held_out_share_follows_the_file_name_alone(tmp_path: Path) -> None:
    source = ClassFolders(str(tree(tmp_path / "a", classes=10, images=20)), resolution=8, val_share=0.25)
    assert source.size("train") + source.size("val") == 200 and 25 < source.size("val") < 75
    held_out = {Path(p.decode()).name for p in source._files["val"].paths.tolist()}
    (tmp_path / "a" / "c0").rename(tmp_path / "a" / "renamed")
    (tmp_path / "a" / "c1" / "1_0.png").unlink()
    moved = ClassFolders(str(tmp_path / "a"), resolution=8, val_share=0.25)
    assert {Path(p.decode()).name for p in moved._files["val"].paths.tolist()} == held_out - {"1_0.png"}
    assert moved.fingerprint != source.fingerprint


def test_fingerprint_does_not_depend_on_where_the_tree_lies(tmp_path: Path) -> None:
    a, b = (ClassFolders(str(tree(tmp_path / where)), resolution=16) for where in ("a", "b/c"))
    assert a.fingerprint == b.fingerprint != ClassFolders(str(tmp_path / "a"), resolution=8).fingerprint


def spoil(root: Path, *numbers: int) -> list[Path]:
    """Cut one file short for each number, and overwrite every second of them with text."""
    files = sorted(root.rglob("*.png"))
    for place, number in enumerate(numbers):
        data = files[number].read_bytes()
        files[number].write_bytes(data[: len(data) // 2] if place % 2 == 0 else b"no image at all")
    return [files[number] for number in numbers]


def test_broken_files_are_named_counted_and_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tree(tmp_path, images=20)
    whole = ClassFolders(str(root), resolution=8, val_share=0.2)
    names = [p.decode() for p in whole._files["train"].paths.tolist()]
    after = whole.read("train", np.array([6]), 3)
    for name, data in zip(names[4:6], (b"no image at all", None), strict=True):
        (root / name).write_bytes(data or (root / name).read_bytes()[:900])
    source = ClassFolders(str(root), resolution=8, val_share=0.2, max_bad_share=0.2)
    with caplog.at_level(logging.WARNING):
        batch = source.read("train", np.array([3, 4, 5]), 3)
        source.read("train", np.array([4]), 8)
    assert batch.ids.tolist() == [3, 6, 6]
    assert torch.equal(batch.pixels[1], after.pixels[0]) and torch.equal(batch.pixels[2], after.pixels[0])
    assert sorted(source.bad_files.reasons) == sorted(str(root / name) for name in names[4:6])
    assert (source.bad_files.bad, source.bad_files.read) == (5, 9)  # opened: 3; 4 5 6; 5 6; then 4 5 6
    assert [record.getMessage().split()[1] for record in caplog.records] == [str(root / name) for name in names[4:6]]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_broken_files_stop_the_run(tmp_path: Path, workers: int) -> None:
    root = tree(tmp_path)
    spoil(root, 2, 9, 15, 21)
    source = ClassFolders(str(root), resolution=8, max_bad_share=0.05)
    with pytest.raises(DataError, match=r"more than max_bad_share = 0.05") as error:
        list(train_loader(source, seed=0, batch=4, first_step=0, last_step=20, workers=workers))
    assert str(root) in str(error.value)


def test_a_rare_broken_file_does_not_stop_a_run_that_has_just_begun(tmp_path: Path) -> None:
    root = tree(tmp_path, classes=2, images=60)
    spoil(root, 0)
    source = ClassFolders(str(root), resolution=8)  # the default of 1 % allows one of about 108
    batches = list(train_loader(source, seed=0, batch=10, first_step=0, last_step=11))
    assert source.bad_files.bad >= 1 and sum(len(batch.ids) for batch in batches) == 110


def test_a_split_of_nothing_but_broken_files_ends(tmp_path: Path) -> None:
    root = tree(tmp_path)
    spoil(root, *range(24))
    with pytest.raises(DataError, match=r"none of the .* train images"):
        ClassFolders(str(root), resolution=8, max_bad_share=1.0).read("train", np.array([0]), 0)


def test_a_missing_or_empty_folder_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VARSCALE_DATA", "/somewhere")
    with pytest.raises(DataError, match=r"imagenet at .*absent.*VARSCALE_DATA \(now '/somewhere'\).*data.path"):
        ClassFolders(str(tmp_path / "absent"), name="imagenet")
    with pytest.raises(DataError, match="no class folders"):
        ClassFolders(str(tmp_path))
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=r"1 folders but no image.*\.jpeg"):
        ClassFolders(str(tmp_path))
    picture(0).save(tmp_path / "a" / "x.png")
    with pytest.raises(DataError, match=r"leaves no (train|val) images"):
        ClassFolders(str(tmp_path))


def test_validation_classes_must_be_those_of_training(tmp_path: Path) -> None:
    tree(tmp_path / "train")
    tree(tmp_path / "validation", classes=4)
    with pytest.raises(DataError, match="'c3'"):
        ClassFolders(str(tmp_path))


@pytest.mark.parametrize("wrong", [{"resolution": 0}, {"val_share": 0.0}, {"val_share": 1.0}, {"max_bad_share": 1.5}])
def test_settings_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(DataError, match="must"):
        ClassFolders(str(tree(tmp_path)), **wrong)  # type: ignore[arg-type]


def test_an_index_outside_the_split_is_refused(tmp_path: Path) -> None:
    source = ClassFolders(str(tree(tmp_path)), resolution=8)
    with pytest.raises(DataError, match="is outside the train split"):
        source.read("train", np.array([24]), 0)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_images_of_other_colour_modes_are_read_as_rgb(tmp_path: Path, mode: str) -> None:
    image = picture(3).convert("RGBA" if mode == "LA" else mode).convert(mode)
    stream = io.BytesIO()
    options = {"transparency": bytes(range(200))} if mode == "P" else {}
    image.save(stream, "JPEG" if mode == "CMYK" else "PNG", **options)
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "x.png").write_bytes(stream.getvalue())
    source = ClassFolders(str(tmp_path), resolution=8, max_bad_share=0.0)
    assert source.read("val", np.array([0]), 0).pixels.std() > 0.1


@pytest.mark.parametrize(("resolution", "workers"), [(256, 0), (128, 2)])
def test_real_imagenet_images(test_data: Path, resolution: int, workers: int) -> None:
    source = ClassFolders(str(test_data / "imagenet-1k-samples"), resolution=resolution, max_bad_share=0.0)
    assert source.num_classes == 1000 and source.size("train") + source.size("val") == 1000
    assert 70 < source.size("val") < 130
    loader = train_loader(source, seed=0, batch=8, first_step=0, last_step=3, workers=workers)
    pixels = torch.cat([batch.pixels for batch in loader])
    assert pixels.shape == (24, 3, resolution, resolution)
    assert pixels.min() >= -1 and pixels.max() <= 1 and 0.3 < pixels.std() < 0.8
    assert len(torch.unique(pixels.flatten(1), dim=0)) == 24
