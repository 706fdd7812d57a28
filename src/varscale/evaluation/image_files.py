"""Thousands of images streamed to disk: a folder of PNG files, or the ``.npz`` that evaluation scripts of FID read.

The npz holds ``arr_0``, uint8 (N, R, R, 3), as the evaluator of ADM takes it (arXiv:2105.05233;
openai/guided-diffusion, evaluations/). Images grow in a part file beside it and are copied into the archive at the end,
so that memory holds one batch and an interruption loses no more; for that moment the disk holds them twice.
``samples.json`` beside the images says what they are; images of other settings are never mixed in.
Shapes: N images, B of a batch, R side of the image in px.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from varscale.records import atomic_write, read_json, write_json

MANIFEST = "samples.json"
NPZ = "samples.npz"
PART = ".samples.part"
COPY_BYTES = 2**24
PNG_THREADS = 4  # compressing a PNG of 256 px takes about 10 ms and lets go of the interpreter


class ImageFilesError(ValueError):
    """Images that cannot be written here: names the folder, the reason and the remedy."""


class ImageFiles(Protocol):
    """Where numbered images go."""

    def missing(self) -> Sequence[int]:
        """Numbers of the images that are still to be written, ascending."""
        ...

    def write(self, numbers: Sequence[int], images_BRR3: np.ndarray) -> None:
        """Write the next missing images. Raises ``ImageFilesError`` if the disk does not take them."""
        ...

    def finish(self) -> Path:
        """After the last image: completes what there is, and returns it."""
        ...


def open_image_files(
    folder: Path, file_format: str, *, images: int, resolution: int, settings: Mapping[str, Any]
) -> ImageFiles:
    """A new folder of images, or one to continue.

    Args:
        file_format: ``png`` (000000.png and so on) or ``npz``.
        images: N.
        settings: plain values of all that decides the pixels.

    Raises:
        ImageFilesError: if the folder holds images of other settings, naming them, or an unknown format is asked for.
    """
    if file_format not in FORMATS:
        raise ImageFilesError(f"the format is {file_format!r}; it must be one of {', '.join(FORMATS)}")
    wanted = {"images": images, "format": file_format, "resolution": resolution, **settings}
    manifest = folder / MANIFEST
    if manifest.exists():
        found = read_json(manifest)
        different = [
            f"{key} {found.get(key)!r} there, {wanted.get(key)!r} now"
            for key in sorted(wanted.keys() | found.keys())
            if found.get(key) != wanted.get(key)
        ]
        if different:
            raise ImageFilesError(
                f"{folder} holds images drawn with other settings ({'; '.join(different)}); name another folder, or "
                "remove this one"
            )
    else:
        with _told(folder, 0, images):
            write_json(manifest, wanted)
    return FORMATS[file_format](folder, images, resolution)


class PngFiles:
    """One PNG file an image, named by its number. Implements ``ImageFiles``."""

    def __init__(self, folder: Path, images: int, resolution: int) -> None:
        self.folder, self.images = folder, images

    def missing(self) -> list[int]:
        there = {entry.name for entry in os.scandir(self.folder)}
        return [number for number in range(self.images) if self._name(number) not in there]

    def write(self, numbers: Sequence[int], images_BRR3: np.ndarray) -> None:
        with _told(self.folder, numbers[0], self.images), ThreadPoolExecutor(PNG_THREADS) as pool:
            list(pool.map(self._write_one, numbers, images_BRR3))

    def finish(self) -> Path:
        return self.folder

    def _name(self, number: int) -> str:
        return f"{number:06d}.png"

    def _write_one(self, number: int, image_RR3: np.ndarray) -> None:
        with atomic_write(self.folder / self._name(number)) as file:
            Image.fromarray(image_RR3).save(file, format="PNG")


class NpzFile:
    """One archive of all images, in the order of their numbers. Implements ``ImageFiles``."""

    def __init__(self, folder: Path, images: int, resolution: int) -> None:
        self.path, self.part = folder / NPZ, folder / PART
        self.shape = (images, resolution, resolution, 3)
        self.image_bytes = resolution * resolution * 3

    def missing(self) -> range:
        done = self.shape[0] if self.path.exists() else self._done()
        return range(done, self.shape[0])

    def write(self, numbers: Sequence[int], images_BRR3: np.ndarray) -> None:
        done = self._done()
        assert list(numbers) == list(range(done, done + len(numbers))), "images of an archive are written in order"
        with _told(self.part.parent, done, self.shape[0]), open(self.part, "r+b" if done else "wb") as file:
            file.seek(done * self.image_bytes)  # over what an interruption has left of an image
            file.write(images_BRR3.tobytes())
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> Path:
        if self.path.exists():
            return self.path
        images = self.shape[0]
        with (
            _told(self.path.parent, images, images),
            open(self.part, "rb") as part,
            atomic_write(self.path) as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
            archive.open("arr_0.npy", "w", force_zip64=True) as member,
        ):
            header = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
            np.lib.format.write_array_header_1_0(member, header)
            shutil.copyfileobj(part, member, COPY_BYTES)
        self.part.unlink()
        return self.path

    def _done(self) -> int:
        return self.part.stat().st_size // self.image_bytes if self.part.exists() else 0


FORMATS = {"png": PngFiles, "npz": NpzFile}


@contextmanager
def _told(folder: Path, done: int, images: int) -> Iterator[None]:
    """Turns a full disk, and any other refusal of the system, into an error with the remedy."""
    try:
        yield
    except OSError as error:
        raise ImageFilesError(
            f"cannot write to {folder} ({error.strerror or error}); {done:,} of {images:,} images are there. Make room "
            "or mend the folder, and type the same command again to continue"
        ) from error
