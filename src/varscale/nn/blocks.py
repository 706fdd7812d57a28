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


class AdaptiveNorms(nn.Module):
    """The six modulations of a block from the condition, (B, D) -> six of (B, 1, D): gammas, scales, shifts."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, 6 * width)

    def forward(self, cond_BD: Tensor) -> tuple[Tensor, ...]:
        out: Tensor = self.linear(F.silu(cond_BD))
        return out.unsqueeze(1).chunk(6, dim=-1)


class SharedAdaptiveNorms(nn.Module):
    """The shared form: one linear layer serves all blocks, each adds its own offset (VAR's 512 px model)."""

    def __init__(self, width: int):
        super().__init__()
        self.offset_16D = nn.Parameter(torch.randn(1, 6, width) / width**0.5)

    def forward(self, shared_B6D: Tensor) -> tuple[Tensor, ...]:
        return (shared_B6D + self.offset_16D).chunk(6, dim=1)


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

    Applied to the gates (B, 1, D) of a branch, which is the same and spares two passes over the branch.
    """

    def __init__(self, rate: float):
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop path rate {rate} is outside [0, 1)")
        self.rate = rate

    def forward(self, gate_B1D: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return gate_B1D
        keep = torch.empty(gate_B1D.shape[0], 1, 1, device=gate_B1D.device).bernoulli_(1.0 - self.rate)
        return gate_B1D * (keep / (1.0 - self.rate)).to(gate_B1D.dtype)


class Block(nn.Module):
    """x += gamma_1 Attn(LN(x) modulated); x += gamma_2 FFN(LN(x) modulated).

    ``condition`` in the calls is (B, D) for per-block AdaLN, (B, 6, D) from the shared linear for the shared form.
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
    ):
        super().__init__()
        self.attention = SelfAttention(width, heads, schedule, l2_norm=l2_norm, group_tokens=group_tokens)
        self.feed_forward = FeedForward(width, round(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        self.norms: AdaptiveNorms | SharedAdaptiveNorms
        self.norms = SharedAdaptiveNorms(width) if shared_adaln else AdaptiveNorms(width)

    def forward(self, x_BND: Tensor, condition: Tensor) -> Tensor:
        """All scales at once."""
        gamma1, gamma2, scale1, scale2, shift1, shift2 = self.norms(condition)
        h = self.attention(modulate(x_BND, scale1, shift1))
        x_BND = torch.addcmul(x_BND, h, self.drop_path(gamma1))
        h = self.feed_forward(modulate(x_BND, scale2, shift2))
        return torch.addcmul(x_BND, h, self.drop_path(gamma2))

    def step(
        self, x_BND: Tensor, modulations: tuple[Tensor, ...], cache: KeyValueCache, block: int, where: slice
    ) -> Tensor:
        """The scale whose tokens are ``where``, given the cached ones before it; ``modulations`` are those of norms."""
        gamma1, gamma2, scale1, scale2, shift1, shift2 = modulations
        h = self.attention.step(modulate(x_BND, scale1, shift1), cache, block, where)
        x_BND = torch.addcmul(x_BND, h, gamma1)
        h = self.feed_forward(modulate(x_BND, scale2, shift2))
        return torch.addcmul(x_BND, h, gamma2)
