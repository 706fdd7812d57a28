"""Reconstruction: PSNR after each scale, how much of the codebook each scale uses, and a picture of both.

PSNR is 10 log10(4 / mean squared error) of pixels in [-1, 1], clamped, in dB, the mean over images.
Usage is the share of the V codes that were chosen at least once; perplexity is exp of the entropy of the choices.
Both are bounded by the number of tokens that were looked at, which is small at the coarsest scale.
Shapes: B batch, R side of the image in px, L all tokens, K scales, V codebook size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from varscale.data.source import ImageBatch
from varscale.evaluation.pictures import table_picture, to_bytes
from varscale.ranks import place
from varscale.tokenizers.autoencoder import VQAutoencoder

LEAST_ERROR = 1e-10  # squared; a perfect reconstruction counts as 106 dB


@dataclass(frozen=True)
class ScaleReconstruction:
    """What the scales 0 ... ``scale`` reconstruct, and the codes scale ``scale`` chooses."""

    scale: int
    side: int  # of the token map; its height where it is no square
    psnr_db: float  # dB, of the image decoded from the scales so far
    usage: float  # share of the V codes chosen at this scale
    perplexity: float  # of the codes chosen at this scale
    tokens: int  # tokens of this scale behind usage and perplexity


@dataclass(frozen=True)
class ReconstructionReport:
    """Reconstruction of a set of images."""

    scales: tuple[ScaleReconstruction, ...]
    unquantised_psnr_db: float  # dB, of the latents decoded without quantisation
    usage: float  # over all scales
    perplexity: float  # over all scales
    images: int


class ReconstructionMeter:
    """Sums of squared errors and of chosen codes over batches of images.

    Args:
        tokenizer: measured as it is; its device is used.
    """

    def __init__(self, tokenizer: VQAutoencoder) -> None:
        self.tokenizer = tokenizer
        K = tokenizer.schedule.num_scales
        self.psnr_sums = torch.zeros(K + 1, dtype=torch.float64)  # the last is the unquantised one
        self.counts = torch.zeros(K, tokenizer.code.size, dtype=torch.int64)
        self.images = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def update(self, pixels_B3RR: Tensor) -> None:
        """Add a batch of images."""
        tokenizer = self.tokenizer
        pixels = pixels_B3RR.to(tokenizer.pyramid.quantizer.codebook.device)
        latent = tokenizer.latent(pixels)
        ids_BL = tokenizer.pyramid.encode(latent)
        stages = [*tokenizer.pyramid.partial_sums(ids_BL), latent]
        self.psnr_sums += torch.stack([psnr(tokenizer.decode_latent(stage), pixels).sum() for stage in stages]).cpu()
        for k, part in enumerate(tokenizer.schedule.slices):
            self.counts[k] += torch.bincount(ids_BL[:, part].flatten(), minlength=tokenizer.code.size).cpu()
        self.images += len(pixels)

    def report(self) -> ReconstructionReport:
        """The means so far, over all ranks. Raises ``ValueError`` when no image was added."""
        psnr_sums, counts, images = (_over_ranks(sums) for sums in (self.psnr_sums, self.counts, self.images))
        if not images:
            raise ValueError("no images to reconstruct; give at least one batch")
        means = (psnr_sums / images).tolist()
        scales = tuple(
            ScaleReconstruction(k, grid[1], means[k], *_usage_and_perplexity(counts[k]), tokens=int(counts[k].sum()))
            for k, grid in enumerate(self.tokenizer.schedule.scales)
        )
        return ReconstructionReport(scales, means[-1], *_usage_and_perplexity(counts.sum(0)), images=int(images))


def measure_reconstruction(tokenizer: VQAutoencoder, batches: Iterable[ImageBatch]) -> ReconstructionReport:
    """Reconstruct all batches with ``tokenizer`` in evaluation mode; its mode is put back."""
    training = tokenizer.training
    tokenizer.eval()
    meter = ReconstructionMeter(tokenizer)
    for batch in batches:
        meter.update(batch.pixels)
    tokenizer.train(training)
    return meter.report()


def reconstruction_report(tokenizer: VQAutoencoder, batches: Iterable[ImageBatch]) -> list[ScaleReconstruction]:
    """PSNR, usage and perplexity of each scale, coarse to fine."""
    return list(measure_reconstruction(tokenizer, batches).scales)


@torch.no_grad()
def reconstruction_rows(tokenizer: VQAutoencoder, pixels_B3RR: Tensor) -> tuple[list[str], list[list[np.ndarray]]]:
    """Headings, and one row an image: the original, then its reconstruction after each scale, uint8 (R, R, 3)."""
    pixels = pixels_B3RR.to(tokenizer.pyramid.quantizer.codebook.device)
    sums = tokenizer.pyramid.partial_sums(tokenizer.encode(pixels))
    columns = [pixels.clamp(-1, 1)] + [tokenizer.decode_latent(f_hat) for f_hat in sums]
    headings = ["original"] + [f"{h} x {w}" for _, h, w in tokenizer.schedule.scales]
    images = [to_bytes(column) for column in columns]
    return headings, [[column[i] for column in images] for i in range(len(pixels))]


def reconstruction_picture(tokenizer: VQAutoencoder, pixels_B3RR: Tensor) -> Image.Image:
    """The rows as one picture under their headings."""
    headings, rows = reconstruction_rows(tokenizer, pixels_B3RR)
    return table_picture(rows, headings)


def psnr(reconstruction_B3RR: Tensor, pixels_B3RR: Tensor) -> Tensor:
    """PSNR (B,) in dB, float64."""
    error = (reconstruction_B3RR - pixels_B3RR).double().square().mean((1, 2, 3))
    return 10 * torch.log10(4 / error.clamp(min=LEAST_ERROR))


def _usage_and_perplexity(counts_V: Tensor) -> tuple[float, float]:
    shares = counts_V.double() / counts_V.sum()
    return float((counts_V > 0).double().mean()), float(torch.special.entr(shares).sum().exp())


def _over_ranks(sums: Tensor) -> Tensor:
    """The sum over all ranks."""
    total = sums.clone()
    if place()[1] > 1:
        dist.all_reduce(total)
    return total
