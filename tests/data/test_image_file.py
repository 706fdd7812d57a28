"""A user's image: cropped as the validation split crops it, or told why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from varscale.data.image_file import read_image
from varscale.data.source import DataError


def test_the_middle_square_is_kept(tmp_path: Path) -> None:
    picture = np.zeros((90, 180, 3), np.uint8)
    picture[:, 50:130] = (255, 0, 51)  # wider than the square of 80 x 80 px that is kept
    Image.fromarray(picture).save(tmp_path / "wide.png")
    pixels = read_image(tmp_path / "wide.png", 32)
    assert pixels.shape == (1, 3, 32, 32)
    np.testing.assert_allclose(pixels[0, :, 16, :].mean(1).numpy(), [1.0, -1.0, -0.6], atol=0.02)


def test_what_is_no_usable_image_is_told(tmp_path: Path) -> None:
    text, cut, small = tmp_path / "text.jpg", tmp_path / "cut.jpg", tmp_path / "small.png"
    text.write_text("not an image")
    Image.new("RGB", (64, 64), "red").save(cut)
    cut.write_bytes(cut.read_bytes()[:-200])
    Image.new("RGB", (40, 7)).save(small)
    for path in (text, cut):
        with pytest.raises(DataError, match=rf"{path.name} is no image"):
            read_image(path, 32)
    with pytest.raises(DataError, match=r"40 x 7 px; its shorter side must have at least 8 px"):
        read_image(small, 32, least=8)
    with pytest.raises(DataError, match="there is no image"):
        read_image(tmp_path / "absent.png", 32)
    with pytest.raises(DataError, match="no image"):
        read_image(tmp_path, 32)
