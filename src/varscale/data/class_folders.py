"""Class folders, the layout of ImageNet: one folder a class, one file an image.

Source of the pixels: VAR, arXiv:2404.02905 (see ``decode``): shorter side to round(1.125 R), random crop R to train,
centre crop to validate. Flip is off by default, as there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from varscale.data.bad_files import BadFiles
from varscale.data.counter import uniform
from varscale.data.decode import BROKEN_IMAGE, centre_crop, crop_at, decode_rgb
from varscale.data.held_out import check_share, held_out_names
from varscale.data.source import DataError, ImageBatch, Split, check_indices, check_resolution, fingerprint_of, to_batch
from varscale.data.whereabouts import missing_data

EXTENSIONS = (".jpeg", ".jpg", ".png", ".webp", ".bmp")
_TRAIN, _VALIDATION = "train", ("val", "validation")
_RECIPE = 1  # changes when the same files would give other pixels
_ACROSS, _DOWN, _FLIP = range(3)


@dataclass(frozen=True)
class FileList:
    """The files of one split, sorted: ``paths`` (bytes, relative to the root) and ``labels``, one row each.

    Arrays, not lists of strings: a million Python objects would be copied into every worker.
    """

    paths: np.ndarray
    labels: np.ndarray

    def take(self, chosen: np.ndarray) -> FileList:
        """The files where ``chosen`` is true."""
        return FileList(self.paths[chosen], self.labels[chosen])


class ClassFolders:
    """Images in class folders; an ``ImageSource``.

    Either ``train/<class>/...`` with ``val/<class>/...`` (or ``validation``), or one tree ``<class>/...``. Without a
    validation folder ``val_share`` of the images is held out, chosen by the hash of the file name, so that moving the
    tree or adding files changes the side of no image. Classes are numbered in the sorted order of their folders. A
    file that cannot be decoded is named, counted and replaced by the next readable one of its split.

    Args:
        path: the root of the tree.
        resolution: R, side of the images in pixels.
        name: name of the data set in messages.
        val_share: share held out where there is no validation folder.
        max_bad_share: see ``BadFiles``.
        flip: flip training images left to right with probability 1/2.
        seed: seed of the crops and flips.
        num_classes: how many class folders there should be; None takes what is there. Planning needs it stated.
        extensions: endings of image files, in lower case.

    Raises:
        DataError: if the folder is missing or holds no images, or a setting is out of its range.
    """

    def __init__(
        self,
        path: str,
        *,
        resolution: int = 256,
        name: str = "class_folders",
        val_share: float = 0.1,
        max_bad_share: float = 0.01,
        flip: bool = False,
        seed: int = 0,
        num_classes: int | None = None,
        extensions: Sequence[str] = EXTENSIONS,
    ) -> None:
        self.name = name
        self.resolution = check_resolution(resolution)
        self.path = Path(path).expanduser()
        self.flip = flip
        self.seed = seed
        self.bad_files = BadFiles(max_bad_share)
        check_share(val_share)
        if not self.path.is_dir():
            raise missing_data(name, self.path)

        has_splits = bool(_class_names(self.path / _TRAIN))  # and is not just a class of that name
        train_root = self.path / _TRAIN if has_splits else self.path
        val_root = next((self.path / v for v in _VALIDATION if has_splits and (self.path / v).is_dir()), None)
        self.classes = _class_names(train_root)
        if not self.classes:
            raise DataError(f"{train_root} has no class folders; lay the images out as {train_root}/<class>/<image>")
        if num_classes is not None and num_classes != len(self.classes):
            raise DataError(
                f"{train_root} has {len(self.classes)} class folders, but num_classes is {num_classes}; complete the "
                f"data or set num_classes={len(self.classes)}"
            )
        listing = hashlib.sha256()
        train = self._listed(train_root, tuple(extensions), listing)
        if val_root is not None:
            self._check_classes(val_root)
            self._files = {"train": train, "val": self._listed(val_root, tuple(extensions), listing)}
        else:
            held_out = held_out_names((os.path.basename(p) for p in train.paths.tolist()), val_share)
            self._files = {"train": train.take(~held_out), "val": train.take(held_out)}
            for split, files in self._files.items():
                if not len(files.paths):
                    raise DataError(
                        f"{self.path} has {len(train.paths)} images and no validation folder; holding out val_share = "
                        f"{val_share:g} by file name leaves no {split} images. Change val_share or add images"
                    )
        self.fingerprint_parts = {"files": listing.hexdigest(), "val_share": None if val_root else val_share}

    @property
    def num_classes(self) -> int:
        """Folders of the training tree."""
        return len(self.classes)

    @property
    def fingerprint(self) -> str:
        """Hash of the settings and of the relative path and size of every file."""
        return fingerprint_of(
            source="class_folders",
            recipe=_RECIPE,
            resolution=self.resolution,
            flip=self.flip,
            seed=self.seed,
            **self.fingerprint_parts,
        )

    def size(self, split: Split) -> int:
        """Files of the split, broken ones included."""
        return len(self._files[split].paths)

    def read(self, split: Split, indices: np.ndarray, draw: np.ndarray | int) -> ImageBatch:
        """Decode, resize and crop. Raises ``DataError`` when more than ``max_bad_share`` of the files is broken."""
        asked = check_indices(self.name, split, indices, self.size(split))
        images = np.empty((len(asked), self.resolution, self.resolution, 3), dtype=np.uint8)
        ids = asked.copy()
        for row, (index, number) in enumerate(zip(asked, np.broadcast_to(draw, asked.shape), strict=True)):
            images[row], ids[row] = self._readable(split, int(index), int(number))
        return to_batch(images.transpose(0, 3, 1, 2), self._files[split].labels[ids], ids)

    def _readable(self, split: Split, index: int, draw: int) -> tuple[np.ndarray, int]:
        """The image at ``index``, or at the next index whose file is whole, and that index."""
        size = self.size(split)
        for candidate in ((index + skipped) % size for skipped in range(size)):
            file = os.path.join(self.path, os.fsdecode(self._files[split].paths[candidate]))
            self.bad_files.count_read()
            try:
                return self._square(file, split, candidate, draw), candidate
            except BROKEN_IMAGE as error:
                self.bad_files.count_bad(file, f"{type(error).__name__}: {error}", size)
        raise DataError(f"none of the {size} {split} images below {self.path} can be decoded")

    def _square(self, file: str, split: Split, index: int, draw: int) -> np.ndarray:
        image = decode_rgb(file, round(1.125 * self.resolution))
        if split == "val":
            return centre_crop(image, self.resolution)
        across, down, turn = uniform(self.seed, draw, index, np.array([_ACROSS, _DOWN, _FLIP]))
        square = crop_at(image, across, down, self.resolution)
        return square[:, ::-1] if self.flip and turn < 0.5 else square

    def _check_classes(self, val_root: Path) -> None:
        unknown = sorted(set(_class_names(val_root)) - set(self.classes))
        if unknown:
            raise DataError(
                f"{val_root} has {len(unknown)} class folders that training lacks, the first {unknown[0]!r}; "
                "the class folders of both splits must have the same names"
            )

    def _listed(self, root: Path, extensions: tuple[str, ...], listing: hashlib._Hash) -> FileList:
        """Every image below the class folders of ``root``; its relative path and size go into ``listing``."""
        paths: list[bytes] = []
        labels: list[int] = []
        # delay: a small tree is listed before a bar could be read
        for label, folder in enumerate(tqdm(self.classes, desc=f"listing {root}", unit="class", delay=2)):
            if not (root / folder).is_dir():
                continue  # a class without validation images
            for entry in sorted(_files_below(root / folder), key=lambda e: e.path):
                if entry.name.lower().endswith(extensions):
                    relative = os.fsencode(os.path.relpath(entry.path, self.path).replace(os.sep, "/"))
                    listing.update(b"%s\0%d\n" % (relative, entry.stat().st_size))
                    paths.append(relative)
                    labels.append(label)
        if not paths:
            raise DataError(
                f"{root} has {len(self.classes)} folders but no image in them; an image is a file below a class folder "
                f"that ends in {', '.join(extensions)}"
            )
        return FileList(np.array(paths), np.array(labels, dtype=np.int64))


def _class_names(root: Path) -> list[str]:
    """The sorted folders of ``root``, none if it is no folder."""
    if not root.is_dir():
        return []
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _files_below(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Files at any depth; names with a leading dot are not images (some systems leave such files behind)."""
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in visible:
        if entry.is_dir():
            yield from _files_below(entry.path)
        else:
            yield entry
