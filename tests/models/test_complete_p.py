"""A model that continues a base shape: its initialisation, its branches, and what others are given of it."""

from __future__ import annotations

import pytest
import torch

from varscale.codes import CodeSpec
from varscale.models.pretrained import load_released_var, released_state_dict
from varscale.models.sampling import Sampler, generate
from varscale.models.shape import Shape
from varscale.models.storage import architecture, build
from varscale.models.var import VAR
from varscale.schedule import ScaleSchedule
from varscale.tokenizers.residual import ResidualPyramid
from varscale.tokenizers.vq import VectorQuantizer

SCHEDULE = ScaleSchedule.square(1, 2, 3)


def model(width: int = 64, depth: int = 4, *, shared_adaln: bool = False, **base: int) -> VAR:
    torch.manual_seed(0)
    return VAR(
        Shape(depth, width, width // 16, 0.0), schedule=SCHEDULE, code=CodeSpec.index(16), latent_channels=4,
        num_classes=3, shared_adaln=shared_adaln, **base,
    ).eval()  # fmt: skip


@torch.no_grad()
def logits(var: VAR) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(2, SCHEDULE.num_tokens - 1, 4, generator=generator)
    return var(inputs, torch.tensor([0, 2]))


def test_the_base_itself_is_as_without_a_base() -> None:
    plain, base = model(), model(base_width=64, base_depth=4)
    for (name, ours), (_, theirs) in zip(plain.state_dict().items(), base.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name
    assert torch.equal(logits(plain), logits(base))


def test_initial_spread_by_width_and_depth() -> None:
    """Embeddings keep the spread of the base, hidden matrices go as 1 / sqrt(width), the head as 1 / width."""
    small, large = model(16, 2), model(256, 8, base_width=16, base_depth=2)
    ratios = {
        "word_embed.weight": 1.0, "class_embed.weight": 1.0, "level_embed.weight": 1.0, "position_1LD": 1.0,
        "start_1ND": 1.0, "blocks.0.attention.qkv.weight": 0.25, "blocks.0.attention.proj.weight": 0.25,
        "blocks.0.feed_forward.down.weight": 0.25, "blocks.0.norms.linear.weight": 0.25, "head.weight": 1 / 16,
    }  # fmt: skip
    found = {name: (large.get_parameter(name).std() / small.get_parameter(name).std()).item() for name in ratios}
    assert found == pytest.approx(ratios, rel=0.25)


@pytest.mark.parametrize("shared_adaln", [False, True])
def test_branches_are_scaled_and_exported(shared_adaln: bool) -> None:
    """The released names know no factor on the branches: it goes into the weights of the gates, and nothing changes."""
    var = model(shared_adaln=shared_adaln, base_width=64, base_depth=1)
    with torch.no_grad():
        for parameter in var.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    unscaled = build(architecture(var) | {"base_width": None, "base_depth": None})
    unscaled.load_state_dict(var.state_dict(), assign=True)
    assert (logits(var) - logits(unscaled)).abs().max() > 0.1
    released = load_released_var(released_state_dict(var), SCHEDULE)
    assert released.base_depth is None
    torch.testing.assert_close(logits(released), logits(var), atol=1e-5, rtol=1e-5)
    pyramid = ResidualPyramid(VectorQuantizer(16, 4), SCHEDULE)
    drawn = [generate(m, pyramid, torch.tensor([0, 2]), sampler=Sampler(top_k=1), seed=0) for m in (var, released)]
    assert torch.equal(drawn[0].ids_BL, drawn[1].ids_BL)


def test_the_architecture_holds_the_base() -> None:
    var = model(base_width=32, base_depth=2)
    again = build(architecture(var))
    again.load_state_dict(var.state_dict(), assign=True)
    assert torch.equal(logits(again.eval()), logits(var))
    assert (again.width_multiplier, again.depth_multiplier) == (2.0, 2.0)


@pytest.mark.parametrize("base", [{"base_width": 16}, {"base_depth": 2}, {"base_width": 0, "base_depth": 2}], ids=str)
def test_refuses_half_a_base(base: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"model\.base_width is .* give both"):
        model(**base)
