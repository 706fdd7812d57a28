"""Pictures: cells in their places, pixels as they are."""

from __future__ import annotations

import numpy as np
import torch

from varscale.evaluation.pictures import CELL_PX, GAP_PX, HEADING_PX, grid_picture, strip_picture, to_bytes
from varscale.schedule import ScaleSchedule


def test_bytes_span_the_range_and_are_clamped() -> None:
    pixels = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(5, 1, 1, 1).expand(5, 3, 1, 1)
    assert to_bytes(pixels)[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]


def test_a_grid_is_square_and_keeps_its_order() -> None:
    pixels = torch.linspace(-1, 1, 4).view(4, 1, 1, 1).expand(4, 3, 32, 32)
    picture = np.asarray(grid_picture(pixels))
    assert picture.shape == (2 * CELL_PX + GAP_PX, 2 * CELL_PX + GAP_PX, 3)
    corners = [picture[y, x, 0] for y in (5, -5) for x in (5, -5)]
    assert corners == to_bytes(pixels)[:, 0, 0, 0].tolist()


def test_a_strip_has_a_column_a_scale() -> None:
    stages = [torch.full((2, 3, 96, 96), value) for value in (-1.0, 0.0, 1.0)]
    picture = np.asarray(strip_picture(stages, ScaleSchedule.square(1, 2, 4)))
    assert picture.shape == (HEADING_PX + 2 * 96 + GAP_PX, 3 * 96 + 2 * GAP_PX, 3)
    assert [picture[-1, column, 0] for column in (10, 110, 210)] == [0, 128, 255]
