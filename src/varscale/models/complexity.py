"""What generating an image costs in next-scale and in raster order, with and without a key-value cache.

An order is a schedule: next-scale predicts the maps of a pyramid, raster order n^2 maps of one token. Step k emits the
n_k tokens of map k and needs all tokens so far, c_k = n_0 + ... + n_k:

with a cache n_k tokens go through the blocks, n_k c_k query-key pairs: raster sum_i i, O(n^4), next-scale O(n^4);
without one the whole prefix again, c_k tokens, c_k^2 pairs: raster sum_i i^2, O(n^6), next-scale O(n^4).

So the published O(n^6) against O(n^4) is without a cache; with one, raster order does less attention, and the gain of
next-scale is sequential steps. The pairs of a prefix are all c_k^2, as the paper counts and a dense kernel computes
them, though the order forbids some.
Source: VAR, arXiv:2404.02905, sec. 3.2 and appendix (time complexity).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from varscale.schedule import VAR_256, ScaleSchedule

GROWTH = 1.25  # of the sides beyond those of VAR-256, whose own grow by 1.2 to 1.33 from 5 on
LEAST_GROWTH = 1.1  # of the last side over the one before


@dataclass(frozen=True)
class GenerationCost:
    """One image: sequential forward passes, tokens through the blocks, and query-key pairs of one head of one block.

    Tokens and pairs are summed over the passes; a token that is computed again counts again.
    """

    passes: int
    tokens: int
    attention_pairs: int

    def flops(self, depth: int, width: int, mlp_ratio: float = 4.0) -> int:
        """FLOPs (a multiply-add is two) of ``depth`` blocks: linears 2 (4 + 2 r) D^2 a token, attention 4 D a pair.

        AdaLN once an image, 12 D^2 a block. Embedding, head and decoder are not part of it.
        """
        hidden = round(width * mlp_ratio)
        token = 2 * (4 * width * width + 2 * width * hidden)
        return depth * (token * self.tokens + 4 * width * self.attention_pairs + 12 * width * width)


def generation_cost(schedule: ScaleSchedule, *, cache: bool) -> GenerationCost:
    """The cost of one image drawn map by map; see the file's header for what is counted."""
    ends = [part.stop for part in schedule.slices]
    if cache:
        return GenerationCost(schedule.num_scales, schedule.num_tokens, schedule.attended_pairs)
    return GenerationCost(schedule.num_scales, sum(ends), sum(end * end for end in ends))


def raster_schedule(side: int) -> ScaleSchedule:
    """Raster order over a square grid: side^2 maps of one token, each of which sees itself and those before it."""
    return ScaleSchedule(((1, 1, 1),) * side**2)


def next_scale_schedule(side: int) -> ScaleSchedule:
    """A pyramid that ends at ``side``: VAR-256's own at 16 and at each of its sides, continued by factors of 1.25.

    Sides are left out where the last step would grow by less than a tenth.
    """
    return ScaleSchedule.square(*(before for before in _sides(side) if before * LEAST_GROWTH <= side), side)


def _sides(limit: int) -> Iterator[int]:
    """Sides of VAR-256, then each 1.25 times the one before, up to ``limit``."""
    side = 0
    for _, side, _ in VAR_256.scales:
        yield side
    while (side := round(side * GROWTH)) <= limit:
        yield side
