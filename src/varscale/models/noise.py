"""Gumbel noise that is a function of (seed, image, token, code), computed where the logits lie.

Source: the finaliser of splitmix64, as in ``varscale.data.counter``, whose numbers these are: the part of a name that
all codes of a token share is folded there, the codes here, because they are thousands a token.
Shapes: B images, N tokens of one scale, M codes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from varscale.data.counter import counter_hash


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


# The constants of splitmix64 as torch's int64, whose sums and products wrap like those of uint64.
_GOLDEN, _MULTIPLY_1, _MULTIPLY_2 = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = x + _GOLDEN
    x = (x ^ _shifted(x, 30)) * _MULTIPLY_1
    x = (x ^ _shifted(x, 27)) * _MULTIPLY_2
    return x ^ _shifted(x, 31)


def gumbel(seed: int, images_B1: np.ndarray, tokens_N: np.ndarray, codes_BNM: Tensor) -> Tensor:
    """Standard Gumbel noise (B, N, M) float32; ``codes_BNM`` broadcasts and decides the device."""
    token_BN = torch.from_numpy(counter_hash(seed, images_B1, tokens_N).view(np.int64)).to(codes_BNM.device)
    bits = _shifted(_mix(token_BN.unsqueeze(-1) ^ _mix(codes_BNM)), 40)  # 24, all that float32 holds
    uniform = (bits.float() + 0.5) * 2.0**-24
    return -torch.log(-torch.log(uniform))
