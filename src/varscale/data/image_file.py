"""One image file of a user's, as the validation split of class folders would show it: resized, its middle cropped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from varscale.data.decode import BROKEN_IMAGE, centre_crop, decode_rgb
from varscale.data.source import DataError, to_batch


def read_image(path: Path, resolution: int, *, least: int = 1) -> Tensor:
    """The image as pixels (1, 3, R, R) float32 in [-1, 1]: shorter side to round(1.125 R), then the middle square.

    Args:
        resolution: R.
        least: px that the shorter side of the file must have.

    Raises:
        DataError: if there is no such file, it is no whole image, or the image is smaller than ``least``.
    """
    try:
        with Image.open(path) as opened:
            width, height = opened.size
        image = decode_rgb(str(path), round(1.125 * resolution))
    except FileNotFoundError:
        raise DataError(f"there is no image {path}") from None
    except BROKEN_IMAGE as error:
        raise DataError(f"{path} is no image that can be decoded ({type(error).__name__}: {error})") from None
    if min(width, height) < least:
        raise DataError(f"{path} is {width} x {height} px; its shorter side must have at least {least} px")
    none = np.zeros(1, np.int64)
    return to_batch(centre_crop(image, resolution).transpose(2, 0, 1)[None], none, none).pixels
