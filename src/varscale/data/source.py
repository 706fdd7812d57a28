"""ImageSource: what a data set offers to everything above it, and the batch it hands out.

Shapes: B batch, R resolution (side of the square image in pixels).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

Split = Literal["train", "val"]


class DataError(ValueError):
    """Data that cannot be used: names the path or value, the limit and the remedy."""


@dataclass(frozen=True)
class ImageBatch:
    """B images with their labels.

    ``pixels``: (B, 3, R, R) float32 in [-1, 1]; ``labels``: (B,) int64; ``ids``: (B,) int64, the number of each image
    in its split (where a broken image was replaced, the number of the image that stands in for it).
    """

    pixels: Tensor
    labels: Tensor
    ids: Tensor

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> ImageBatch:
        """The batch on a device; Lightning calls this."""
        moved = (t.to(device, non_blocking=non_blocking) for t in (self.pixels, self.labels, self.ids))
        return ImageBatch(*moved)

    def pin_memory(self) -> ImageBatch:
        """The batch in page-locked memory; the DataLoader calls this."""
        return ImageBatch(self.pixels.pin_memory(), self.labels.pin_memory(), self.ids.pin_memory())


@runtime_checkable
class ImageSource(Protocol):
    """A labelled image data set with a training and a validation split.

    An implementation is picklable (workers get a copy), and what it returns for an index never depends on the batch
    in which the index is asked for.
    """

    name: str
    resolution: int
    num_classes: int

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that change when the pixels, the labels or the split change."""
        ...

    def size(self, split: Split) -> int | None:
        """Images of the split; ``None`` means infinite."""
        ...

    def read(self, split: Split, indices: np.ndarray, draw: np.ndarray | int) -> ImageBatch:
        """The images at ``indices`` (B,), integers in [0, size).

        ``draw``, an integer or (B,), numbers the augmentation stream, usually the epoch: a random crop of the training
        split is a pure function of (the source's seed, draw, index). Validation ignores it.

        Raises:
            DataError: for an index outside the split, or when too much of the data is broken.
        """
        ...


def check_resolution(resolution: int) -> int:
    """The resolution if it is at least 1 px; raises ``DataError`` otherwise."""
    if resolution < 1:
        raise DataError(f"resolution is {resolution} px; it must be at least 1")
    return resolution


def check_indices(name: str, split: Split, indices: np.ndarray, size: int | None) -> np.ndarray:
    """``indices`` as int64 (B,). Raises ``DataError`` that names the first index outside [0, size)."""
    indices = np.asarray(indices)
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise DataError(f"indices must be one row of integers, not {indices.dtype} of shape {indices.shape}")
    indices = indices.astype(np.int64)
    outside = indices[(indices < 0) | ((indices >= size) if size is not None else False)]
    if outside.size:
        limit = "is not negative" if size is None else f"lies in [0, {size})"
        raise DataError(f"image {outside[0]} is outside the {split} split of {name}, whose index {limit}")
    return indices


def to_batch(images_BCHW: np.ndarray, labels_B: np.ndarray, ids_B: np.ndarray) -> ImageBatch:
    """An ``ImageBatch`` of uint8 images (B, 3, R, R): x / 255 * 2 - 1, bit for bit what VAR's loader computes."""
    pixels = torch.from_numpy(np.ascontiguousarray(images_BCHW)).float().div_(255).mul_(2).sub_(1)
    labels, ids = (torch.from_numpy(np.array(row, dtype=np.int64)) for row in (labels_B, ids_B))
    return ImageBatch(pixels, labels, ids)


def fingerprint_of(**settings: Any) -> str:
    """Twelve hex digits of a hash of plain settings (everything that decides the pixels and the split)."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
