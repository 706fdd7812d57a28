"""Tokenizer: what cache, models and evaluation may ask of any tokenizer of images.

Shapes: B batch, R side of the image in px, L all tokens, C latent channels, H x W latent grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from varscale.codes import CodeSpec
from varscale.schedule import ScaleSchedule
from varscale.tokenizers.losses import TokenizerLoss
from varscale.tokenizers.residual import ResidualPyramid


class Tokenizer(Protocol):
    """Images to token maps and back. Pixels are float32 in [-1, 1]; ids int64, scale k at ``schedule.slices[k]``."""

    resolution: int
    latent_channels: int
    pyramid: ResidualPyramid

    @property
    def schedule(self) -> ScaleSchedule:
        """The token maps, coarse to fine."""
        ...

    @property
    def code(self) -> CodeSpec:
        """What one token is."""
        ...

    @property
    def fingerprint(self) -> str:
        """Content hash of everything that decides tokens and pixels."""
        ...

    def encode(self, pixels_B3RR: Tensor) -> Tensor:
        """Ids (B, L); no gradient."""
        ...

    def decode(self, ids_BL: Tensor) -> Tensor:
        """Pixels (B, 3, R, R) clamped to [-1, 1]; no gradient."""
        ...

    def decode_latent(self, latent_BCHW: Tensor) -> Tensor:
        """Pixels (B, 3, R, R) clamped to [-1, 1] of an accumulated latent."""
        ...

    def loss(self, pixels_B3RR: Tensor, terms: Sequence[nn.Module] = ()) -> TokenizerLoss:
        """Training loss, with the gradient."""
        ...
