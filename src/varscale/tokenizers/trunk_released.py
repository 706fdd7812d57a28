"""Released trunk: the convolutional encoder and decoder of VAR's tokenizer, stride 16.

Source: VAR, arXiv:2404.02905, and its code (models/basic_vae.py); ``width`` 160 and 32 latent channels are the released
``vae_ch160v4096z32``. The names of the submodules are the released ones.
Shapes: B batch, R side of the image in px, h = w = R / 16 latent grid, C latent channels.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from varscale.nn.conv import (
    Downsample,
    ResidualBlock,
    SpatialAttention,
    Upsample,
    channels_last,
    conv3x3,
    group_norm,
    silu,
)

MULTIPLIERS = (1, 1, 2, 2, 4)  # of the width, from the finest level to the coarsest; each step halves the side
ENCODER_BLOCKS = 2
DECODER_BLOCKS = ENCODER_BLOCKS + 1


class Level(nn.Module):
    """Residual blocks of one resolution, attention after each where asked for, and a change of resolution."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, attention: bool, dropout: float) -> None:
        super().__init__()
        widths = [channels_in] + [channels_out] * blocks
        self.block = nn.ModuleList(ResidualBlock(a, b, dropout) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(SpatialAttention(channels_out) for _ in range(blocks if attention else 0))
        self.downsample: nn.Module = nn.Identity()
        self.upsample: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return self.upsample(self.downsample(x))


class Middle(nn.Module):
    """The coarsest level's residual block, attention, residual block."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, dropout)
        self.attn_1 = SpatialAttention(channels)
        self.block_2 = ResidualBlock(channels, channels, dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Pixels ``(B, 3, R, R)`` to features ``(B, C, R / 16, R / 16)``."""

    def __init__(self, width: int, latent_channels: int, dropout: float) -> None:
        super().__init__()
        widths = [width * m for m in MULTIPLIERS]
        last = len(widths) - 1
        self.conv_in = conv3x3(3, width)
        self.down = nn.ModuleList(
            Level(widths[max(i - 1, 0)], widths[i], ENCODER_BLOCKS, attention=i == last, dropout=dropout)
            for i in range(len(widths))
        )
        for i in range(last):
            self.down[i].downsample = Downsample(widths[i])
        self.mid = Middle(widths[-1], dropout)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = conv3x3(widths[-1], latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Features ``(B, C, R / 16, R / 16)`` to pixels ``(B, 3, R, R)``."""

    def __init__(self, width: int, latent_channels: int, dropout: float) -> None:
        super().__init__()
        widths = [width * m for m in MULTIPLIERS]
        last = len(widths) - 1
        self.conv_in = conv3x3(latent_channels, widths[-1])
        self.mid = Middle(widths[-1], dropout)
        self.up = nn.ModuleList(
            Level(widths[min(i + 1, last)], widths[i], DECODER_BLOCKS, attention=i == last, dropout=dropout)
            for i in range(len(widths))
        )
        for i in range(1, len(widths)):
            self.up[i].upsample = Upsample(widths[i])
        self.norm_out = group_norm(width)
        self.conv_out = conv3x3(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(silu(self.norm_out(x)))


class ReleasedTrunk(nn.Module):
    """Encoder and decoder of stride 16 with the convolutions around the quantiser.

    Args:
        latent_channels: C; 32 in the release.
        width: channels of the finest level, a multiple of 32; 160 in the release.
        dropout: inside the residual blocks; 0 in the release, 0.05 in its companion training code.
    """

    stride = 2 ** (len(MULTIPLIERS) - 1)

    def __init__(self, latent_channels: int, *, width: int = 160, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = Encoder(width, latent_channels, dropout)
        self.decoder = Decoder(width, latent_channels, dropout)
        self.quant_conv = conv3x3(latent_channels, latent_channels)
        self.post_quant_conv = conv3x3(latent_channels, latent_channels)

    def encode(self, pixels_B3RR: Tensor) -> Tensor:
        """Latents ``(B, C, R / 16, R / 16)``."""
        return self.quant_conv(self.encoder(channels_last(pixels_B3RR)))

    def decode(self, latent_BChw: Tensor) -> Tensor:
        """Pixels ``(B, 3, R, R)``, not clamped."""
        return self.decoder(self.post_quant_conv(channels_last(latent_BChw)))
