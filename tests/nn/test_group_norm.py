"""GroupNorm on channels-last CPU tensors: values and gradients of float64, where torch's own kernel is far off."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from varscale.nn.group_norm import GroupNorm


def normalised(layer: nn.GroupNorm, x: Tensor) -> tuple[Tensor, ...]:
    """Output and gradients by input, weight and bias, of a random linear loss."""
    x = x.detach().requires_grad_()
    layer.zero_grad()
    out = layer(x)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype))
    assert x.grad is not None and layer.weight.grad is not None and layer.bias.grad is not None
    return out.detach(), x.grad, layer.weight.grad.clone(), layer.bias.grad.clone()


@pytest.mark.parametrize(("channels", "side", "mean"), [(32, 128, 0.0), (32, 128, 3.0), (96, 33, 1.0), (64, 3, 0.0)])
def test_it_agrees_with_float64(channels: int, side: int, mean: float) -> None:
    torch.manual_seed(0)
    layer = GroupNorm(32, channels, eps=1e-6)
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
    x = torch.randn(2, channels, side, side) + mean * torch.randn(1, channels, 1, 1)
    x = x.contiguous(memory_format=torch.channels_last)
    exact = nn.GroupNorm(32, channels, eps=1e-6).double()
    exact.load_state_dict(layer.state_dict())
    ours, wanted = normalised(layer, x), normalised(exact, x.double())
    for name, value, golden in zip(("output", "x", "weight", "bias"), ours, wanted, strict=True):
        limit = 1e-6 if name == "output" else 1e-4  # torch's backward kernel is less exact
        assert (value - golden).norm() < limit * golden.norm(), name
    assert ours[0].is_contiguous(memory_format=torch.channels_last)
    assert (ours[0] - wanted[0]).abs().max() < 2e-5  # torch's kernel: 5e-4 at a mean of 3 deviations


def test_a_constant_map_is_no_division_by_zero() -> None:
    x = torch.full((1, 32, 4, 4), 7.0).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(GroupNorm(32, 32)(x), torch.zeros(1, 32, 4, 4), atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_layouts_and_dtypes_are_torchs(dtype: torch.dtype) -> None:
    x = torch.randn(2, 32, 5, 5).to(dtype)
    layer = GroupNorm(32, 32).to(dtype)
    assert torch.equal(layer(x), nn.functional.group_norm(x, 32, layer.weight, layer.bias, layer.eps))
