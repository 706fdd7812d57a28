"""Attention maps are the weights the model used; shares add up; queries and blocks that do not exist are refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from varscale.codes import CodeSpec
from varscale.evaluation.attention_maps import Query, attention_maps, attention_shares, uniform_shares
from varscale.models.shape import Shape
from varscale.models.var import VAR
from varscale.nn.attention import SelfAttention, scale_mask
from varscale.schedule import ScaleSchedule
from varscale.tokenizers.tokens import TokenBatch

SCHEDULE = ScaleSchedule.square(1, 2, 3, 4)
L, BLOCKS, HEADS = SCHEDULE.num_tokens, (0, 2), 2


def model(l2_norm: bool = True) -> VAR:
    torch.manual_seed(0)
    made = VAR(
        Shape(depth=3, width=16, heads=HEADS, drop_path=0.5), schedule=SCHEDULE, code=CodeSpec.index(8),
        latent_channels=4, num_classes=3, l2_norm=l2_norm,
    )  # fmt: skip
    with torch.no_grad():  # at initialisation all weights are nearly equal
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


def tokens() -> TokenBatch:
    rng = torch.Generator().manual_seed(1)
    inputs = torch.randn(2, L - 1, 4, generator=rng)
    return TokenBatch(torch.randint(8, (2, L), generator=rng), torch.tensor([0, 3]), inputs)


def dense_weights(var: VAR, batch: TokenBatch) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Of every block: masked softmax over all L keys (B, H, L, L), the values, and the output of its attention."""
    weights, values, outputs = [], [], []

    def hook(attention: SelfAttention, arguments: tuple[Tensor], out: Tensor) -> None:
        q, k, v = attention.project(arguments[0])
        scores = q @ k.transpose(-1, -2) * attention.scale
        weights.append(scores.masked_fill(~scale_mask(SCHEDULE), -torch.inf).softmax(-1))
        values.append(v)
        outputs.append(out)

    handles = [block.attention.register_forward_hook(hook) for block in var.blocks]
    with torch.no_grad():
        var.eval()(batch.inputs_BNC, batch.labels_B)
    for handle in handles:
        handle.remove()
    return weights, values, outputs


@pytest.mark.parametrize("l2_norm", [True, False])
def test_maps_are_the_weights_that_the_model_used(l2_norm: bool) -> None:
    var, batch = model(l2_norm), tokens()
    weights, values, outputs = dense_weights(var, batch)
    for block, out, w, v in zip(var.blocks, outputs, weights, values, strict=True):
        torch.testing.assert_close(block.attention.merge(w @ v), out, atol=1e-5, rtol=1e-5)
    queries = [
        Query(k, row, column) for k, (_, h, w) in enumerate(SCHEDULE.scales) for row in range(h) for column in range(w)
    ]
    maps = attention_maps(var, batch, queries, BLOCKS)
    assert maps.shape == (2, L, len(BLOCKS), HEADS, L)
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))
    for m, block in enumerate(BLOCKS):
        torch.testing.assert_close(maps[:, :, m].transpose(1, 2), weights[block], atol=1e-6, rtol=1e-5)
    assert maps.std(dim=1).max() > 0.1  # the queries differ, so an index that is off by one would show


def test_shares_are_sums_of_the_weights() -> None:
    var, batch = model(), tokens()
    shares = attention_shares(var, batch, BLOCKS)
    weights, _, _ = dense_weights(var, batch)
    for m, block in enumerate(BLOCKS):
        for a, queries in enumerate(SCHEDULE.slices):
            for b, keys in enumerate(SCHEDULE.slices):
                expected = weights[block][:, :, queries, keys].sum(-1).mean((0, 2))
                torch.testing.assert_close(shares[m, :, a, b], expected, atol=1e-6, rtol=1e-5)


def test_uniform_attention_gives_a_scale_its_share_of_the_tokens() -> None:
    var, batch = model(l2_norm=False), tokens()
    with torch.no_grad():
        for block in var.blocks:
            block.attention.qkv.weight[: 2 * 16].zero_()
            block.attention.q_bias.zero_()
    uniform = uniform_shares(SCHEDULE)
    torch.testing.assert_close(uniform[2], torch.tensor([1, 4, 9, 0]) / 14)
    torch.testing.assert_close(attention_shares(var, batch, (1,))[0], uniform.expand(HEADS, -1, -1))


def test_looking_leaves_the_model_as_it_was() -> None:
    var = model().train()
    first = attention_shares(var, tokens(), BLOCKS)
    assert var.training and not any(block.attention._forward_pre_hooks for block in var.blocks)
    assert torch.equal(first, attention_shares(var, tokens(), BLOCKS))  # no drop path, though it is at 0.5


def test_a_query_keeps_its_place_over_the_scales() -> None:
    query = Query(3, 3, 1)
    assert [query.at_scale(k, SCHEDULE) for k in range(4)] == [Query(0, 0, 0), Query(1, 1, 0), Query(2, 2, 1), query]
    assert Query(1, 0, 1).token(SCHEDULE) == 2


@pytest.mark.parametrize(
    ("query", "blocks", "message"),
    [
        (Query(4, 0, 0), (0,), "scales of 1-2-3-4 are 0 to 3"),
        (Query(-1, 0, 0), (0,), "scales of 1-2-3-4 are 0 to 3"),
        (Query(2, 3, 0), (0,), "rows 0 to 2 and columns 0 to 2"),
        (Query(2, 0, -1), (0,), "rows 0 to 2"),
        (Query(0, 0, 0), (3,), "blocks of this model are 0 to 2"),
    ],
)
def test_what_does_not_exist_is_refused(query: Query, blocks: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention_maps(model(), tokens(), [query], blocks)
