"""The codebook: nearest codes, k-means start, moving averages, restart of dead codes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from varscale.codes import CodeSpec
from varscale.tokenizers import vq
from varscale.tokenizers.vq import VectorQuantizer, kmeans, nearest_code, step_generator


@pytest.fixture
def clusters() -> tuple[Tensor, Tensor]:
    """600 features around 6 far centres, and the centres."""
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.eye(6)
    return centres.repeat(100, 1) + 0.1 * torch.randn(600, 6, generator=generator), centres


def test_nearest_equals_distances_and_takes_the_first_on_a_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    features, codebook = torch.randn(500, 8), torch.randn(40, 8)
    wanted = torch.cdist(features.double(), codebook.double()).argmin(1)
    assert torch.equal(nearest_code(features, codebook), wanted)
    monkeypatch.setattr(vq, "DISTANCES_AT_ONCE", 7 * 40)
    assert torch.equal(nearest_code(features, codebook), wanted)
    assert nearest_code(torch.zeros(1, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0]])).item() == 0


def test_shapes_and_code() -> None:
    quantizer = VectorQuantizer(16, 4)
    ids = quantizer.nearest(torch.randn(2, 4, 3, 5))
    assert ids.shape == (2, 3, 5) and quantizer.codes(ids).shape == (2, 4, 3, 5)
    assert quantizer.code == CodeSpec.index(16)
    assert torch.equal(quantizer.codes(ids)[1, :, 2, 4], quantizer.codebook[ids[1, 2, 4]])
    with pytest.raises(ValueError, match="unknown codebook update 'momentum'"):
        VectorQuantizer(16, 4, update="momentum")  # type: ignore[arg-type]


def test_kmeans_finds_clusters(clusters: tuple[Tensor, Tensor]) -> None:
    features, centres = clusters
    best = min(
        torch.cdist(centres, kmeans(features, 6, step_generator(seed, 0))).min(1).values.max() for seed in range(20)
    )
    assert best < 0.1
    assert kmeans(features[:3], 6, step_generator(0, 0)).shape == (6, 6)  # fewer features than codes


def test_start_happens_once_and_by_seed(clusters: tuple[Tensor, Tensor]) -> None:
    features, _ = clusters
    first, second, other = (VectorQuantizer(6, 6) for _ in range(3))
    first.start(features, seed=1)
    second.start(features, seed=1)
    other.start(features, seed=2)
    assert torch.equal(first.codebook, second.codebook) and not torch.equal(first.codebook, other.codebook)
    first.start(features + 1, seed=1)
    assert torch.equal(first.codebook, second.codebook)
    plain = VectorQuantizer(6, 6, kmeans_start=False)
    before = plain.codebook.clone()
    plain.start(features, seed=1)
    assert torch.equal(plain.codebook, before)


def test_moving_averages_reach_the_means(clusters: tuple[Tensor, Tensor]) -> None:
    features, centres = clusters
    quantizer = VectorQuantizer(6, 6, update="ema", decay=0.8, restart_below=None, kmeans_start=False)
    assert not quantizer.codebook.requires_grad
    with torch.no_grad():
        quantizer.codebook.copy_(0.6 * centres)
        quantizer.moment.copy_(0.6 * centres / 6)
    for step in range(40):
        quantizer.observe(features, nearest_code(features, quantizer.codebook), seed=0)
        if step == 0:  # one step: 0.8 of the old place, 0.2 of the mean
            means = features.view(100, 6, 6).mean(0)
            torch.testing.assert_close(quantizer.codebook.detach(), 0.8 * 0.6 * centres + 0.2 * means)
    torch.testing.assert_close(quantizer.codebook.detach(), means, rtol=0, atol=1e-2)
    torch.testing.assert_close(quantizer.mass, torch.full((6,), 1 / 6))


def test_a_code_without_features_keeps_its_place(clusters: tuple[Tensor, Tensor]) -> None:
    features, centres = clusters
    quantizer = VectorQuantizer(7, 6, update="ema", restart_below=None, kmeans_start=False)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.cat([centres, torch.full((1, 6), -50.0)]))
        quantizer.moment.copy_(quantizer.codebook / 7)
    for _ in range(3000):  # the mass underflows to zero
        quantizer.observe(features, torch.arange(6).repeat(100), seed=0)
    assert torch.equal(quantizer.codebook[6], torch.full((6,), -50.0)) and torch.isfinite(quantizer.codebook).all()


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_dead_codes_restart_at_features_of_the_batch(update: str, clusters: tuple[Tensor, Tensor]) -> None:
    features, centres = clusters

    def trained(seed: int) -> tuple[VectorQuantizer, int, int]:
        torch.manual_seed(0)
        quantizer = VectorQuantizer(6, 6, update=update, decay=0.5, kmeans_start=False)  # type: ignore[arg-type]
        with torch.no_grad():
            quantizer.codebook[0] = centres[0]
            quantizer.codebook[1:] = -100.0 * torch.eye(6)[1:]
            if update == "ema":
                quantizer.moment.copy_(quantizer.codebook / 6)
        restarts, at_first = 0, 0
        for step in range(30):
            restarted = quantizer.observe(features, nearest_code(features, quantizer.codebook), seed)
            at_first += restarted if step < 4 else 0
            restarts += restarted
            if restarted and update == "gradient":
                same = (quantizer.codebook.detach()[:, None] == features).all(2).any(1)
                assert same.sum() >= restarted
        return quantizer, restarts, at_first

    quantizer, restarts, at_first = trained(seed=3)
    assert at_first == 0  # 0.5^5 < 3 %: not before the mass has decayed
    assert restarts >= 5
    assert len(nearest_code(features, quantizer.codebook).unique()) >= 4
    again, _, _ = trained(seed=3)
    other, _, _ = trained(seed=4)
    assert torch.equal(quantizer.codebook, again.codebook) and not torch.equal(quantizer.codebook, other.codebook)


def test_no_restart_when_switched_off(clusters: tuple[Tensor, Tensor]) -> None:
    features, _ = clusters
    quantizer = VectorQuantizer(6, 6, decay=0.1, restart_below=None)
    before = quantizer.codebook.clone()
    assert sum(quantizer.observe(features, torch.zeros(600, dtype=torch.int64), 0) for _ in range(50)) == 0
    assert torch.equal(quantizer.codebook, before)


def test_random_choices_are_a_function_of_seed_and_step() -> None:
    draws = {(s, t): torch.randperm(1000, generator=step_generator(s, t)).tolist() for s in (0, 1) for t in (0, 1)}
    assert draws[0, 1] == torch.randperm(1000, generator=step_generator(0, 1)).tolist()
    assert len({tuple(draw) for draw in draws.values()}) == 4
