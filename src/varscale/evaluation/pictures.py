"""Pictures of samples: a grid of images, and the coarse-to-fine strip that shows what each scale adds.

Shapes: B images, R side of the image in px.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from varscale.schedule import ScaleSchedule

CELL_PX = 96  # least side of an image in a picture
GAP_PX = 2
HEADING_PX = 16


def to_bytes(pixels_B3RR: Tensor) -> np.ndarray:
    """Pixels in [-1, 1] as uint8 (B, R, R, 3)."""
    scaled = ((pixels_B3RR.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    array: np.ndarray = scaled.permute(0, 2, 3, 1).cpu().numpy()
    return array


def table_picture(rows: Sequence[Sequence[np.ndarray]], headings: Sequence[str] = ()) -> Image.Image:
    """Images (R, R, 3) uint8 in rows, enlarged by a whole factor where they are small, under headings if given."""
    side = rows[0][0].shape[0]
    cell = side * -(-CELL_PX // side)
    top = HEADING_PX if headings else 0
    columns = max(len(row) for row in rows)
    size = (columns * (cell + GAP_PX) - GAP_PX, top + len(rows) * (cell + GAP_PX) - GAP_PX)
    picture = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=11)
    for column, heading in enumerate(headings):
        draw.text((column * (cell + GAP_PX) + cell // 2, top // 2), heading, fill="black", font=font, anchor="mm")
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            tile = Image.fromarray(image).resize((cell, cell), Image.Resampling.NEAREST)
            picture.paste(tile, (j * (cell + GAP_PX), top + i * (cell + GAP_PX)))
    return picture


def grid_picture(pixels_B3RR: Tensor, columns: int | None = None) -> Image.Image:
    """All images in a grid, as square as it gets unless the columns are given."""
    images = list(to_bytes(pixels_B3RR))
    columns = columns or math.ceil(math.sqrt(len(images)))
    return table_picture([images[i : i + columns] for i in range(0, len(images), columns)])


def strip_picture(stages: Sequence[Tensor], schedule: ScaleSchedule) -> Image.Image:
    """One row an image: how it looks after each scale, coarse to fine. ``stages``: K tensors (B, 3, R, R)."""
    columns = [to_bytes(stage) for stage in stages]
    rows = [[column[i] for column in columns] for i in range(len(columns[0]))]
    return table_picture(rows, [f"{h} x {w}" for _, h, w in schedule.scales])
