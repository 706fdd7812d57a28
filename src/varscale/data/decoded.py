"""Decoded images on disk: small images are decoded once and mapped into memory by every process after that."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from tqdm import tqdm

from varscale.data.bad_files import BadFiles
from varscale.data.decode import BROKEN_IMAGE, centre_crop, decode_rgb
from varscale.data.source import DataError
from varscale.records import atomic_write, read_json, write_json


def default_cache_folder() -> Path:
    """``varscale/images`` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "varscale" / "images"


@dataclass(frozen=True)
class DecodedImages:
    """Square images, uint8 (rows, R, R, 3), in one ``.npy`` file; the broken rows, with reasons, in a JSON beside it.

    The shorter side is resized to R, then the middle is cropped. Broken rows are zero in the file: ``broken`` says
    which rows must not be used.

    Args:
        path: the ``.npy`` file; its name carries the hash of what it was decoded from.
        rows: images it must hold.
        resolution: R.
    """

    path: Path
    rows: int
    resolution: int

    def open(
        self, encoded: Iterable[tuple[str, bytes]], bad_files: BadFiles, title: str
    ) -> tuple[np.ndarray, list[int]]:
        """Map the images, after decoding them if the file is not there yet.

        Returns:
            ``(images, broken)``: a read-only memory map and the numbers of the broken rows.

        Raises:
            DataError: if too many rows are broken, or the file cannot be written or is damaged.
        """
        broken_file = self.path.with_suffix(".broken.json")
        if self.path.exists():
            broken = read_json(broken_file)
            bad_files.read += self.rows
            for name, reason in broken.values():
                bad_files.count_bad(name, reason, self.rows)
        else:
            broken = {}  # JSON's form: {"row": [name, reason]}
            try:
                with atomic_write(self.path) as file:
                    header = {"descr": "|u1", "fortran_order": False, "shape": self._shape}
                    np.lib.format.write_array_header_1_0(file, header)
                    for row, (name, image) in enumerate(self._decode(encoded, title)):
                        bad_files.count_read()
                        if isinstance(image, BaseException):
                            reason = f"{type(image).__name__}: {image}"
                            broken[str(row)] = name, reason
                            bad_files.count_bad(name, reason, self.rows)
                            image = np.zeros(self._shape[1:], dtype=np.uint8)
                        file.write(image.tobytes())
                    # First, so that an .npy file that is there has its list of broken rows.
                    write_json(broken_file, broken)
            except OSError as error:
                raise DataError(
                    f"cannot write {np.prod(self._shape, dtype=np.int64)} bytes of decoded images to {self.path} "
                    f"({error}); free space there, or set data.cache_dir to another folder"
                ) from error
        try:
            images = np.load(self.path, mmap_mode="r")
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{self.path} is damaged ({error}); delete it, and it will be decoded again") from error
        if images.shape != self._shape:
            raise DataError(f"{self.path} holds {images.shape}, not {self._shape}; delete it, to decode it again")
        return images, sorted(int(row) for row in broken)

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        return self.rows, self.resolution, self.resolution, 3

    def _decode(
        self, encoded: Iterable[tuple[str, bytes]], title: str
    ) -> Iterator[tuple[str, np.ndarray | BaseException]]:
        """``(name, image or what is wrong with it)`` in order. One thread: two took twice as long at 32 px."""
        for name, data in tqdm(encoded, total=self.rows, desc=title, unit="image", delay=1):
            image: np.ndarray | BaseException
            try:
                image = centre_crop(decode_rgb(BytesIO(data), self.resolution), self.resolution)
            except BROKEN_IMAGE as error:
                image = error
            yield name, image
