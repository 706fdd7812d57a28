"""The held-out share: which images validate where a data set comes without a validation split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from varscale.data.source import DataError


def check_share(share: float) -> None:
    """Raise ``DataError`` unless 0 < share < 1."""
    if not 0 < share < 1:
        raise DataError(f"val_share is {share:g}; it must lie between 0 and 1, both excluded")


def held_out_names(names: Iterable[bytes], share: float) -> np.ndarray:
    """True for the names whose SHA-256 lies in the lowest ``share`` of its range; bool, one for each name.

    The side of an image depends on its name alone: not on its folder, nor on which other images there are.
    """
    limit = int(share * 2**64)
    return np.array([int.from_bytes(hashlib.sha256(name).digest()[:8], "big") < limit for name in names], dtype=bool)
