"""A plain VAR in one file, to compare with: the mathematics of the release as a user would write it down.

A dense additive mask over all L x L scores, AdaLN computed in every block at every step of sampling, a key-value cache
that grows by ``torch.cat``, cross-entropy on float32 logits, ``F.interpolate`` between the scales,
``torch.multinomial`` for drawing. It runs no code of ``varscale``; only the names of its parameters are the same,
so that it loads the same weights.
Source: VAR, arXiv:2404.02905, and its released code.
Shapes: B batch, L all tokens, N tokens of one scale, D width, H heads, C code channels, V codebook size, K scales.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from reference_tokenizer import ReferenceTokenizer

    from varscale.models.var import VAR


class Attention(nn.Module):
    """Attention with L2-normalised queries and keys over everything it is given, masked by an additive bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("k_bias", torch.zeros(width), persistent=False)
        self.log_scale_H11 = nn.Parameter(torch.full((heads, 1, 1), math.log(4.0)))
        self.proj = nn.Linear(width, width)
        self.cached: tuple[Tensor, Tensor] | None = None
        self.caching = False

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        B, N, D = x.shape
        qkv = F.linear(x, self.qkv.weight, torch.cat((self.q_bias, self.k_bias, self.v_bias)))
        q, k, v = qkv.view(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        q = F.normalize(q, dim=-1) * self.log_scale_H11.clamp_max(math.log(100)).exp()
        k = F.normalize(k, dim=-1)
        if self.caching:
            if self.cached is not None:
                k, v = torch.cat((self.cached[0], k), dim=2), torch.cat((self.cached[1], v), dim=2)
            self.cached = (k, v)
        q, k = q.to(v.dtype), k.to(v.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.proj(out.transpose(1, 2).reshape(B, N, D))


class AdaptiveNorms(nn.Module):
    """Six modulations of a block from the class: a linear layer of its own, or an offset to the shared one."""

    def __init__(self, width: int, shared: bool) -> None:
        super().__init__()
        self.shared = shared
        if shared:
            self.offset_16D = nn.Parameter(torch.zeros(1, 6, width))
        else:
            self.linear = nn.Linear(width, 6 * width)

    def forward(self, cond: Tensor) -> tuple[Tensor, ...]:
        if self.shared:
            return (cond + self.offset_16D).unsqueeze(2).unbind(1)
        return self.linear(F.silu(cond)).view(len(cond), 6, 1, -1).unbind(1)


class FeedForward(nn.Module):
    """Two linear layers with GELU (tanh) between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    """Attention and feed-forward, each modulated, gated and, in training, dropped for some samples."""

    def __init__(self, width: int, heads: int, drop_path: float, shared: bool) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.feed_forward = FeedForward(width)
        self.norms = AdaptiveNorms(width, shared)
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.rate = drop_path

    def drop_path(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = x.new_empty(len(x), 1, 1).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)

    def forward(self, x: Tensor, cond: Tensor, bias: Tensor | None) -> Tensor:
        gamma1, gamma2, scale1, scale2, shift1, shift2 = self.norms(cond)
        x = x + self.drop_path(self.attention(self.norm(x) * (scale1 + 1) + shift1, bias) * gamma1)
        return x + self.drop_path(self.feed_forward(self.norm(x) * (scale2 + 1) + shift2) * gamma2)


class ReferenceVAR(nn.Module):
    """The transformer. ``sides`` are the sides of the scales; the other arguments are the release's."""

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        heads: int,
        sides: Sequence[int],
        vocabulary: int,
        channels: int,
        num_classes: int,
        drop_path: float = 0.0,
        shared_adaln: bool = False,
    ) -> None:
        super().__init__()
        self.sides, self.num_classes, self.width, self.shared_adaln = tuple(sides), num_classes, width, shared_adaln
        lengths = [p * p for p in sides]
        L = sum(lengths)
        self.class_embed = nn.Embedding(num_classes + 1, width)
        self.start_1ND = nn.Parameter(torch.zeros(1, lengths[0], width))
        self.position_1LD = nn.Parameter(torch.zeros(1, L, width))
        self.level_embed = nn.Embedding(len(sides), width)
        self.word_embed = nn.Linear(channels, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, drop_path * i / max(1, depth - 1), shared_adaln) for i in range(depth)
        )
        if shared_adaln:
            self.shared_norms = nn.Linear(width, 6 * width)
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.head_norm = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, vocabulary)
        levels = torch.cat([torch.full((n,), k) for k, n in enumerate(lengths)])
        self.register_buffer("levels", levels, persistent=False)
        bias = torch.where(levels[:, None] >= levels[None, :], 0.0, -torch.inf)
        self.register_buffer("bias", bias.view(1, 1, L, L), persistent=False)
        self.register_buffer("input_std", torch.ones(()))  # 1 in the release

    @classmethod
    def of(cls, model: VAR) -> Self:
        """The reference with the weights, and the drop path of a ``varscale`` model."""
        drop_path = model.blocks[-1].drop_path.rate
        reference = cls(
            depth=model.depth,
            width=model.width,
            heads=model.heads,
            sides=[h for _, h, _ in model.schedule.scales],
            vocabulary=model.head.out_features,
            channels=model.latent_channels,
            num_classes=model.num_classes,
            drop_path=drop_path,
            shared_adaln=model.shared_adaln,
        )
        reference.load_state_dict(model.state_dict())
        return reference

    def positions(self) -> Tensor:
        return self.level_embed(self.levels).unsqueeze(0) + self.position_1LD

    def condition(self, cond: Tensor) -> Tensor:
        if not self.shared_adaln:
            return cond
        return self.shared_norms(F.silu(cond)).view(len(cond), 6, self.width)

    def logits(self, x: Tensor, cond: Tensor) -> Tensor:
        scale, shift = self.head_norm(F.silu(cond)).view(len(cond), 2, 1, self.width).unbind(1)
        return self.head(self.norm(x.float()) * (scale + 1) + shift).float()

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Teacher forcing: float32 logits (B, L, V); the embedding is taken in float32, whatever autocast says."""
        with torch.autocast(inputs.device.type, enabled=False):
            cond = self.class_embed(labels)
            start = cond.unsqueeze(1) + self.start_1ND
            x = torch.cat((start, self.word_embed(inputs.float() / self.input_std)), dim=1) + self.positions()
        dtype = autocast_dtype(x)
        x, cond, bias = x.to(dtype), cond.to(dtype), self.bias.to(dtype)
        condition = self.condition(cond)
        for block in self.blocks:
            x = block(x, condition, bias)
        return self.logits(x, cond)

    def loss(self, inputs: Tensor, ids: Tensor, labels: Tensor, label_drop: float = 0.0) -> Tensor:
        """Mean nats a token."""
        labels = torch.where(torch.rand(len(labels), device=labels.device) < label_drop, self.num_classes, labels)
        logits = self(inputs, labels)
        nats = F.cross_entropy(logits.view(-1, logits.shape[-1]), ids.view(-1), reduction="none")
        return nats.view(ids.shape).mul(1 / ids.shape[1]).sum(dim=1).mean()

    @torch.no_grad()
    def sample(
        self, tokenizer: ReferenceTokenizer, labels: Tensor, *, guidance: float, top_k: int = 0, top_p: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Token ids (B, L) and the accumulated latent (B, C, H, W)."""
        B, K, side = len(labels), len(self.sides), self.sides[-1]
        cond = self.class_embed(torch.cat((labels, torch.full_like(labels, self.num_classes))))
        condition, positions = self.condition(cond), self.positions()
        x = cond.unsqueeze(1) + self.start_1ND + positions[:, : self.sides[0] ** 2]
        f_hat = torch.zeros(B, tokenizer.codebook.shape[1], side, side)
        for block in self.blocks:
            block.attention.caching, block.attention.cached = True, None
        drawn, seen = [], 0
        for k, p in enumerate(self.sides):
            seen += p * p
            h = x
            for block in self.blocks:
                h = block(h, condition, None)
            logits = self.logits(h, cond)
            t = guidance * k / (K - 1)
            logits = restrict((1 + t) * logits[:B] - t * logits[B:], top_k, top_p)
            ids = torch.multinomial(logits.softmax(-1).view(-1, logits.shape[-1]), 1).view(B, p * p)
            drawn.append(ids)
            f_hat = tokenizer.accumulate(f_hat, ids, k)
            if k < K - 1:
                q = self.sides[k + 1]
                words = F.interpolate(f_hat, size=(q, q), mode="area").flatten(2).transpose(1, 2)
                x = self.word_embed(words / self.input_std) + positions[:, seen : seen + q * q]
                x = x.repeat(2, 1, 1)
        for block in self.blocks:
            block.attention.caching, block.attention.cached = False, None
        return torch.cat(drawn, dim=1), f_hat


def restrict(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """-inf for logits outside the top k and the top p."""
    if top_k > 0:
        logits = logits.masked_fill(logits < logits.topk(top_k, dim=-1).values.amin(dim=-1, keepdim=True), -torch.inf)
    if top_p > 0:
        ascending, order = logits.sort(dim=-1)
        drop = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        drop[..., -1:] = False
        logits = logits.masked_fill(drop.scatter(-1, order, drop), -torch.inf)
    return logits


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype products have here."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def reference_adamw(model: nn.Module, lr: float) -> torch.optim.AdamW:
    """The released optimiser: fused AdamW, embeddings of positions and levels, biases and gates without decay."""
    plain = ("bias", "start_1ND", "position_1LD", "level_embed.weight", "offset_16D", "log_scale_H11")
    undecayed = [p for name, p in model.named_parameters() if p.ndim == 1 or name.endswith(plain)]
    alone = {id(p) for p in undecayed}
    decayed = [p for p in model.parameters() if id(p) not in alone]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": undecayed, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def reference_step(
    model: ReferenceVAR,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    ids: Tensor,
    labels: Tensor,
    *,
    bf16: bool,
    label_drop: float = 0.1,
) -> Tensor:
    """One training step: forward, backward, clip at 2, AdamW. Returns the loss."""
    with torch.autocast(ids.device.type, torch.bfloat16) if bf16 else nullcontext():
        loss = model.loss(inputs, ids, labels, label_drop)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()
