"""Attention by groups of scales equals dense masked attention, with its gradients, in both arithmetics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from varscale.nn.attention import GroupedAttention, KeyValueCache, SelfAttention, attend, query_groups, scale_mask
from varscale.schedule import VAR_256, ScaleSchedule

SCHEDULE = ScaleSchedule.square(1, 2, 3, 4, 6)
L = SCHEDULE.num_tokens


def attention(group_tokens: int, l2_norm: bool = True) -> SelfAttention:
    torch.manual_seed(0)
    layer = SelfAttention(24, 3, SCHEDULE, l2_norm=l2_norm, group_tokens=group_tokens)
    with torch.no_grad():
        layer.q_bias.normal_()
        layer.v_bias.normal_()
    return layer


@pytest.mark.parametrize("l2_norm", [True, False])
@pytest.mark.parametrize("group_tokens", [1, 12, 32])
def test_groups_equal_dense_masked_attention(group_tokens: int, l2_norm: bool) -> None:
    x = torch.randn(2, L, 24, generator=torch.Generator().manual_seed(1))
    results: list[tuple[Tensor, Tensor]] = []
    for tokens in (group_tokens, L):
        layer = attention(tokens, l2_norm)
        out = layer(x)
        out.square().sum().backward()
        assert layer.qkv.weight.grad is not None
        results.append((out, layer.qkv.weight.grad))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-3, rtol=1e-4)


def test_groups_tile_the_queries_and_mask_only_mixed_ones() -> None:
    groups = query_groups(VAR_256, 32)
    assert [g.start for g in groups][1:] == [g.stop for g in groups][:-1]
    assert groups[-1].stop == VAR_256.num_tokens
    assert [g.masked for g in groups] == [True] + [False] * (len(groups) - 1)
    assert all(not g.masked for g in query_groups(VAR_256, 1))


def test_written_out_attention_equals_the_fused_one() -> None:
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=rng) for n in (5, 9, 9))
    mask = torch.rand(5, 9, generator=rng) > 0.3
    mask[:, 0] = True
    for m in (None, mask):
        fused = attend(q, k, v, m, 0.7)
        written = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), m, 0.7)
        torch.testing.assert_close(written.float(), fused, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_grouped_attention_equals_that_of_each_group(dtype: torch.dtype, scale: float) -> None:
    rng = torch.Generator().manual_seed(0)
    q, k, v, weights = torch.randn(4, 2, 3, L, 8, generator=rng).to(dtype).unbind(0)
    groups, mask = query_groups(SCHEDULE, 12), scale_mask(SCHEDULE)
    results = []
    for grouped in (True, False):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        if grouped:
            out = GroupedAttention.apply(*leaves, groups, mask, scale)
        else:
            parts = [
                attend(
                    leaves[0][:, :, g.start : g.stop],
                    *(x[:, :, : g.stop] for x in leaves[1:]),
                    mask[g.start : g.stop, : g.stop],
                    scale,
                )
                for g in groups
            ]
            out = torch.cat(parts, dim=2)
        results.append([out, *torch.autograd.grad((out * weights).sum(), leaves)])
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    for mine, wanted in zip(*results, strict=True):
        torch.testing.assert_close(mine, wanted, atol=tolerance, rtol=tolerance)


def test_large_bf16_attention_is_grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = attention(12), torch.randn(2, L, 24)
    results = []
    for limit in (0, 2**40):
        monkeypatch.setattr("varscale.nn.attention.GROUPED_SCORES", limit)
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
        out.float().square().sum().backward()
        assert layer.qkv.weight.grad is not None
        results.append((out, layer.qkv.weight.grad))
    assert ("GroupedAttention" in graph(results[0][0]), "GroupedAttention" in graph(results[1][0])) == (True, False)
    assert torch.equal(results[0][0], results[1][0])
    difference = results[0][1] - results[1][1]
    assert float(difference.norm()) < 0.02 * float(results[1][1].norm())


def graph(out: Tensor) -> str:
    """The names of the nodes that ``out`` was computed by."""
    names, nodes = [], [out.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None:
            names.append(node.name())
            nodes += [child for child, _ in node.next_functions]
    return " ".join(names)


def test_cached_steps_equal_all_scales_at_once() -> None:
    layer = attention(12).eval()
    x = torch.randn(2, L, 24, generator=torch.Generator().manual_seed(1))
    cache = KeyValueCache(1, (2, 3, L, 8), dtype=torch.float32, device=torch.device("cpu"))
    steps = [layer.step(x[:, part], cache, 0, part) for part in SCHEDULE.slices]
    torch.testing.assert_close(torch.cat(steps, dim=1), layer(x), atol=1e-5, rtol=1e-5)


def test_mask_lets_a_scale_see_itself_and_coarser_ones() -> None:
    mask = scale_mask(ScaleSchedule.square(1, 2))
    assert mask.tolist() == [[True] + [False] * 4] + [[True] * 5] * 4


def test_temperature_has_no_gradient_above_its_limit() -> None:
    layer = attention(32)
    with torch.no_grad():
        layer.log_scale_H11.fill_(5.0)
    layer(torch.randn(1, L, 24)).sum().backward()
    assert torch.count_nonzero(layer.log_scale_H11.grad) == 0  # type: ignore[arg-type]


def test_width_must_be_a_multiple_of_heads() -> None:
    with pytest.raises(ValueError, match=r"width 10 .* 3 heads"):
        SelfAttention(10, 3, SCHEDULE)
