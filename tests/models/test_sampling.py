"""Sampling: cached steps equal the full forward, the rules for logits, one stream an image."""

from __future__ import annotations

import pytest
import torch

from varscale.codes import CodeSpec
from varscale.models.sampling import Sampler, sample
from varscale.models.shape import ladder_rule
from varscale.models.var import VAR
from varscale.schedule import ScaleSchedule
from varscale.tokenizers.residual import ResidualPyramid
from varscale.tokenizers.vq import VectorQuantizer

SCHEDULE = ScaleSchedule.square(1, 2, 3, 4)
V, C, CLASSES = 32, 6, 5


@pytest.fixture(scope="module")
def pyramid() -> ResidualPyramid:
    torch.manual_seed(2)
    return ResidualPyramid(VectorQuantizer(V, C), SCHEDULE)


@pytest.fixture(scope="module", params=[False, True])
def model(request: pytest.FixtureRequest) -> VAR:
    torch.manual_seed(0)
    var = VAR(
        ladder_rule(32), schedule=SCHEDULE, code=CodeSpec.index(V), latent_channels=C, num_classes=CLASSES,
        shared_adaln=request.param,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in var.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return var.eval()


def test_cached_sampling_equals_the_full_forward(model: VAR, pyramid: ResidualPyramid) -> None:
    """Greedy ids are the arg-max of the guided logits that teacher forcing gives for them."""
    labels = torch.tensor([0, 3, 4])
    sampler = Sampler(guidance=1.5, top_k=1)
    ids = sample(model, pyramid, labels, sampler=sampler, seed=0)
    with torch.no_grad():
        inputs = pyramid.inputs(ids)
        cond = model(inputs, labels)
        uncond = model(inputs, torch.full_like(labels, CLASSES))
    for k, part in enumerate(SCHEDULE.slices):
        guided = sampler.guide(cond[:, part], uncond[:, part], k, SCHEDULE.num_scales)
        assert torch.equal(guided.argmax(-1), ids[:, part])


def test_an_image_does_not_change_with_its_batch(model: VAR, pyramid: ResidualPyramid) -> None:
    sampler = Sampler(guidance=0.0)
    labels = torch.tensor([0, 1, 2, 3])
    together = sample(model, pyramid, labels, sampler=sampler, seed=7)
    alone = sample(model, pyramid, labels[2:3], sampler=sampler, seed=7, images=[2])
    assert torch.equal(together[2:3], alone)
    assert not torch.equal(together, sample(model, pyramid, labels, sampler=sampler, seed=8))


def test_guidance_rises_from_the_coarsest_scale() -> None:
    sampler, cond, uncond = Sampler(guidance=2.0), torch.tensor([1.0]), torch.tensor([0.5])
    assert [sampler.guide(cond, uncond, k, 3).item() for k in range(3)] == [1.0, 1.5, 2.0]


def test_top_k_keeps_ties_and_top_p_keeps_the_largest() -> None:
    logits = torch.tensor([[[0.0, 2.0, 2.0, 1.0]]])
    assert (Sampler(top_k=1).restrict(logits) > -torch.inf).tolist() == [[[False, True, True, False]]]
    peaked = torch.tensor([[[0.0, 9.0, 1.0, 2.0]]])
    assert (Sampler(top_p=0.5).restrict(peaked) > -torch.inf).tolist() == [[[False, True, False, False]]]


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.0, 0.5, 0.3, 0.2, 0.0])
    uniform = torch.rand(1, 20_000, generator=torch.Generator().manual_seed(0))
    ids = Sampler().draw(probabilities.log().expand(1, 20_000, 5), uniform)
    shares = torch.bincount(ids.flatten(), minlength=5) / 20_000
    torch.testing.assert_close(shares, probabilities, atol=0.02, rtol=0)
    assert shares[0] == 0 and shares[4] == 0


def test_the_end_of_the_distribution_is_never_passed() -> None:
    logits = torch.tensor([[[1.0, 0.0, -torch.inf, -torch.inf]]])
    assert Sampler().draw(logits, torch.tensor([[1.0 - 2**-24]])).item() == 1


def test_refuses(model: VAR, pyramid: ResidualPyramid) -> None:
    with pytest.raises(ValueError, match=r"0\.\.5"):
        sample(model, pyramid, torch.tensor([6]), sampler=Sampler(), seed=0)
    with pytest.raises(ValueError, match="temperature"):
        Sampler(temperature=0.0)
