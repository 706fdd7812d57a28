"""Parquet in the image layout of the Hub: a file, a folder, or a data set of the Hub for users with a network.

Meant for data sets of small images: each image is decoded once, to R px, into a file in the user's cache that every
process maps. There is no random crop; large photographs belong into class folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from varscale.data.bad_files import BadFiles
from varscale.data.counter import uniform
from varscale.data.decoded import DecodedImages, default_cache_folder
from varscale.data.held_out import check_share, held_out_names
from varscale.data.parquet_files import ParquetGroup, split_files
from varscale.data.source import DataError, ImageBatch, Split, check_indices, check_resolution, fingerprint_of, to_batch
from varscale.data.whereabouts import download, missing_data

_RECIPE = 1  # changes when the same files would give other pixels


class ParquetImages:
    """Images in parquet files; an ``ImageSource``.

    Files named ``train-*`` train, and ``validation-*``, else ``val-*``, else ``test-*`` validate. Where no file is
    named so, ``val_share`` of the rows is held out, chosen by the hash of the row number. A broken image is named,
    counted and replaced by the next readable one of its split.

    Args:
        path: a parquet file or a folder with such files (at any depth).
        hub_id: a data set of the Hub, ``org/name``, downloaded with huggingface_hub where ``path`` does not exist.
        hub_revision: branch or commit of it, e.g. ``refs/convert/parquet``.
        resolution: R in pixels; images of another size are resized (shorter side, Lanczos) and cropped to the middle.
        name: name of the data set in messages and file names.
        num_classes: ``None`` takes the largest label + 1.
        image_column, label_column: ``None`` looks for the usual names.
        train_files, val_files: patterns of file names; the first that fits any file decides.
        val_share: share held out where there are no validation files.
        max_bad_share: see ``BadFiles``.
        flip: flip training images left to right with probability 1/2.
        seed: seed of the flips.
        cache_dir: folder of the decoded images; ``None`` is ``varscale/images`` in the user's cache folder.

    Raises:
        DataError: if the files are missing, unreadable or lack the columns, or a setting is out of its range.
    """

    def __init__(
        self,
        path: str | None,
        *,
        hub_id: str | None = None,
        hub_revision: str | None = None,
        resolution: int = 32,
        name: str = "parquet",
        num_classes: int | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        train_files: Sequence[str] = ("train*",),
        val_files: Sequence[str] = ("validation*", "val*", "test*"),
        val_share: float = 0.1,
        max_bad_share: float = 0.01,
        flip: bool = False,
        seed: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        self.name = name
        self.resolution = check_resolution(resolution)
        self.flip = flip
        self.seed = seed
        self.val_share = val_share
        self.cache_dir = default_cache_folder() if cache_dir is None else Path(cache_dir).expanduser()
        self.bad_files = BadFiles(max_bad_share)
        check_share(val_share)
        root = Path(path).expanduser() if path is not None else Path(hub_id or "")
        if path is None or not root.exists():
            if hub_id is None:
                raise missing_data(name, root)
            root = download(name, root, hub_id, hub_revision)

        train, val = split_files(root, train_files, val_files)
        self._groups = {"train": ParquetGroup(tuple(train), image_column, label_column)}
        if val:
            self._groups["val"] = ParquetGroup(tuple(val), image_column, label_column)
        self._labels = {split: group.labels() for split, group in self._groups.items()}
        largest = int(max(labels.max() for labels in self._labels.values()))
        if num_classes is not None and largest >= num_classes:
            raise DataError(
                f"{root} has the label {largest}, but num_classes is {num_classes}; labels must lie below it"
            )
        self.num_classes = largest + 1 if num_classes is None else num_classes
        self._rows = self._split_rows(root)
        self._open: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the memory maps, which would be copied as a whole; a worker opens its own."""
        return {**self.__dict__, "_open": {}}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the settings and of the name, size and footer of every file."""
        return fingerprint_of(
            source="parquet",
            recipe=_RECIPE,
            resolution=self.resolution,
            files={split: group.content_hash() for split, group in self._groups.items()},
            columns=[self._groups["train"].image, self._groups["train"].label],
            val_share=None if "val" in self._groups else self.val_share,
            flip=self.flip,
            seed=self.seed,
        )

    def size(self, split: Split) -> int:
        """Rows of the split, broken images included."""
        return len(self._rows[split])

    def read(self, split: Split, indices: np.ndarray, draw: np.ndarray | int) -> ImageBatch:
        """Read decoded images. The first read of a split decodes it, unless the cache folder has it already."""
        asked = check_indices(self.name, split, indices, self.size(split))
        images, stand_ins = self._opened(split)
        ids = stand_ins[asked]
        rows = self._rows[split][ids]
        batch = images[rows]
        if self.flip and split == "train":
            turned = uniform(self.seed, draw, ids) < 0.5
            batch[turned] = batch[turned, :, ::-1]
        labels = self._labels[split if split in self._groups else "train"][rows]
        return to_batch(batch.transpose(0, 3, 1, 2), labels, ids)

    def _split_rows(self, root: Path) -> dict[str, np.ndarray]:
        if "val" in self._groups:
            return {split: np.arange(len(labels)) for split, labels in self._labels.items()}
        count = len(self._labels["train"])
        held_out = held_out_names((str(row).encode() for row in range(count)), self.val_share)
        rows = {"train": np.flatnonzero(~held_out), "val": np.flatnonzero(held_out)}
        for split, chosen in rows.items():
            if not len(chosen):
                raise DataError(
                    f"{root} has {count} rows and no validation files; holding out val_share = {self.val_share:g} "
                    f"leaves no {split} images. Change val_share or add images"
                )
        return rows

    def _opened(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """The images of the files that hold the split, and for each of its places the one that stands in for it."""
        if split not in self._open:
            group = self._groups.get(split, self._groups["train"])
            key = fingerprint_of(
                recipe=_RECIPE, resolution=self.resolution, files=group.content_hash(), column=group.image
            )
            count = len(self._labels[split if split in self._groups else "train"])
            store = DecodedImages(self.cache_dir / f"{self.name}-{key}.npy", count, self.resolution)
            images, broken = store.open(group.encoded_images(), self.bad_files, f"decoding {self.name}")
            whole = ~np.isin(self._rows[split], broken)
            if not whole.any():
                raise DataError(f"none of the {len(whole)} {split} images of {self.name} can be decoded")
            places = np.flatnonzero(whole)
            stand_ins = places[np.searchsorted(places, np.arange(len(whole))) % len(places)]
            self._open[split] = images, stand_ins
        return self._open[split]
