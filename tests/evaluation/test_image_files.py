"""Images streamed to disk: whole, continued after an interruption, never mixed, and a disk that is full."""

from __future__ import annotations

import errno
import resource
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image

from varscale.evaluation import image_files
from varscale.evaluation.image_files import MANIFEST, NPZ, PART, ImageFiles, ImageFilesError, open_image_files
from varscale.records import atomic_write

IMAGES, R = 11, 16
SETTINGS = {"seed": 0, "sampler": {"guidance": 1.5, "top_k": 900}}


def pixels(numbers: list[int]) -> np.ndarray:
    return np.stack([np.random.default_rng(n).integers(0, 256, (R, R, 3), dtype=np.uint8) for n in numbers])


def opened(folder: Path, file_format: str, **changes: object) -> ImageFiles:
    return open_image_files(folder, file_format, images=IMAGES, resolution=R, settings={**SETTINGS, **changes})


def fill(files: ImageFiles, batch: int = 4, stop_after: int = IMAGES) -> None:
    missing = list(files.missing())
    for start in range(0, min(len(missing), stop_after), batch):
        numbers = missing[start : start + batch]
        files.write(numbers, pixels(numbers))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read(path: Path) -> np.ndarray:
    if path.is_file():
        return np.load(path)["arr_0"]
    return np.stack([np.asarray(Image.open(path / f"{n:06d}.png")) for n in range(IMAGES)])


@pytest.mark.parametrize("file_format", ["png", "npz"])
def test_images_come_back(tmp_path: Path, file_format: str) -> None:
    files = opened(tmp_path, file_format)
    fill(files)
    result = files.finish()
    stored = read(result)
    assert stored.dtype == np.uint8 and np.array_equal(stored, pixels(list(range(IMAGES))))
    assert not list(opened(tmp_path, file_format).missing())
    assert opened(tmp_path, file_format).finish() == result
    assert len(contents(tmp_path)) == (IMAGES if file_format == "png" else 1) + 1  # the manifest, nothing left over


def test_the_archive_is_what_numpy_would_write(tmp_path: Path) -> None:
    """The layout that evaluation scripts read: one uncompressed arr_0.npy, which they may also read in parts."""
    files = opened(tmp_path, "npz")
    fill(files)
    files.finish()
    np.savez(tmp_path / "numpy.npz", pixels(list(range(IMAGES))))
    ours, numpys = (zipfile.ZipFile(tmp_path / name) for name in (NPZ, "numpy.npz"))
    assert ours.namelist() == numpys.namelist() == ["arr_0.npy"]
    assert ours.read("arr_0.npy") == numpys.read("arr_0.npy")
    assert ours.infolist()[0].compress_type == zipfile.ZIP_STORED


@pytest.mark.parametrize("file_format", ["png", "npz"])
def test_an_interruption_is_continued(tmp_path: Path, file_format: str) -> None:
    fill(opened(tmp_path / "a", file_format), stop_after=8)
    if file_format == "npz":
        with open(tmp_path / "a" / PART, "ab") as part:  # killed in the middle of an image
            part.write(b"\x07" * 100)
    else:
        (tmp_path / "a" / "000003.png").unlink()
    again = opened(tmp_path / "a", file_format)
    assert list(again.missing()) == ([3, 8, 9, 10] if file_format == "png" else [8, 9, 10])
    fill(again)
    again.finish()
    whole = opened(tmp_path / "b", file_format)
    fill(whole, batch=3)
    whole.finish()
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    opened(tmp_path, "png")
    with pytest.raises(ImageFilesError, match=r"other settings \(seed 0 there, 1 now\); name another folder"):
        opened(tmp_path, "png", seed=1)
    with pytest.raises(ImageFilesError, match=r"format 'png' there, 'npz' now"):
        opened(tmp_path, "npz")
    with pytest.raises(ImageFilesError, match="images 11 there, 12 now"):
        open_image_files(tmp_path, "png", images=12, resolution=R, settings=SETTINGS)
    with pytest.raises(ImageFilesError, match=r"format is 'gif'; it must be one of png, npz"):
        opened(tmp_path / "new", "gif")
    assert list(contents(tmp_path)) == [MANIFEST]


@contextmanager
def full_after(file_bytes: int) -> Iterator[None]:
    """No file may grow beyond this: the kernel writes what fits and refuses the rest, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_while_an_archive_grows(tmp_path: Path) -> None:
    files = opened(tmp_path, "npz")
    image_bytes = R * R * 3
    with full_after(6 * image_bytes + 100), pytest.raises(ImageFilesError, match="4 of 11 images are there"):
        fill(files)
    assert not (tmp_path / NPZ).exists()
    assert list(opened(tmp_path, "npz").missing()) == [6, 7, 8, 9, 10]
    fill(files)
    # Room for the part file, not for the archive beside it.
    with full_after(IMAGES * image_bytes), pytest.raises(ImageFilesError, match="11 of 11 images are there"):
        files.finish()
    assert sorted(contents(tmp_path)) == [PART, MANIFEST]
    assert np.array_equal(read(opened(tmp_path, "npz").finish()), pixels(list(range(IMAGES))))


def test_a_full_disk_while_pngs_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def full(path: Path) -> Iterator[IO[bytes]]:
        with atomic_write(path) as file:
            yield file
            if path.name >= "000006.png":
                raise OSError(errno.ENOSPC, "No space left on device")

    files = opened(tmp_path, "png")
    with monkeypatch.context() as patched:
        patched.setattr(image_files, "atomic_write", full)
        with pytest.raises(ImageFilesError, match=r"No space left on device\); 6 of 11 images are there"):
            fill(files, batch=3)
    assert sorted(contents(tmp_path)) == [f"{n:06d}.png" for n in range(6)] + [MANIFEST]
    fill(files)
    assert np.array_equal(read(files.finish()), pixels(list(range(IMAGES))))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ImageFilesError, match="cannot write to"):
        opened(tmp_path / "file" / "images", "png")
