"""Cost of next-scale and raster order: closed forms, the published numbers, and what the blocks really compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from varscale.models.complexity import GenerationCost, generation_cost, next_scale_schedule, raster_schedule
from varscale.nn.attention import KeyValueCache
from varscale.nn.blocks import Block
from varscale.schedule import VAR_256, ScaleSchedule


def test_pairs_at_256_px() -> None:
    """specs/var.md section 0, facts/published-laws.md section 3."""
    raster, pyramid = raster_schedule(16), next_scale_schedule(16)
    assert pyramid == VAR_256
    assert generation_cost(raster, cache=False) == GenerationCost(256, 32_896, 5_625_216)
    assert generation_cost(raster, cache=True) == GenerationCost(256, 256, 32_896)
    assert generation_cost(pyramid, cache=True) == GenerationCost(10, 680, 286_434)
    assert generation_cost(pyramid, cache=False) == GenerationCost(10, 1_710, 743_654)


@pytest.mark.parametrize("side", [1, 2, 5, 12])
def test_raster_order_follows_its_closed_forms(side: int) -> None:
    t = side**2
    raster = raster_schedule(side)
    assert generation_cost(raster, cache=True).attention_pairs == t * (t + 1) // 2
    assert generation_cost(raster, cache=False).attention_pairs == t * (t + 1) * (2 * t + 1) // 6


def test_doubling_sides_follow_their_closed_forms() -> None:
    """Sides 1, 2, ..., 2^(m-1): c_k = (4^(k+1) - 1) / 3."""
    m = 6
    schedule = ScaleSchedule.square(*(2**k for k in range(m)))
    # sum_k 4^k (4^(k+1) - 1) / 3 and sum_k (4^(k+1) - 1)^2 / 9, each a sum of geometric series
    fours, sixteens = (4**m - 1) // 3, (16**m - 1) // 15
    assert generation_cost(schedule, cache=True).attention_pairs == (4 * sixteens - fours) // 3
    assert generation_cost(schedule, cache=False).attention_pairs == (16 * sixteens - 8 * fours + m) // 9


def test_orders_of_growth() -> None:
    """log2 of the pairs' growth from side n to 2 n approaches the exponent."""

    def ratio(order: Callable[[int], ScaleSchedule], cache: bool) -> float:
        small, large = (generation_cost(order(side), cache=cache).attention_pairs for side in (32, 64))
        return large / small

    assert ratio(raster_schedule, False) == pytest.approx(2**6, rel=0.01)
    assert ratio(raster_schedule, True) == pytest.approx(2**4, rel=0.01)
    assert ratio(next_scale_schedule, False) == pytest.approx(2**4, rel=0.1)
    assert ratio(next_scale_schedule, True) == pytest.approx(2**4, rel=0.1)


def test_a_pyramid_ends_at_its_side_and_prefers_vars_own_sides() -> None:
    assert [str(next_scale_schedule(side)) for side in (1, 2, 4)] == ["1", "1-2", "1-2-3-4"]
    assert str(next_scale_schedule(24)) == "1-2-3-4-5-6-8-10-13-16-20-24"
    assert str(next_scale_schedule(32)).endswith("-20-25-32")
    for k, (_, side, _) in enumerate(VAR_256.scales):
        assert next_scale_schedule(side).scales == VAR_256.scales[: k + 1]
    with pytest.raises(ValueError, match="at least 1"):
        next_scale_schedule(0)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("order", [raster_schedule, next_scale_schedule])
def test_flops_and_pairs_are_those_of_the_blocks(order: Callable[[int], ScaleSchedule], cache: bool) -> None:
    """Counted by torch in real blocks with a real cache, map by map; dense attention where the prefix is recomputed."""
    schedule = order(4)
    depth, width, heads = 2, 24, 3
    with torch.device("meta"):
        blocks = [Block(width, heads, schedule, mlp_ratio=3.0, group_tokens=schedule.num_tokens) for _ in range(depth)]
        shape = (1, heads, schedule.num_tokens, width // heads)
        kept = KeyValueCache(depth, shape, dtype=torch.float32, device=torch.device("meta"))
        condition = torch.empty(1, width)
        with FlopCounterMode(display=False) as counter:
            modulations = [block.norms(condition) for block in blocks] if cache else []
            for part in schedule.slices:
                x = torch.empty(1, part.stop - part.start if cache else part.stop, width)
                for i, block in enumerate(blocks):
                    x = block.step(x, modulations[i], kept, i, part) if cache else block(x, condition)
    cost = generation_cost(schedule, cache=cache)
    by_operator = counter.get_flop_counts()["Global"]
    linears = sum(by_operator.get(operator, 0) for operator in (torch.ops.aten.mm, torch.ops.aten.addmm))
    attention = counter.get_total_flops() - linears
    assert attention == 4 * width * depth * cost.attention_pairs
    # ``Block.forward`` modulates at every pass; the rule counts that once an image, as sampling does it.
    repeated = 0 if cache else (cost.passes - 1) * depth * 12 * width**2
    assert linears + attention - repeated == cost.flops(depth, width, mlp_ratio=3.0)
