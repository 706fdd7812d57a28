"""Linear layers by oneDNN equal torch's, with their gradients, and only take what they are faster at."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from varscale.nn import linear as layers
from varscale.nn.linear import HAS_ONEDNN, Linear, linear, linear_gelu

pytestmark = pytest.mark.skipif(not HAS_ONEDNN, reason="this build of torch has no oneDNN product")


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Every product goes to oneDNN; the shapes of the inputs it got."""
    shapes: list[torch.Size] = []
    product = layers.product

    def counted(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        shapes.append(x_NI.shape)
        return product(x_NI, weight_OI, bias_O)

    monkeypatch.setattr(layers, "MINIMUM", 0)
    monkeypatch.setattr(layers, "product", counted)
    return shapes


@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_torch(always: list[torch.Size], bias: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    # Rows that are not contiguous, as after a transposition.
    x = torch.randn(2, 7, 5, generator=rng).transpose(0, 1).requires_grad_()
    weight = torch.randn(6, 5, generator=rng).requires_grad_()
    offset = torch.randn(6, generator=rng).requires_grad_() if bias else None
    leaves = [x, weight] + ([offset] if offset is not None else [])
    weights = torch.randn(7, 2, 6, generator=rng)
    ours = torch.autograd.grad((linear(x, weight, offset) * weights).sum(), leaves)
    wanted = torch.autograd.grad((F.linear(x, weight, offset) * weights).sum(), leaves)
    torch.testing.assert_close(linear(x, weight, offset), F.linear(x, weight, offset))
    for mine, torchs in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, torchs)
    assert always[:2] == [(14, 5), (14, 6)]  # forward, and the gradient of the input


def test_an_expanded_gradient_is_taken(always: list[torch.Size]) -> None:
    layer = Linear(3, 4)
    layer(torch.ones(2, 3)).sum().backward()
    assert layer.weight.grad is not None and layer.bias.grad is not None
    assert torch.equal(layer.weight.grad, torch.full((4, 3), 2.0)) and torch.equal(
        layer.bias.grad, torch.full((4,), 2.0)
    )
    assert always


def test_what_oneDNN_does_not_do_better_is_left_to_torch(
    always: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = Linear(8, 8), torch.randn(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64
    monkeypatch.setattr(layers, "MINIMUM", 4 * 8 * 8 + 1)
    layer.float()(x)
    assert not always


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(("autocast", "tolerance"), [(False, 1e-5), (True, 2e-2)])
def test_gelu_in_one_pass_equals_torchs(autocast: bool, tolerance: float) -> None:
    rng = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=rng) for shape in ((2, 3, 5), (6, 5), (6,)))
    wanted = F.gelu(F.linear(x, weight, bias), approximate="tanh")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with torch.no_grad():
            out = linear_gelu(x, weight, bias)
        graded = linear_gelu(x, weight.requires_grad_(), bias)
    assert out.dtype == (torch.bfloat16 if autocast else torch.float32) and graded.requires_grad
    for value in (out, graded):
        torch.testing.assert_close(value.float(), wanted, atol=tolerance, rtol=tolerance)
