"""What a token attends to: the attention weights of chosen queries, and how much of them goes to which scale.

The weights are exact: the queries and keys of a teacher-forced pass are taken where each block computes them, and the
softmax over the tokens that a scale may see is written out, since fused attention never holds it.
Shapes: B images, L all tokens, N tokens of one scale, S tokens seen, C code channels, Q queries, M blocks looked at,
H heads, E head dimension, K scales.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from varscale.models.var import VAR
from varscale.nn.attention import SelfAttention
from varscale.schedule import ScaleSchedule
from varscale.tokenizers.tokens import TokenBatch


@dataclass(frozen=True)
class Query:
    """A token that attends: its scale (0 is the coarsest) and its row and column in the map of that scale."""

    scale: int
    row: int
    column: int

    def token(self, schedule: ScaleSchedule) -> int:
        """Its place among all L tokens. Raises ``ValueError`` when the schedule has no such token."""
        if not 0 <= self.scale < schedule.num_scales:
            raise ValueError(f"{self}: the scales of {schedule} are 0 to {schedule.num_scales - 1}")
        _, h, w = schedule.scales[self.scale]
        if not (0 <= self.row < h and 0 <= self.column < w):
            raise ValueError(f"{self}: scale {self.scale} has rows 0 to {h - 1} and columns 0 to {w - 1}")
        return schedule.slices[self.scale].start + self.row * w + self.column

    def at_scale(self, scale: int, schedule: ScaleSchedule) -> Query:
        """The token of another scale over the middle of this one."""
        _, h, w = schedule.scales[self.scale]
        _, to_h, to_w = schedule.scales[scale]
        return Query(scale, (2 * self.row + 1) * to_h // (2 * h), (2 * self.column + 1) * to_w // (2 * w))


def attention_maps(model: VAR, batch: TokenBatch, queries: Sequence[Query], blocks: Sequence[int]) -> Tensor:
    """Attention weights (B, Q, M, H, L) of the queries, in a teacher-forced pass; 0 where a query may not look.

    Args:
        batch: token maps with their inputs and the labels they are conditioned on.
        blocks: which blocks, 0 is the first.

    Raises:
        ValueError: for a query or a block that does not exist.
    """
    schedule = model.schedule
    tokens = [query.token(schedule) for query in queries]
    size = (len(batch.ids_BL), len(queries), len(blocks), model.heads, schedule.num_tokens)
    weights_BQMHL = torch.zeros(size)

    def read(m: int, attention: SelfAttention, q_BHLE: Tensor, k_BHLE: Tensor) -> None:
        for i, (query, token) in enumerate(zip(queries, tokens, strict=True)):
            stop = schedule.slices[query.scale].stop
            weights = attention_weights(attention, q_BHLE[:, :, token : token + 1], k_BHLE[:, :, :stop])
            weights_BQMHL[:, i, m, :, :stop] = weights[:, :, 0].cpu()

    _visit(model, batch, blocks, read)
    return weights_BQMHL


def attention_shares(model: VAR, batch: TokenBatch, blocks: Sequence[int]) -> Tensor:
    """Share of the attention of query scale a that goes to key scale b, (M, H, K, K): rows a, columns b.

    The mean over images and over the positions of the query scale; every row sums to 1. Raises ``ValueError`` for a
    block that does not exist.
    """
    schedule = model.schedule
    K, B = schedule.num_scales, len(batch.ids_BL)
    shares_MHKK = torch.zeros(len(blocks), model.heads, K, K)

    def read(m: int, attention: SelfAttention, q_BHLE: Tensor, k_BHLE: Tensor) -> None:
        for a, part in enumerate(schedule.slices):
            for q_HLE, k_HLE in zip(q_BHLE, k_BHLE, strict=True):  # image by image, to hold few weights at a time
                weights_HNS = attention_weights(attention, q_HLE[:, part], k_HLE[:, : part.stop])
                by_scale = weights_HNS.mean(1).split(schedule.tokens_per_scale[: a + 1], dim=1)
                shares_MHKK[m, :, a, : a + 1] += torch.stack([w.sum(1) for w in by_scale], dim=1).cpu() / B

    _visit(model, batch, blocks, read)
    return shares_MHKK


def uniform_shares(schedule: ScaleSchedule) -> Tensor:
    """The same (K, K) for attention that gives every token it may see the same weight: n_b / (n_0 + ... + n_a)."""
    sizes_K = torch.tensor(schedule.tokens_per_scale, dtype=torch.float32)
    return (sizes_K / sizes_K.cumsum(0)[:, None]).tril()


def attention_weights(attention: SelfAttention, q_HNE: Tensor, k_HSE: Tensor) -> Tensor:
    """softmax(q k^T scale), (..., N, S) float32, of queries that may see all S keys."""
    return (q_HNE.float() @ k_HSE.float().transpose(-1, -2) * attention.scale).softmax(-1)


@torch.no_grad()
def _visit(
    model: VAR, batch: TokenBatch, blocks: Sequence[int], read: Callable[[int, SelfAttention, Tensor, Tensor], None]
) -> None:
    """Run the batch through the model in evaluation mode; read queries and keys (B, H, L, E) of each chosen block."""
    if missing := [block for block in blocks if not 0 <= block < model.depth]:
        raise ValueError(f"block {missing[0]} does not exist; the blocks of this model are 0 to {model.depth - 1}")
    assert batch.inputs_BNC is not None, "compute pyramid.inputs(ids) first"

    def hook(m: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def project_again(attention: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            assert isinstance(attention, SelfAttention)
            q, k, _ = attention.project(arguments[0])
            read(m, attention, q, k)

        return project_again

    training = model.training
    layers = [model.blocks[block].attention for block in blocks]
    handles = [layer.register_forward_pre_hook(hook(m)) for m, layer in enumerate(layers)]  # type: ignore[union-attr, operator]
    try:
        model.eval()(batch.inputs_BNC, batch.labels_B)
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
