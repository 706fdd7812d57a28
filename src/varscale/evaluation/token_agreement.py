"""Token agreement: what it costs to encode in bf16 instead of fp32.

On the same images: the share of equal ids at each scale, what either set of ids decodes to, and by how much the
held-out loss of a transformer shifts when its validation tokens come from the other encoding. An id that differs
changes the residual that all finer scales quantise, so agreement falls from scale to scale; reconstructions hardly
differ, for the finer scales repair what the coarser ones did.
Shapes: B batch, L all tokens, K scales.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from varscale.cache.encoding import encode
from varscale.data.source import ImageBatch
from varscale.evaluation.reconstruction import psnr
from varscale.models.protocol import GenerativeModel
from varscale.tokenizers.precision import full_float32
from varscale.tokenizers.protocol import Tokenizer
from varscale.tokenizers.tokens import TokenBatch


@dataclass(frozen=True)
class LossShift:
    """Held-out nats a token, mean over all L tokens and the images, on the tokens of either encoding."""

    nats_reference: float
    nats_other: float
    shift: float  # nats_other - nats_reference
    shift_sem: float  # standard error of the shift over the images, which are the same on both sides


@dataclass(frozen=True)
class TokenAgreement:
    """How far the tokens of ``other`` agree with those of ``reference``."""

    reference: str  # precision: fp32 or bf16
    other: str
    equal_per_scale: tuple[float, ...]  # share of equal ids
    equal: float  # share of equal ids over all L tokens
    psnr_reference_db: float  # dB, of the images decoded in float32 from the ids of either
    psnr_other_db: float
    loss: LossShift | None  # None without a model
    images: int


@torch.no_grad()
def token_agreement(
    tokenizer: Tokenizer,
    batches: Iterable[ImageBatch],
    *,
    reference: str = "fp32",
    other: str = "bf16",
    model: GenerativeModel | None = None,
) -> TokenAgreement:
    """Encode the same images in both precisions and compare.

    Args:
        tokenizer: in evaluation mode.
        batches: images on the tokenizer's device.
        reference, other: ``fp32`` or ``bf16``, see `varscale.cache.encoding.encode`.
        model: a transformer trained on tokens of ``reference``, in evaluation mode on the same device.

    Raises:
        ValueError: when there is no image, or for an unknown precision.
    """
    equal, psnrs, nats = [], [], []
    for batch in batches:
        pair = [encode(tokenizer, batch.pixels, precision) for precision in (reference, other)]
        same_BL = pair[0] == pair[1]
        equal.append(torch.stack([same_BL[:, part].sum(1) for part in tokenizer.schedule.slices], dim=1).cpu())
        with full_float32(batch.pixels.device.type):
            psnrs.append(torch.stack([psnr(tokenizer.decode(ids_BL), batch.pixels) for ids_BL in pair], dim=1).cpu())
        if model is not None:
            nats.append(torch.stack([_nats(model, tokenizer, ids_BL, batch.labels) for ids_BL in pair], dim=1))
    if not equal:
        raise ValueError("there is no image to encode; give at least one")
    equal_BK = torch.cat(equal).double()
    sizes_K = torch.tensor(tokenizer.schedule.tokens_per_scale, dtype=torch.float64)
    psnr_reference, psnr_other = torch.cat(psnrs).mean(0).tolist()
    return TokenAgreement(
        reference=reference,
        other=other,
        equal_per_scale=tuple((equal_BK.mean(0) / sizes_K).tolist()),
        equal=float(equal_BK.sum(1).mean() / sizes_K.sum()),
        psnr_reference_db=psnr_reference,
        psnr_other_db=psnr_other,
        loss=_shift(torch.cat(nats)) if nats else None,
        images=len(equal_BK),
    )


def _nats(model: GenerativeModel, tokenizer: Tokenizer, ids_BL: Tensor, labels_B: Tensor) -> Tensor:
    """Nats a token of each image, (B,) float64."""
    return model.loss(TokenBatch(ids_BL, labels_B, tokenizer.pyramid.inputs(ids_BL))).per_token_avg_B.double().cpu()


def _shift(nats_B2: Tensor) -> LossShift:
    reference, other = nats_B2.mean(0).tolist()
    shift_B = nats_B2[:, 1] - nats_B2[:, 0]
    sem = float(shift_B.std() / math.sqrt(len(shift_B))) if len(shift_B) > 1 else 0.0
    return LossShift(reference, other, float(shift_B.mean()), sem)
