"""VQAutoencoder: a trunk and a residual pyramid, the multi-scale VQ-VAE of VAR.

Source: VAR, arXiv:2404.02905, sec. 3.2.
Shapes: B batch, R side of the image in px, L all tokens, C latent channels, H x W latent grid.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from varscale.codes import CodeSpec
from varscale.schedule import ScaleSchedule
from varscale.tokenizers.config import TokenizerConfig
from varscale.tokenizers.losses import TokenizerLoss, reconstruction_losses
from varscale.tokenizers.residual import ResidualPyramid
from varscale.tokenizers.trunk_patch import PatchTrunk
from varscale.tokenizers.trunk_released import ReleasedTrunk
from varscale.tokenizers.vq import VectorQuantizer

FINGERPRINT_DIGITS = 16
PART_BYTES = 2**24


class VQAutoencoder(nn.Module):
    """Implements ``Tokenizer``. The trunk follows autocast where the caller switches it on, the pyramid never does.

    Args:
        settings: the fields of ``TokenizerConfig``, by keyword.

    Raises:
        ValueError: for settings that do not fit together (see ``TokenizerConfig``), and for pixels of another size.
    """

    __signature__ = inspect.signature(TokenizerConfig)  # so that a misspelt key of a configuration is told by name

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.config = config = TokenizerConfig(**settings)
        self.resolution = config.resolution
        self.latent_channels = config.latent_channels
        self.trunk: PatchTrunk | ReleasedTrunk
        if config.trunk == "patch":
            self.trunk = PatchTrunk(
                config.latent_channels, patch=config.patch, width=config.width, blocks=config.blocks
            )
        else:
            self.trunk = ReleasedTrunk(config.latent_channels, width=config.width, dropout=config.dropout)
        self.trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        quantizer = VectorQuantizer(
            config.vocabulary,
            config.latent_channels,
            update=config.codebook_update,
            decay=config.codebook_decay,
            restart_below=config.restart_below,
            kmeans_start=config.kmeans_start,
        )
        self.pyramid = ResidualPyramid(
            quantizer,
            config.scale_schedule,
            refiners=config.refiners,
            refine_ratio=config.refine_ratio,
            commitment=config.commitment,
        )

    @property
    def schedule(self) -> ScaleSchedule:
        """The token maps, coarse to fine."""
        return self.pyramid.schedule

    @property
    def code(self) -> CodeSpec:
        """A token is an index into the codebook."""
        return self.pyramid.quantizer.code

    @property
    def fingerprint(self) -> str:
        """Hash of the settings that decide tokens and of every parameter; computed anew at each call."""
        digest = hashlib.sha256(json.dumps(self.config.of_tokens(), sort_keys=True).encode())
        for name, parameter in sorted(self.named_parameters()):
            digest.update(name.encode())
            digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:FINGERPRINT_DIGITS]

    def latent(self, pixels_B3RR: Tensor) -> Tensor:
        """Latents (B, C, H, W) float32 before quantisation; the gradient reaches the encoder."""
        wanted = (3, self.resolution, self.resolution)
        if tuple(pixels_B3RR.shape[1:]) != wanted:
            raise ValueError(
                f"images of shape {tuple(pixels_B3RR.shape[1:])}, but the tokenizer takes {wanted}; "
                f"load the data at a resolution of {self.resolution}"
            )
        return self._in_parts(self.trunk.encode, pixels_B3RR).float()

    @torch.no_grad()
    def encode(self, pixels_B3RR: Tensor) -> Tensor:
        """Ids (B, L) int64 of pixels (B, 3, R, R) in [-1, 1]."""
        return self.pyramid.encode(self.latent(pixels_B3RR))

    @torch.no_grad()
    def decode(self, ids_BL: Tensor) -> Tensor:
        """Pixels (B, 3, R, R) float32 clamped to [-1, 1]."""
        return self.decode_latent(self.pyramid.reconstruct(ids_BL))

    def decode_latent(self, latent_BCHW: Tensor) -> Tensor:
        """Pixels (B, 3, R, R) float32 clamped to [-1, 1] of an accumulated latent F."""
        return self._in_parts(self.trunk.decode, latent_BCHW).float().clamp(-1, 1)

    def _in_parts(self, network: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """The network's output; without a gradient on a CPU, of a few images at a time.

        Their finest maps then stay within ``PART_BYTES``. Above 32 MiB glibc takes fresh memory from the system for
        each: 10 % of the time of decoding 4 images of 256 px at width 32.
        """
        if torch.is_grad_enabled() or batch.device.type != "cpu":
            return network(batch)
        image_bytes = 4 * self.config.width * self.resolution**2
        return torch.cat([network(part) for part in batch.split(max(1, PART_BYTES // image_bytes))])

    def loss(self, pixels_B3RR: Tensor, terms: Sequence[nn.Module] = ()) -> TokenizerLoss:
        """Training loss; the reconstruction is not clamped. ``terms``: see ``varscale.tokenizers.losses``."""
        quantised = self.pyramid(self.latent(pixels_B3RR))
        l1, l2, extra = reconstruction_losses(self.trunk.decode(quantised.latent), pixels_B3RR, terms)
        config = self.config
        total = config.l1_weight * l1 + config.l2_weight * l2 + config.vq_weight * quantised.vq_loss
        return TokenizerLoss(
            total=sum(extra, start=total),
            l1=l1,
            l2=l2,
            vq=quantised.vq_loss,
            terms=extra,
            ids=quantised.ids,
            residuals=quantised.residuals,
        )

    @torch.no_grad()
    def start_codebook(self, pixels_B3RR: Tensor, seed: int) -> None:
        """Before the first training step: place the codes on the first batch, unless that is done or not wanted."""
        if not self.pyramid.quantizer.started:
            self.pyramid.start_codebook(self.latent(pixels_B3RR), seed)

    def update_codebook(self, loss: TokenizerLoss, seed: int) -> int:
        """After a training step: masses, moving averages and restarts. Returns the number of codes restarted."""
        return self.pyramid.quantizer.observe(loss.residuals.flatten(0, 1), loss.ids.flatten(), seed)
