"""Block-causal self-attention over scales: a token sees every token of its own and of all coarser scales.

The block structure is used, not masked away: queries of a group of scales attend to the prefix of keys they may see,
so the score matrix of VAR-256 has 62 % of the dense L^2 entries and, but for the coarsest group, no mask at all.
Source: VAR, arXiv:2404.02905, sec. 3.2 and its released code (L2-normalised queries and keys, no key bias).
Shapes: B batch, L tokens, N tokens of one group, S keys, D width, H heads, E head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from varscale.nn.linear import Linear, linear
from varscale.schedule import ScaleSchedule

# Coarse scales are taken together until a group holds this many queries: below it, the cost of a kernel call exceeds
# what skipping masked scores saves (measured at L = 130 and 680 on a CPU; 32 to 64 is flat).
GROUP_TOKENS = 32
# Scores from which written-out attention adds up the gradients of the groups itself (see ``GroupedAttention``).
GROUPED_SCORES = 2**21
MAX_LOG_SCALE = math.log(100.0)


@dataclass(frozen=True)
class QueryGroup:
    """Queries ``start:stop`` attend to keys ``0:stop``; ``masked`` when the group spans more than one scale."""

    start: int
    stop: int
    masked: bool


def query_groups(schedule: ScaleSchedule, minimum: int = GROUP_TOKENS) -> tuple[QueryGroup, ...]:
    """Consecutive scales gathered into groups of at least ``minimum`` tokens (the last may hold fewer)."""
    groups: list[QueryGroup] = []
    start = first = 0
    for k, part in enumerate(schedule.slices):
        if part.stop - start >= minimum or k == schedule.num_scales - 1:
            groups.append(QueryGroup(start, part.stop, masked=k > first))
            start, first = part.stop, k + 1
    return tuple(groups)


def token_levels(schedule: ScaleSchedule) -> Tensor:
    """(L,) int64, the scale of every token."""
    return torch.cat([torch.full((n,), k) for k, n in enumerate(schedule.tokens_per_scale)])


def scale_mask(schedule: ScaleSchedule) -> Tensor:
    """(L, L) boolean, true where query i may attend to key j: level(j) <= level(i)."""
    level_L = token_levels(schedule)
    return level_L[:, None] >= level_L[None, :]


def written_out(device_type: str, dtype: torch.dtype) -> bool:
    """Whether attention is computed as matmul, softmax, matmul: torch's fused bf16 backward is slow on CPUs.

    Measured with one thread, forward and backward: 23 ms fused against 4.2 ms at B 16, H 4, L 130, E 16.
    """
    return device_type == "cpu" and dtype == torch.bfloat16


def attend(q_BHNE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, mask_NS: Tensor | None, scale: float) -> Tensor:
    """Softmax attention of one group. Returns (B, H, N, E)."""
    if not written_out(q_BHNE.device.type, q_BHNE.dtype):
        return F.scaled_dot_product_attention(q_BHNE, k_BHSE, v_BHSE, attn_mask=mask_NS, scale=scale)
    B, H, N, E = q_BHNE.shape
    q, k, v = (x.reshape(B * H, x.shape[2], E) for x in (q_BHNE, k_BHSE, v_BHSE))
    if mask_NS is None:
        scores = torch.bmm(q * scale if scale != 1.0 else q, k.transpose(1, 2))
    else:
        bias = torch.zeros(mask_NS.shape, dtype=q.dtype).masked_fill_(~mask_NS, -torch.inf)
        scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale)
    return torch.bmm(scores.softmax(-1), v).view(B, H, N, E)


class GroupedAttention(torch.autograd.Function):
    """Written-out attention of all groups at once: what ``attend`` gives for each, with one backward.

    Autograd would copy the keys and values that each group sees, and pad and add up the gradients of these copies: at
    B 4, H 6, L 680, E 64 in bf16, forward and backward take 55 ms here against 74 ms. At the ladder's sizes (B 16, H 4,
    L 130, E 16) both take 4 ms. Gradients are summed by the products themselves, in float32 before they are rounded.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_BHLE: Tensor,
        k_BHLE: Tensor,
        v_BHLE: Tensor,
        groups: Sequence[QueryGroup],
        mask_LL: Tensor,
        scale: float,
    ) -> Tensor:
        q, k, v = (x.contiguous().flatten(0, 1) for x in (q_BHLE, k_BHLE, v_BHLE))  # each (B H, L, E)
        out, weights = torch.empty_like(q), []
        for group in groups:
            rows, seen = slice(group.start, group.stop), slice(0, group.stop)
            scores = torch.bmm(q[:, rows], k[:, seen].transpose(1, 2))
            if scale != 1.0:
                scores.mul_(scale)
            if group.masked:
                scores.masked_fill_(~mask_LL[rows, seen], -torch.inf)
            weights.append(scores.softmax(-1))
            torch.bmm(weights[-1], v[:, seen], out=out[:, rows])
        ctx.save_for_backward(q, k, v, *weights)
        ctx.groups, ctx.scale, ctx.shape = groups, scale, q_BHLE.shape
        return out.view(q_BHLE.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHLE: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *weights = ctx.saved_tensors
        grad = grad_BHLE.contiguous().flatten(0, 1)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for group, p in zip(ctx.groups, weights, strict=True):
            rows, seen = slice(group.start, group.stop), slice(0, group.stop)
            grad_v[:, seen].baddbmm_(p.transpose(1, 2), grad[:, rows])
            grad_scores = torch.bmm(grad[:, rows], v[:, seen].transpose(1, 2))
            grad_scores = torch.ops.aten._softmax_backward_data(grad_scores, p, -1, p.dtype)
            if ctx.scale != 1.0:
                grad_scores.mul_(ctx.scale)
            torch.bmm(grad_scores, k[:, seen], out=grad_q[:, rows])
            grad_k[:, seen].baddbmm_(grad_scores.transpose(1, 2), q[:, rows])
        return (*(x.view(ctx.shape) for x in (grad_q, grad_k, grad_v)), None, None, None)


def inverse_norm(x_BHNE: Tensor) -> Tensor:
    """1 / max(|x|, 1e-12) per head, (B, H, N, 1): a third faster with its backward than ``F.normalize``."""
    return torch.linalg.vector_norm(x_BHNE, dim=-1, keepdim=True).clamp_min(1e-12).reciprocal()


class KeyValueCache:
    """Keys and values of the scales sampled so far, for every block, allocated once.

    Args:
        blocks: number of blocks.
        shape: (B, H, L, E) of one block's keys.
    """

    def __init__(self, blocks: int, shape: tuple[int, int, int, int], *, dtype: torch.dtype, device: torch.device):
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(blocks)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(blocks)]

    def extend(self, block: int, k_BHNE: Tensor, v_BHNE: Tensor, where: slice) -> tuple[Tensor, Tensor]:
        """Store the keys and values of one scale; returns all keys and values up to its end."""
        self.keys[block][:, :, where] = k_BHNE
        self.values[block][:, :, where] = v_BHNE
        return self.keys[block][:, :, : where.stop], self.values[block][:, :, : where.stop]


class SelfAttention(nn.Module):
    """Multi-head self-attention with a query and a value bias, and no key bias.

    Args:
        width: D.
        heads: H; the head dimension is D / H.
        schedule: the scales, which decide what a token sees.
        l2_norm: normalise queries and keys per head and learn a temperature per head (clamped at 100). Without it the
            softmax scale is 0.25 / sqrt(E), a quarter of the usual one, as in the released code.
        group_tokens: see ``query_groups``; L makes the attention dense and masked.
    """

    mask_LL: Tensor

    def __init__(
        self, width: int, heads: int, schedule: ScaleSchedule, *, l2_norm: bool = True, group_tokens: int = GROUP_TOKENS
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads; choose a multiple of the head count")
        self.heads, self.head_dim, self.l2_norm = heads, width // heads, l2_norm
        self.schedule, self.groups = schedule, query_groups(schedule, group_tokens)
        self.qkv = Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = Linear(width, width)
        if l2_norm:
            self.log_scale_H11 = nn.Parameter(torch.full((heads, 1, 1), math.log(4.0)))
        masked = max((g.stop for g in self.groups if g.masked), default=0)  # only the coarse corner is ever masked
        self.register_buffer("mask_LL", scale_mask(schedule)[:masked, :masked], persistent=False)

    def project(self, x_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, H, N, E), normalised and scaled for a softmax scale of ``scale``."""
        B, N, _ = x_BND.shape
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = linear(x_BND, self.qkv.weight, bias)
        q, k, v = qkv.view(B, N, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        if self.l2_norm:
            q = q * (self.log_scale_H11.clamp(max=MAX_LOG_SCALE).exp() * inverse_norm(q)).to(q.dtype)
            k = k * inverse_norm(k)
        return q, k, v

    @property
    def scale(self) -> float:
        """Factor on the scores before the softmax."""
        return 1.0 if self.l2_norm else 0.25 / math.sqrt(self.head_dim)

    def merge(self, out_BHNE: Tensor) -> Tensor:
        """(B, H, N, E) -> (B, N, D), projected."""
        B, H, N, E = out_BHNE.shape
        out: Tensor = self.proj(out_BHNE.transpose(1, 2).reshape(B, N, H * E))
        return out

    def forward(self, x_BLD: Tensor) -> Tensor:
        """All scales at once, (B, L, D) -> (B, L, D); L may stop at the end of any scale."""
        q, k, v = self.project(x_BLD)
        L = x_BLD.shape[1]
        groups = [QueryGroup(g.start, min(g.stop, L), g.masked) for g in self.groups if g.start < L]
        scores = q.shape[0] * self.heads * sum((g.stop - g.start) * g.stop for g in groups)
        grouped = scores >= GROUPED_SCORES and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if grouped and written_out(q.device.type, q.dtype):
            out: Tensor = GroupedAttention.apply(q, k, v, groups, self.mask_LL, self.scale)
            return self.merge(out)
        parts = []
        for group in groups:
            rows, seen = slice(group.start, group.stop), slice(0, group.stop)
            mask = self.mask_LL[rows, seen] if group.masked else None
            parts.append(attend(q[:, :, rows], k[:, :, seen], v[:, :, seen], mask, self.scale))
        return self.merge(torch.cat(parts, dim=2) if len(parts) > 1 else parts[0])

    def step(self, x_BND: Tensor, cache: KeyValueCache, block: int, where: slice) -> Tensor:
        """One scale, whose tokens are ``where`` among all L, given the cached scales before it."""
        q, k, v = self.project(x_BND)
        keys, values = cache.extend(block, k, v, where)
        return self.merge(attend(q, keys.to(q.dtype), values.to(q.dtype), None, self.scale))
