"""Residual pyramid: the only place that knows "upsample the codes, refine with phi_k, accumulate".

Training, caching, teacher forcing and sampling all call ``add``, so they cannot drift apart.

Source: VAR, arXiv:2404.02905, algorithms 1 and 2, and its released code (models/quant.py).
Shapes: B batch, C latent channels, H x W latent grid, h_k x w_k map of scale k, n_k = h_k w_k, L all tokens, K scales,
V codebook size. A token map of all scales is one (B, L) int64 tensor, scale k at ``schedule.slices[k]``, row-major.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varscale.nn.conv import conv3x3
from varscale.schedule import ScaleSchedule
from varscale.tokenizers.precision import full_float32
from varscale.tokenizers.resize import resize, resize_matrix
from varscale.tokenizers.vq import VectorQuantizer, over_ranks


class Refiner(nn.Module):
    """phi of VAR: (1 - r) x + r conv(x), which repairs what upsampling loses; r = 0.5 in the release."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio
        self.conv = conv3x3(channels, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW * (1 - self.ratio) + self.conv(x_BCHW) * self.ratio


def refiner_of_scale(num_scales: int, refiners: int) -> tuple[int, ...]:
    """Which of the shared refiners each scale uses.

    Refiner i stands at the i-th of n ticks, equally spaced over [1/(2n), 1 - 1/(2n)] (from 1/12 to 11/12 when n = 4);
    scale k takes the one nearest to k / (K - 1). This is the released float64 expression on purpose: for K = 10, n = 4
    scales 2 and 7 are exact ties that rounding resolves in opposite directions, and the checkpoints depend on it.
    """
    margin = 1 / 3 / 4 if refiners == 4 else 1 / 2 / refiners
    ticks = np.linspace(margin, 1 - margin, refiners)
    places = [k / (num_scales - 1) if num_scales > 1 else 0.0 for k in range(num_scales)]
    return tuple(int(np.argmin(np.abs(ticks - place))) for place in places)


@dataclass(frozen=True)
class PyramidOutput:
    """What training needs of one pass over the pyramid."""

    latent: Tensor  # (B, C, H, W) straight through: its value is F_K, its gradient goes to the encoder unchanged
    vq_loss: Tensor  # () codebook and commitment loss
    ids: Tensor  # (B, L) int64
    residuals: Tensor  # (B, L, C) the features that were quantised, no gradient


class ResidualPyramid(nn.Module):
    """Multi-scale residual quantisation with one codebook.

    Args:
        quantizer: the codebook.
        schedule: K square or rectangular maps of single frames; the last is the latent grid.
        refiners: number of phi shared by the scales (4 in the release), or ``None`` for one a scale.
        refine_ratio: r of phi; 0 leaves upsampled codes as they are.
        commitment: beta, weight of the commitment loss.

    Raises:
        ValueError: for a schedule with several frames, fewer than one refiner, or (in every method that takes latents)
            latents whose grid is not the schedule's last scale.
    """

    def __init__(
        self,
        quantizer: VectorQuantizer,
        schedule: ScaleSchedule,
        *,
        refiners: int | None = 4,
        refine_ratio: float = 0.5,
        commitment: float = 0.25,
    ) -> None:
        super().__init__()
        if any(t != 1 for t, _, _ in schedule.scales):
            raise ValueError(f"the schedule {schedule} has several frames; this pyramid quantises single images")
        if refiners is not None and refiners < 1:
            raise ValueError(f"{refiners} refiners; use at least 1, or None for one a scale")
        self.quantizer = quantizer
        self.schedule = schedule
        self.commitment = commitment
        self.grids = tuple((h, w) for _, h, w in schedule.scales)
        K = schedule.num_scales
        self.refiner_of_scale = tuple(range(K)) if refiners is None else refiner_of_scale(K, refiners)
        self.refiners = nn.ModuleList(Refiner(quantizer.channels, refine_ratio) for _ in range(refiners or K))
        for k, grid in enumerate(self.grids[:-1]):  # the last scale is not resized
            self.register_buffer(f"area_{k}", resize_matrix(self.grids[-1], grid, "area"), persistent=False)
            self.register_buffer(f"bicubic_{k}", resize_matrix(grid, self.grids[-1], "bicubic"), persistent=False)

    @property
    def channels(self) -> int:
        """C."""
        return self.quantizer.channels

    @property
    def idle_refiners(self) -> bool:
        """Whether some refiner serves no scale, and so is never trained."""
        return len(set(self.refiner_of_scale)) < len(self.refiners)

    def add(self, f_hat_BCHW: Tensor, codes_BChw: Tensor, k: int) -> Tensor:
        """F_k = F_{k-1} + phi_k(bicubic(codes of scale k)), float32."""
        return f_hat_BCHW + self._contribution(codes_BChw, k)

    def next_input(self, f_hat_BCHW: Tensor, k: int) -> Tensor:
        """What predicts scale k + 1: F_k averaged over areas, (B, C, h_{k+1}, w_{k+1}). k is at most K - 2."""
        with full_float32(f_hat_BCHW.device.type):
            return self._at_scale(f_hat_BCHW, k + 1)

    @torch.no_grad()
    def encode(self, f_BCHW: Tensor) -> Tensor:
        """Ids (B, L) of latents; no gradient."""
        return torch.cat([ids.flatten(1) for _, ids, _ in self._quantise(f_BCHW.float())], dim=1)

    def partial_sums(self, ids_BL: Tensor) -> Iterator[Tensor]:
        """F_k, (B, C, H, W), after each scale, coarse to fine."""
        if ids_BL.shape[1] != self.schedule.num_tokens:
            raise ValueError(
                f"{ids_BL.shape[1]} tokens an image, but the schedule {self.schedule} has {self.schedule.num_tokens}"
            )
        f_hat = self._zeros(len(ids_BL))
        for k, (part, grid) in enumerate(zip(self.schedule.slices, self.grids, strict=True)):
            f_hat = self.add(f_hat, self.quantizer.codes(ids_BL[:, part].unflatten(1, grid)), k)
            yield f_hat

    @torch.no_grad()
    def reconstruct(self, ids_BL: Tensor) -> Tensor:
        """F_K, (B, C, H, W): what the decoder takes; no gradient."""
        *_, f_hat = self.partial_sums(ids_BL)
        return f_hat

    @torch.no_grad()
    def inputs(self, ids_BL: Tensor) -> Tensor:
        """Teacher-forcing input (B, L - n_0, C) float32 of scales 1 ... K-1, row-major; scale 0 is fed by the class."""
        maps = [
            self.next_input(f_hat, k).flatten(2).transpose(1, 2)
            for k, f_hat in enumerate(self.partial_sums(ids_BL))
            if k < len(self.grids) - 1
        ]
        return torch.cat(maps, dim=1) if maps else self._zeros(len(ids_BL)).flatten(2).transpose(1, 2)[:, :0]

    def forward(self, f_BCHW: Tensor) -> PyramidOutput:
        """Quantise for training.

        vq_loss = 1/K sum_k [beta mean((sg(F_k) - f)^2) + mean((F_k - sg(f))^2)], means over B C H W; the gradient of
        the second term reaches the codebook and the refiners of scales 0 ... k.
        """
        f = f_BCHW.float()
        f_fixed = f.detach()
        f_hat = torch.zeros_like(f)
        vq_loss = f.new_zeros(())
        ids, residuals = [], []
        for z_k, ids_k, f_hat in self._quantise(f):
            commitment = F.mse_loss(f_hat.detach(), f)
            vq_loss = vq_loss + self.commitment * commitment + F.mse_loss(f_hat, f_fixed)
            ids.append(ids_k.flatten(1))
            residuals.append(z_k.flatten(2).transpose(1, 2))
        return PyramidOutput(
            latent=(f_hat.detach() - f_fixed) + f,
            vq_loss=vq_loss / len(self.grids),
            ids=torch.cat(ids, dim=1),
            residuals=torch.cat(residuals, dim=1),
        )

    @torch.no_grad()
    def start_codebook(self, f_BCHW: Tensor, seed: int) -> None:
        """k-means start on latents of the first batch (of all ranks): features of the pyramid with exact codes."""
        rest = over_ranks(f_BCHW.float())
        self.schedule.check_latent_grid(rest.shape[-2:])
        features = []
        with full_float32(rest.device.type):
            for k in range(len(self.grids)):
                z = self._at_scale(rest, k)
                features.append(z.flatten(2).transpose(1, 2).reshape(-1, self.channels))
                if k < len(self.grids) - 1:
                    rest = rest - resize(z, self.get_buffer(f"bicubic_{k}"), self.grids[-1])
        self.quantizer.start(torch.cat(features), seed)

    def _quantise(self, f_BCHW: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each scale: the feature that is quantised (B, C, h, w), its ids (B, h, w), and F_k (B, C, H, W)."""
        self.schedule.check_latent_grid(f_BCHW.shape[-2:])
        f_fixed = f_BCHW.detach()
        rest = f_fixed
        f_hat = torch.zeros_like(f_fixed)
        for k in range(len(self.grids)):
            with full_float32(f_BCHW.device.type):
                z = self._at_scale(rest, k)
            ids = self.quantizer.nearest(z)
            h = self._contribution(self.quantizer.codes(ids), k)
            f_hat = f_hat + h  # what ``add`` does; h itself is what the rest loses
            rest = rest - h.detach()
            yield z, ids, f_hat

    def _contribution(self, codes_BChw: Tensor, k: int) -> Tensor:
        """phi_k(bicubic(codes)), (B, C, H, W); the last scale is not resized."""
        with full_float32(codes_BChw.device.type):
            codes = codes_BChw.float()
            if k < len(self.grids) - 1:
                codes = resize(codes, self.get_buffer(f"bicubic_{k}"), self.grids[-1])
            return self.refiners[self.refiner_of_scale[k]](codes)

    def _at_scale(self, x_BCHW: Tensor, k: int) -> Tensor:
        """Averaged over areas to the grid of scale k; the last scale is the latent grid itself."""
        if k == len(self.grids) - 1:
            return x_BCHW
        return resize(x_BCHW, self.get_buffer(f"area_{k}"), self.grids[k])

    def _zeros(self, batch: int) -> Tensor:
        return self.quantizer.codebook.new_zeros(batch, self.channels, *self.grids[-1])
