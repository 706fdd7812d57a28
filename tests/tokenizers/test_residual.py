"""The residual pyramid: refiners by scale, resizing, and that every path through it is the same arithmetic."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from varscale.schedule import ScaleSchedule
from varscale.tokenizers.precision import full_float32
from varscale.tokenizers.residual import ResidualPyramid, refiner_of_scale
from varscale.tokenizers.resize import resize, resize_matrix
from varscale.tokenizers.vq import VectorQuantizer


def pyramid_of(*sides: int, refiners: int | None = 4, ratio: float = 0.5) -> ResidualPyramid:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(32, 8)
    return ResidualPyramid(quantizer, ScaleSchedule.square(*sides), refiners=refiners, refine_ratio=ratio)


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(3, 8, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("num_scales", "wanted"),
    [
        (4, "0123"),
        (5, "01223"),
        (6, "001233"),
        (7, "0012233"),
        (10, "0011122333"),
        (14, "00011112222333"),
    ],
)
def test_refiner_table_of_the_release(num_scales: int, wanted: str) -> None:
    assert "".join(map(str, refiner_of_scale(num_scales, 4))) == wanted


def test_refiners_shared_by_one_all_or_none() -> None:
    assert pyramid_of(1, 2, 8, refiners=1).refiner_of_scale == (0, 0, 0)
    assert pyramid_of(1, 2, 8, refiners=None).refiner_of_scale == (0, 1, 2)
    assert len(pyramid_of(1, 2, 8, refiners=None).refiners) == 3
    with pytest.raises(ValueError, match="0 refiners; use at least 1"):
        pyramid_of(1, 8, refiners=0)


@pytest.mark.parametrize("grid", [(8, 8), (16, 16), (6, 10)])
@pytest.mark.parametrize("scale", [(1, 1), (2, 3), (5, 5)])
def test_matrices_equal_interpolate(grid: tuple[int, int], scale: tuple[int, int]) -> None:
    fine, coarse = torch.randn(2, 3, *grid), torch.randn(2, 3, *scale)
    area = resize(fine, resize_matrix(grid, scale, "area"), scale)
    bicubic = resize(coarse, resize_matrix(scale, grid, "bicubic"), grid)
    torch.testing.assert_close(area, F.interpolate(fine, size=scale, mode="area"), rtol=0, atol=2e-6)
    torch.testing.assert_close(bicubic, F.interpolate(coarse, size=grid, mode="bicubic"), rtol=0, atol=5e-6)


def test_matrices_are_not_stored() -> None:
    assert not [name for name in pyramid_of(1, 2, 8).state_dict() if "area" in name or "bicubic" in name]


def test_encode_training_and_decoding_agree(latents: Tensor) -> None:
    pyramid = pyramid_of(1, 2, 3, 4, 6, 8)
    ids = pyramid.encode(latents)
    assert ids.shape == (3, 130) and ids.dtype == torch.int64
    out = pyramid(latents)
    assert torch.equal(out.ids, ids)
    torch.testing.assert_close(out.latent, pyramid.reconstruct(ids), rtol=0, atol=1e-5)
    assert out.residuals.shape == (3, 130, 8) and not out.residuals.requires_grad


def test_inputs_are_what_sampling_would_feed(latents: Tensor) -> None:
    pyramid = pyramid_of(1, 2, 3, 4, 6, 8)
    ids = pyramid.encode(latents)
    inputs = pyramid.inputs(ids)
    assert inputs.shape == (3, 129, 8) and inputs.dtype == torch.float32 and not inputs.requires_grad
    f_hat = torch.zeros_like(latents)
    for k, (part, grid) in enumerate(zip(pyramid.schedule.slices, pyramid.grids, strict=True)):
        if k:
            fed = inputs[:, part.start - 1 : part.stop - 1]
            assert torch.equal(fed, pyramid.next_input(f_hat, k - 1).flatten(2).transpose(1, 2))
        f_hat = pyramid.add(f_hat, pyramid.quantizer.codes(ids[:, part].unflatten(1, grid)), k)
    assert torch.equal(f_hat, pyramid.reconstruct(ids))


def test_inputs_ignore_the_last_scale_and_what_comes_later(latents: Tensor) -> None:
    pyramid = pyramid_of(1, 2, 4, 8)
    ids = pyramid.encode(latents)
    changed = ids.clone()
    changed[:, pyramid.schedule.slices[2]] = (changed[:, pyramid.schedule.slices[2]] + 1) % 32
    before, after = pyramid.inputs(ids), pyramid.inputs(changed)
    assert torch.equal(before[:, : 4 + 16], after[:, : 4 + 16])  # inputs of scales 1 and 2 come from scales 0 and 1
    assert not torch.allclose(before[:, 20:], after[:, 20:])
    changed = ids.clone()
    changed[:, pyramid.schedule.slices[3]] = 0
    assert torch.equal(before, pyramid.inputs(changed))


def test_one_scale_is_plain_quantisation(latents: Tensor) -> None:
    pyramid = pyramid_of(8, ratio=0.0)
    ids = pyramid.encode(latents)
    distances = torch.cdist(latents.permute(0, 2, 3, 1).reshape(-1, 8).double(), pyramid.quantizer.codebook.double())
    assert torch.equal(ids.flatten(), distances.argmin(1))
    assert torch.equal(pyramid.reconstruct(ids), pyramid.quantizer.codes(ids.view(3, 8, 8)).detach())
    assert pyramid.inputs(ids).shape == (3, 0, 8)


def test_rectangular_maps() -> None:
    pyramid = ResidualPyramid(VectorQuantizer(16, 4), ScaleSchedule.parse("1x1-2x3-4x6"))
    ids = pyramid.encode(torch.randn(2, 4, 4, 6))
    assert ids.shape == (2, 31) and pyramid.reconstruct(ids).shape == (2, 4, 4, 6)


def test_gradients_straight_through_and_commitment(latents: Tensor) -> None:
    pyramid = pyramid_of(1, 2, 4, 8)
    f = latents.clone().requires_grad_()
    out = pyramid(f)
    weights = torch.randn(out.latent.shape)
    (out.vq_loss + (out.latent * weights).sum()).backward()
    sums = list(pyramid.partial_sums(out.ids))
    commitment = sum((latents - s.detach()) for s in sums) * 2 * 0.25 / (4 * latents.numel())
    torch.testing.assert_close(f.grad, weights + commitment, rtol=1e-4, atol=1e-6)
    assert pyramid.quantizer.codebook.grad is not None and pyramid.quantizer.codebook.grad.abs().sum() > 0
    assert all(phi.conv.weight.grad.abs().sum() > 0 for phi in pyramid.refiners)


def test_ids_do_not_depend_on_autocast_or_fast_float32(latents: Tensor) -> None:
    pyramid = pyramid_of(1, 2, 3, 4, 6, 8)
    ids, inputs = pyramid.encode(latents), pyramid.inputs(pyramid.encode(latents))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(pyramid.encode(latents), ids)
            assert torch.equal(pyramid.inputs(ids), inputs)
            assert pyramid(latents).latent.dtype == torch.float32
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_full_float32_restores_after_an_error() -> None:
    before = [torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision]
    with pytest.raises(KeyError), full_float32("cpu"):
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        raise KeyError
    assert [torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision] == before


@pytest.mark.gpu
def test_ids_on_a_gpu_equal_those_on_the_cpu(latents: Tensor) -> None:
    pyramid = pyramid_of(1, 2, 3, 4, 6, 8)
    ids = pyramid.encode(latents)
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(pyramid.cuda().encode(latents.cuda()).cpu(), ids)


def test_refuses_what_does_not_fit(latents: Tensor) -> None:
    pyramid = pyramid_of(1, 2, 4)
    for call in (pyramid.encode, pyramid, lambda f: pyramid.start_codebook(f, 0)):
        with pytest.raises(ValueError, match=r"ends at 1x4x4, but the latent grid .* is 1x8x8"):
            call(latents)
    with pytest.raises(ValueError, match="130 tokens an image, but the schedule 1-2-4 has 21"):
        pyramid.reconstruct(torch.zeros(1, 130, dtype=torch.int64))
    with pytest.raises(ValueError, match="several frames"):
        ResidualPyramid(VectorQuantizer(8, 4), ScaleSchedule.parse("1x1x1-2x4x4"))
