"""Convolutional pieces of the released VQ-VAE: residual block, single-head attention over positions, resampling.

Source: VAR, arXiv:2404.02905, and its code (models/basic_vae.py, after VQGAN, arXiv:2012.09841). The names of the
submodules are the released ones, so that a checkpoint maps onto them by prefix.
Shapes: B batch, C channels, H x W positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varscale.nn.group_norm import GroupNorm

NORM_GROUPS = 32  # a width that is no multiple of it cannot be normalised


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of 32 groups, eps 1e-6. Raises ``ValueError`` when the channels are no multiple of 32."""
    if channels % NORM_GROUPS:
        raise ValueError(
            f"{channels} channels do not divide into {NORM_GROUPS} groups; use a multiple of {NORM_GROUPS}"
        )
    return GroupNorm(NORM_GROUPS, channels, eps=1e-6)


def conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    """3x3 convolution that keeps the grid."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


def silu(x: Tensor) -> Tensor:
    """SiLU; without a gradient in the place of ``x``, which must be a tensor of the caller's own.

    Fresh memory for the largest maps cost a quarter of the decoder's time on a CPU (256 px, batch 4, width 32).
    """
    return F.silu(x, inplace=not torch.is_grad_enabled())


def added(branch: Tensor, x: Tensor) -> Tensor:
    """``x + branch``; without a gradient in the place of ``branch``."""
    return x + branch if torch.is_grad_enabled() else branch.add_(x)


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice; added to the input, which a 1x1 convolution widens where needed."""

    def __init__(self, channels_in: int, channels_out: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = group_norm(channels_in)
        self.conv1 = conv3x3(channels_in, channels_out)
        self.norm2 = group_norm(channels_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(channels_out, channels_out)
        self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x_BCHW)))
        h = self.conv2(self.dropout(silu(self.norm2(h))))
        return added(h, self.nin_shortcut(x_BCHW))


class SpatialAttention(nn.Module):
    """One head of self-attention over all H W positions, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        _, C, H, W = x_BCHW.shape
        q, k, v = self.qkv(self.norm(x_BCHW)).flatten(2).chunk(3, dim=1)  # each (B, C, H W)
        weights = (q.transpose(1, 2) @ k * C**-0.5).softmax(-1)  # (B, queries, keys)
        return x_BCHW + self.proj_out((v @ weights.transpose(1, 2).to(v.dtype)).unflatten(2, (H, W)))


class Downsample(nn.Module):
    """3x3 convolution of stride 2 after a row and a column of zeros at the bottom and right only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbour, twice the side, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))


class PlainResidualBlock(nn.Module):
    """SiLU, 3x3 and SiLU, 1x1 convolution, added to the input; no norm (the block of VQ-VAE, arXiv:1711.00937)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, channels)
        self.conv2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + self.conv2(F.silu(self.conv1(F.silu(x_BCHW))))


def channels_last(x_BCHW: Tensor) -> Tensor:
    """The same values with the channels innermost in memory, which convolutions on small grids run faster on."""
    return x_BCHW.contiguous(memory_format=torch.channels_last)
