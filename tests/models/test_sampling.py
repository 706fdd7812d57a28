"""Sampling: the released ids, cached steps equal the full forward, the rules for logits, one stream an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from varscale.codes import CodeSpec
from varscale.data.counter import uniform
from varscale.models.noise import gumbel
from varscale.models.pretrained import load_released_var
from varscale.models.sampling import SEGMENT, Sampler, draw, generate, sample, smooth_codes
from varscale.models.shape import ladder_rule
from varscale.models.var import VAR
from varscale.schedule import VAR_256, ScaleSchedule
from varscale.tokenizers.pretrained import load_released_tokenizer
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


@pytest.mark.golden
@pytest.mark.parametrize("name", ["var_d2_256", "var_d3_256_shared_adaln"])
def test_released_samples(test_data: Path, name: str) -> None:
    """Greedy ids and image of the released code on its own random weights."""
    golden = test_data / "golden"
    tokenizer = load_released_tokenizer(load_file(golden / "var_d2_256" / "vae.safetensors"))
    model = load_released_var(load_file(golden / name / "var.safetensors"), VAR_256).eval()
    io = load_file(golden / name / "io.safetensors")
    wanted = torch.cat([io[f"sample_idx_{k}"].flatten(1) for k in range(10)], dim=1)
    drawn = generate(model, tokenizer.pyramid, io["labels"], sampler=Sampler(guidance=1.5, top_k=1), seed=0)
    assert torch.equal(drawn.ids_BL, wanted)
    if "sample_img" in io:
        with torch.no_grad():
            image = (tokenizer.decode_latent(drawn.latent_BCHW) + 1) / 2
        torch.testing.assert_close(image, io["sample_img"], atol=1e-4, rtol=0)


def test_cached_sampling_equals_the_full_forward(model: VAR, pyramid: ResidualPyramid) -> None:
    """Greedy ids are the arg-max of the guided logits that teacher forcing gives for them."""
    labels = torch.tensor([0, 3, 4])
    sampler = Sampler(guidance=1.5, top_k=1)
    drawn = generate(model, pyramid, labels, sampler=sampler, seed=0)
    ids = drawn.ids_BL
    with torch.no_grad():
        inputs = pyramid.inputs(ids)
        cond = model(inputs, labels)
        uncond = model(inputs, torch.full_like(labels, CLASSES))
    for k, part in enumerate(SCHEDULE.slices):
        guided = sampler.guide(cond[:, part], uncond[:, part], k, SCHEDULE.num_scales)
        assert torch.equal(guided.argmax(-1), ids[:, part])
    torch.testing.assert_close(drawn.latent_BCHW, pyramid.reconstruct(ids))


@pytest.mark.parametrize(
    "sampler",
    [Sampler(), Sampler(top_k=7, top_p=0.9), Sampler(top_p=0.8, smooth=True), Sampler(top_k=9, smooth=True)],
    ids=["all", "top-k-top-p", "smooth-top-p", "smooth-top-k"],
)
def test_an_image_does_not_change_with_its_batch(model: VAR, pyramid: ResidualPyramid, sampler: Sampler) -> None:
    labels = torch.tensor([0, 1, 2, 3, 4])
    together = generate(model, pyramid, labels, sampler=sampler, seed=7)
    alone = generate(model, pyramid, labels[2:3], sampler=sampler, seed=7, images=[2])
    assert torch.equal(together.ids_BL[2:3], alone.ids_BL)
    torch.testing.assert_close(together.latent_BCHW[2:3], alone.latent_BCHW, atol=1e-3, rtol=1e-3)
    assert not torch.equal(together.ids_BL, sample(model, pyramid, labels, sampler=sampler, seed=8))


def test_a_bf16_cache_holds_bf16(model: VAR, pyramid: ResidualPyramid) -> None:
    labels = torch.tensor([0, 1])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        prepared = model.prepare(labels)
        model.step(0, prepared.start_BND, prepared)
        assert prepared.cache.keys[0].dtype == prepared.positions_1LD.dtype == torch.bfloat16
        drawn = generate(model, pyramid, labels, sampler=Sampler(), seed=0)
    assert drawn.latent_BCHW.dtype == torch.float32 and bool(drawn.latent_BCHW.isfinite().all())


def test_guidance_rises_from_the_coarsest_scale() -> None:
    cond, uncond = torch.tensor([1.0]), torch.tensor([0.5])
    assert [Sampler(guidance=2.0).guide(cond, uncond, k, 3).item() for k in range(3)] == [1.0, 1.5, 2.0]
    own = Sampler(guidance=(0.0, 4.0, 1.0))
    assert [own.guide(cond, uncond, k, 3).item() for k in range(3)] == [1.0, 3.0, 1.5]


def test_settings_per_scale_act_on_their_scale(model: VAR, pyramid: ResidualPyramid) -> None:
    labels = torch.tensor([0, 1, 2])
    ramp = sample(model, pyramid, labels, sampler=Sampler(guidance=3.0, temperature=0.7), seed=1)
    same = Sampler(guidance=(0.0, 1.0, 2.0, 3.0), temperature=(0.7, 0.7, 0.7, 0.7))
    assert torch.equal(sample(model, pyramid, labels, sampler=same, seed=1), ramp)
    last = Sampler(guidance=(0.0, 1.0, 2.0, 3.0), temperature=(0.7, 0.7, 0.7, 9.0))
    changed = sample(model, pyramid, labels, sampler=last, seed=1) != ramp
    assert not changed[:, : SCHEDULE.slices[-1].start].any() and changed[:, SCHEDULE.slices[-1]].any()


def released_filter(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """The filter of the released code, written out: which logits stay."""
    keep = torch.ones_like(logits, dtype=torch.bool)
    if top_k:
        keep = logits >= logits.topk(top_k, dim=-1).values.amin(-1, keepdim=True)
    if top_p:
        ascending, order = logits.masked_fill(~keep, -torch.inf).sort(dim=-1)
        drop = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        drop[..., -1] = False
        keep &= ~drop.scatter(-1, order, drop)
    return keep


def least(logits: Tensor, keep: Tensor) -> Tensor:
    """The smallest logit that stays."""
    return logits.masked_fill(~keep, torch.inf).amin(-1)


@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.96])
@pytest.mark.parametrize("top_k", [0, 1, 5, 60, V])
@pytest.mark.parametrize("ties", [False, True])
def test_the_candidates_are_those_of_the_released_filter(top_k: int, top_p: float, ties: bool) -> None:
    logits = torch.randn(3, 50, V, generator=torch.Generator().manual_seed(0)) * 2
    if ties:
        logits = logits.round()
    values, ids = Sampler(top_k=min(top_k, V), top_p=top_p).candidates(logits, 0)
    stays = values > -torch.inf
    kept = stays if ids is None else torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, stays)
    wanted = released_filter(logits, min(top_k, V), top_p)
    if ties and top_p:  # how many of several equal logits stay is defined, which of them is not
        assert torch.equal(kept.sum(-1), wanted.sum(-1))
        assert torch.equal(least(logits, kept), least(logits, wanted))
    else:
        assert torch.equal(kept, wanted)
    if ids is not None:
        assert torch.equal(values[stays], logits.gather(-1, ids)[stays])


@pytest.mark.parametrize("codes", [5, 3 * SEGMENT])
def test_draws_follow_the_distribution(codes: int) -> None:
    probabilities = torch.zeros(codes)
    probabilities[[1, 2, codes - 2]] = torch.tensor([0.5, 0.3, 0.2])
    rng = torch.Generator().manual_seed(0)
    places = draw(probabilities.log().expand(1, 20_000, codes), torch.rand(1, 20_000, generator=rng))
    shares = torch.bincount(places.flatten(), minlength=codes) / 20_000
    torch.testing.assert_close(shares, probabilities, atol=0.02, rtol=0)
    assert set(places.flatten().tolist()) == {1, 2, codes - 2}


def test_a_draw_inverts_the_cumulative_distribution() -> None:
    rng = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 300, 4 * SEGMENT, generator=rng) * 3
    uniform_BN = torch.rand(2, 300, generator=rng, dtype=torch.float64)
    cumulative = logits.double().softmax(-1).cumsum(-1)
    wanted = torch.searchsorted(cumulative, uniform_BN.unsqueeze(-1)).squeeze(-1)
    assert (draw(logits, uniform_BN) == wanted).float().mean() > 0.995  # the rest lie on an edge


@pytest.mark.parametrize("codes", [4, 2 * SEGMENT])
@pytest.mark.parametrize("end", [0.0, 1.0 - 2**-53])
def test_no_end_of_the_distribution_gives_an_impossible_code(codes: int, end: float) -> None:
    logits = torch.full((1, 200, codes), -torch.inf)
    logits[..., 1:3] = torch.randn(1, 200, 2, generator=torch.Generator().manual_seed(0))
    places = draw(logits, torch.full((1, 200), end, dtype=torch.float64))
    assert set(places.flatten().tolist()) == {2 if end else 1}


def test_gumbel_noise_is_that_of_the_counter() -> None:
    images, tokens = np.array([[3], [4_000_000]]), np.arange(5, 8)
    codes = torch.tensor([0, 1, 4095, 7])
    noise = gumbel(11, images, tokens, codes)
    exact = uniform(11, images[..., None], tokens[:, None], codes.numpy())
    expected = -np.log(-np.log((np.floor(exact * 2**24) + 0.5) / 2**24))
    np.testing.assert_allclose(noise.numpy(), expected, rtol=1e-5, atol=1e-5)
    chosen = gumbel(11, images, tokens, codes[[2, 0]].expand(2, 3, 2))
    assert torch.equal(chosen, noise[..., [2, 0]])


def test_smooth_mixes_the_candidates() -> None:
    codebook = torch.eye(4)
    logits, ids = torch.tensor([[[2.0, 1.0, -torch.inf]]]), torch.tensor([[[3, 0, 1]]])
    mixed = smooth_codes(logits, ids, torch.zeros(1, 1, 3), codebook, r=1.0)
    tau = 0.27 * 0.05
    weight = 1 / (1 + np.exp(-2.0 / tau))
    torch.testing.assert_close(mixed, torch.tensor([[[1 - weight, 0.0, 0.0, weight]]], dtype=torch.float32))
    flat = smooth_codes(torch.zeros(1, 1, 4), None, torch.zeros(1, 1, 4), codebook, r=0.0)
    torch.testing.assert_close(flat, torch.full((1, 1, 4), 0.25))


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (Sampler(top_k=V + 1), f"top_k is {V + 1}, but the codebook has {V} codes; use at most"),
        (Sampler(guidance=(1.0, 2.0)), "guidance has 2 values, but the model has 4 scales"),
        (Sampler(temperature=(1.0,) * 5), "temperature has 5 values, but the model has 4 scales"),
    ],
)
def test_refuses_what_does_not_fit_the_model(
    model: VAR, pyramid: ResidualPyramid, sampler: Sampler, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sample(model, pyramid, torch.tensor([1]), sampler=sampler, seed=0)


@pytest.mark.parametrize("label", [-1, CLASSES + 1])
def test_refuses_a_class_out_of_range(model: VAR, pyramid: ResidualPyramid, label: int) -> None:
    with pytest.raises(ValueError, match=r"classes of 0\.\.4, or 5 for the null class"):
        sample(model, pyramid, torch.tensor([label]), sampler=Sampler(), seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": (1.0, 0.0)}, "temperature is"),
        ({"guidance": -1.0}, "guidance is -1.0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
    ],
)
def test_refuses_values_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(**settings)  # type: ignore[arg-type]
