"""Losses of stage-1 training: pixels L1 and L2, the quantiser's loss, and any further terms on the reconstruction.

Source: VAR, arXiv:2404.02905, sec. 3.2 (its weights are not published); the defaults 0.2 L1 + 1.0 L2 are those of the
companion code FoundationVision/vaex. A perceptual or adversarial term is an ``nn.Module`` that takes
``(reconstruction, pixels)``, both (B, 3, R, R), and returns a weighted scalar; none is built in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class TokenizerLoss:
    """One training pass of a tokenizer; scalars carry the gradient."""

    total: Tensor  # () what is minimised
    l1: Tensor  # () mean absolute error, pixels in [-1, 1], no weight
    l2: Tensor  # () mean squared error, pixels in [-1, 1], no weight
    vq: Tensor  # () codebook and commitment loss, no weight
    terms: tuple[Tensor, ...]  # () each, in the order of the terms given
    ids: Tensor  # (B, L) int64
    residuals: Tensor  # (B, L, C) features that were quantised, no gradient


def reconstruction_losses(
    reconstruction_B3RR: Tensor, pixels_B3RR: Tensor, terms: Sequence[nn.Module] = ()
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """L1, L2 and the further terms, in float32."""
    reconstruction, pixels = reconstruction_B3RR.float(), pixels_B3RR.float()
    return (
        F.l1_loss(reconstruction, pixels),
        F.mse_loss(reconstruction, pixels),
        tuple(term(reconstruction, pixels) for term in terms),
    )
