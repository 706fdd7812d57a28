"""Transformer blocks conditioned by adaptive layer norm (AdaLN), and stochastic depth.

Source: DiT, arXiv:2212.09748 (AdaLN-zero); VAR, arXiv:2404.02905, and its released code for the order of the chunks
(gammas, scales, shifts) and the form shared between blocks.
Shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varscale.nn.attention import GROUP_TOKENS, KeyValueCache, SelfAttention
from varscale.nn.linear import Linear, linear_gelu
from varscale.schedule import ScaleSchedule

NORM_EPS = 1e-6


def modulate(x_BND: Tensor, scale_B1D: Tensor, shift_B1D: Tensor) -> Tensor:
    """LN(x) (1 + scale) + shift; the layer norm has no parameters of its own."""
    normed = F.layer_norm(x_BND, x_BND.shape[-1:], eps=NORM_EPS)
    return torch.addcmul(shift_B1D, normed, scale_B1D + 1)


def scaled_gates(modulations: tuple[Tensor, ...], scale: float) -> tuple[Tensor, ...]:
    """The modulations with the gammas times ``scale``: the same as a factor on both branches of the block."""
    if scale == 1.0:
        return modulations
    return modulations[0] * scale, modulations[1] * scale, *modulations[2:]


class AdaptiveNorms(nn.Module):
    """The six modulations of a block from the condition, (B, D) -> six of (B, 1, D): gammas, scales, shifts."""

    def __init__(self, width: int, branch_scale: float = 1.0):
        super().__init__()
        self.linear = nn.Linear(width, 6 * width)
        self.branch_scale = branch_scale

    def forward(self, cond_BD: Tensor) -> tuple[Tensor, ...]:
        out: Tensor = self.linear(F.silu(cond_BD))
        return scaled_gates(out.unsqueeze(1).chunk(6, dim=-1), self.branch_scale)


class SharedAdaptiveNorms(nn.Module):
    """The shared form: one linear layer serves all blocks, each adds its own offset (VAR's 512 px model)."""

    def __init__(self, width: int, branch_scale: float = 1.0):
        super().__init__()
        self.offset_16D = nn.Parameter(torch.randn(1, 6, width) / width**0.5)
        self.branch_scale = branch_scale

    def forward(self, shared_B6D: Tensor) -> tuple[Tensor, ...]:
        return scaled_gates((shared_B6D + self.offset_16D).chunk(6, dim=1), self.branch_scale)


class FeedForward(nn.Module):
    """Two linear layers with a tanh-approximated GELU between."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up = Linear(width, hidden)
        self.down = Linear(hidden, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        out: Tensor = self.down(linear_gelu(x_BND, self.up.weight, self.up.bias))
        return out


class DropPath(nn.Module):
    """Stochastic depth: in training, drop a sample's branch with probability ``rate``, rescale the rest.

    Drawn before the blocks run and given to them: then a part of a batch can take its share of what is drawn for the
    whole, compiled blocks drop what others do, and a block computed again needs no random state. Applied to the gates
    (B, 1, D) of a branch, which is the same and spares two passes over the branch.
    """

    def __init__(self, rate: float):
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop path rate {rate} is outside [0, 1)")
        self.rate = rate

    def draw(self, images: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Factors (B, 1, 1) of a block's two branches for a batch of ``images``; None where nothing is dropped."""
        if not self.training or self.rate == 0.0:
            return None
        kept = [torch.empty(images, 1, 1, device=device).bernoulli_(1.0 - self.rate) for _ in range(2)]
        return kept[0] / (1.0 - self.rate), kept[1] / (1.0 - self.rate)

    def forward(self, gate_B1D: Tensor, factor_B11: Tensor | None) -> Tensor:
        return gate_B1D if factor_B11 is None else gate_B1D * factor_B11.to(gate_B1D.dtype)


class Block(nn.Module):
    """x += gamma_1 Attn(LN(x) modulated); x += gamma_2 FFN(LN(x) modulated).

    ``condition`` in the calls is (B, D) for per-block AdaLN, (B, 6, D) from the shared linear for the shared form.
    ``branch_scale`` is a constant factor on both branches (CompleteP: base depth / depth).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        schedule: ScaleSchedule,
        *,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        l2_norm: bool = True,
        shared_adaln: bool = False,
        group_tokens: int = GROUP_TOKENS,
        branch_scale: float = 1.0,
    ):
        super().__init__()
        self.attention = SelfAttention(width, heads, schedule, l2_norm=l2_norm, group_tokens=group_tokens)
        self.feed_forward = FeedForward(width, round(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        self.norms: AdaptiveNorms | SharedAdaptiveNorms
        self.norms = (SharedAdaptiveNorms if shared_adaln else AdaptiveNorms)(width, branch_scale)

    def forward(self, x_BND: Tensor, condition: Tensor, paths: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """All scales at once. ``paths``: what ``drop_path`` drew; None drops nothing."""
        path1, path2 = paths or (None, None)
        gamma1, gamma2, scale1, scale2, shift1, shift2 = self.norms(condition)
        h = self.attention(modulate(x_BND, scale1, shift1))
        x_BND = torch.addcmul(x_BND, h, self.drop_path(gamma1, path1))
        h = self.feed_forward(modulate(x_BND, scale2, shift2))
        return torch.addcmul(x_BND, h, self.drop_path(gamma2, path2))

    def step(
        self, x_BND: Tensor, modulations: tuple[Tensor, ...], cache: KeyValueCache, block: int, where: slice
    ) -> Tensor:
        """The scale whose tokens are ``where``, given the cached ones before it; ``modulations`` are those of norms."""
        gamma1, gamma2, scale1, scale2, shift1, shift2 = modulations
        h = self.attention.step(modulate(x_BND, scale1, shift1), cache, block, where)
        x_BND = torch.addcmul(x_BND, h, gamma1)
        h = self.feed_forward(modulate(x_BND, scale2, shift2))
        return torch.addcmul(x_BND, h, gamma2)
