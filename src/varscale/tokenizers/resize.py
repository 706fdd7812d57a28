"""Resizing between the latent grid and a scale's grid as one matrix product.

Area (adaptive average pooling) and bicubic (align_corners False, no antialiasing) are linear and separable: the matrix
over all positions is the Kronecker product of two matrices over one side. Equal to ``F.interpolate`` within float32
rounding. Measured on one CPU thread at 8 x 8, 64 images of 8 channels: bicubic 0.01-0.04 ms against 0.35-0.5 ms, area
0.01-0.09 against 0.01-0.26; on CUDA the backward of a product is deterministic, that of bicubic interpolation is not.
A grid of 32 x 32 with ten scales takes 10 MB of matrices; the cost grows with the fourth power of the side.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def side_matrix(size_in: int, size_out: int, mode: Literal["area", "bicubic"]) -> Tensor:
    """``(size_in, size_out)`` float64: row i is what resizing along one side makes of the unit vector i."""
    units = torch.eye(size_in, dtype=torch.float64)[:, None, :, None]  # (size_in, 1, size_in, 1)
    if mode == "area":
        return F.adaptive_avg_pool2d(units, (size_out, 1))[:, 0, :, 0]
    # Two equal columns: bicubic interpolation along the other side then leaves the values as they are.
    return F.interpolate(units.expand(-1, -1, -1, 2), size=(size_out, 2), mode="bicubic")[:, 0, :, 0]


def resize_matrix(grid_in: tuple[int, int], grid_out: tuple[int, int], mode: Literal["area", "bicubic"]) -> Tensor:
    """``(h_in w_in, h_out w_out)`` float32, so that ``x_BCN @ matrix`` resizes row-major maps."""
    sides = [side_matrix(a, b, mode) for a, b in zip(grid_in, grid_out, strict=True)]
    return torch.kron(sides[0].contiguous(), sides[1].contiguous()).float()


def resize(x_BChw: Tensor, matrix: Tensor, grid_out: tuple[int, int]) -> Tensor:
    """Apply a ``resize_matrix`` to maps ``(B, C, h_in, w_in)``."""
    return (x_BChw.flatten(2) @ matrix).unflatten(2, grid_out)
