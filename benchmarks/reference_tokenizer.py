"""A plain VAR tokenizer in one file, to compare with: convolutions in torch's layout, ``F.interpolate``, float32.

The partner of ``reference_var``. It shares no code with ``varscale``; the names of its parameters are those of
``varscale.tokenizers``, so that it loads the same weights.
Source: VAR, arXiv:2404.02905, and its released code.
Shapes: B batch, L all tokens, C latent channels, H x W latent grid, V codebook size, K scales.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, and a skip."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(a), nn.Conv2d(a, b, 3, padding=1)
        self.norm2, self.conv2 = norm(b), nn.Conv2d(b, b, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(a, b, 1) if a != b else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class SpatialAttention(nn.Module):
    """One head over all positions."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj_out = norm(c), nn.Conv2d(c, 3 * c, 1), nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(B, 3, C, H * W).unbind(1)
        weights = torch.bmm(q.transpose(1, 2), k).mul(C**-0.5).softmax(dim=2)
        return x + self.proj_out(torch.bmm(v, weights.transpose(1, 2)).view(B, C, H, W))


class Resample(nn.Module):
    """Half the side by a strided convolution, or twice the side by the nearest neighbour and a convolution."""

    def __init__(self, c: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(c, c, 3, padding=1) if up else nn.Conv2d(c, c, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest") if self.up else F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """Residual blocks of one resolution, with attention on the coarsest, and a change of resolution."""

    def __init__(self, a: int, b: int, blocks: int, *, attention: bool, resample: str | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(a if j == 0 else b, b) for j in range(blocks))
        self.attn = nn.ModuleList(SpatialAttention(b) for _ in range(blocks if attention else 0))
        self.resample = resample
        if resample is not None:
            self.add_module(resample, Resample(b, up=resample == "upsample"))

    def forward(self, x: Tensor) -> Tensor:
        for j, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[j](x)
        return x if self.resample is None else self.get_submodule(self.resample)(x)


class Middle(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = ResidualBlock(c, c), SpatialAttention(c), ResidualBlock(c, c)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Pixels to features, stride 16."""

    def __init__(self, ch: int, z: int) -> None:
        super().__init__()
        widths = [ch, ch, 2 * ch, 2 * ch, 4 * ch]
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level(widths[max(0, i - 1)], w, 2, attention=i == 4, resample=None if i == 4 else "downsample")
            for i, w in enumerate(widths)
        )
        self.mid = Middle(4 * ch)
        self.norm_out, self.conv_out = norm(4 * ch), nn.Conv2d(4 * ch, z, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Features to pixels."""

    def __init__(self, ch: int, z: int) -> None:
        super().__init__()
        widths = [ch, ch, 2 * ch, 2 * ch, 4 * ch]
        self.conv_in = nn.Conv2d(z, 4 * ch, 3, padding=1)
        self.mid = Middle(4 * ch)
        self.up = nn.ModuleList(
            Level(widths[min(4, i + 1)], w, 3, attention=i == 4, resample=None if i == 0 else "upsample")
            for i, w in enumerate(widths)
        )
        self.norm_out, self.conv_out = norm(ch), nn.Conv2d(ch, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class ReferenceTokenizer(nn.Module):
    """Autoencoder with the residual quantisation loop.

    Args:
        ch: channels of the finest level. z: C. vocabulary: V. sides: sides of the scales.
        refiner_of_scale: which of the shared refiners each scale uses.
    """

    def __init__(self, *, ch: int, z: int, vocabulary: int, sides: Sequence[int], refiner_of_scale: Sequence[int]):
        super().__init__()
        self.encoder, self.decoder = Encoder(ch, z), Decoder(ch, z)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(z, z, 3, padding=1), nn.Conv2d(z, z, 3, padding=1)
        self.codebook = nn.Parameter(torch.zeros(vocabulary, z))
        self.refiners = nn.ModuleList(nn.Conv2d(z, z, 3, padding=1) for _ in range(1 + max(refiner_of_scale)))
        self.refiner_of_scale, self.sides = tuple(refiner_of_scale), tuple(sides)

    def refined(self, ids: Tensor, k: int) -> Tensor:
        p, side = self.sides[k], self.sides[-1]
        h = F.embedding(ids, self.codebook).transpose(1, 2).reshape(len(ids), -1, p, p)
        if p != side:
            h = F.interpolate(h, size=(side, side), mode="bicubic").contiguous()
        return h * 0.5 + self.refiners[self.refiner_of_scale[k]](h) * 0.5

    def accumulate(self, f_hat: Tensor, ids: Tensor, k: int) -> Tensor:
        with torch.autocast(f_hat.device.type, enabled=False):
            return f_hat + self.refined(ids, k)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids (B, L) and the teacher-forcing inputs (B, L - n_0, C) of images."""
        rest = self.quant_conv(self.encoder(pixels)).float()
        f_hat, ids, inputs = torch.zeros_like(rest), [], []
        for k, p in enumerate(self.sides):
            z = rest if p == self.sides[-1] else F.interpolate(rest, size=(p, p), mode="area")
            z = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
            distance = z.square().sum(1, keepdim=True) + self.codebook.square().sum(1) - 2 * z @ self.codebook.T
            ids.append(distance.argmin(1).view(len(pixels), p * p))
            h = self.refined(ids[-1], k)
            f_hat, rest = f_hat + h, rest - h
            if k < len(self.sides) - 1:
                q = self.sides[k + 1]
                inputs.append(F.interpolate(f_hat, size=(q, q), mode="area").flatten(2).transpose(1, 2))
        return torch.cat(ids, dim=1), torch.cat(inputs, dim=1)

    @torch.no_grad()
    def decode(self, f_hat: Tensor) -> Tensor:
        """Pixels in [-1, 1]."""
        return self.decoder(self.post_quant_conv(f_hat)).float().clamp(-1, 1)

    @classmethod
    def of(cls, state: Mapping[str, Tensor], *, sides: Sequence[int], refiner_of_scale: Sequence[int]) -> Self:
        """The tokenizer with the weights of a state dict of ``varscale.tokenizers.VQAutoencoder``."""
        names = {"trunk.": "", "pyramid.quantizer.codebook": "codebook", "pyramid.refiners.": "refiners."}
        renamed = {}
        for name, tensor in state.items():
            for old, new in names.items():
                if name.startswith(old):
                    renamed[name.replace(old, new, 1).replace(".conv.", "." if new == "refiners." else ".conv.")] = (
                        tensor
                    )
        V, z = renamed["codebook"].shape
        ch = renamed["encoder.conv_in.weight"].shape[0]
        tokenizer = cls(ch=ch, z=z, vocabulary=V, sides=sides, refiner_of_scale=refiner_of_scale)
        tokenizer.load_state_dict(renamed)
        return tokenizer.eval().requires_grad_(False)
