"""Cross-entropy in chunks equals torch's, with its gradient, and says so when its logits are gone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from varscale.nn import cross_entropy as chunked
from varscale.nn.cross_entropy import cross_entropy


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "MINIMUM", 0)
    monkeypatch.setattr(chunked, "CHUNK", 3 * 11)


def problem(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    logits = (torch.randn(10, 11, generator=rng) * 5).to(dtype).requires_grad_()
    return logits, torch.randint(11, (10,), generator=rng), torch.rand(10, generator=rng)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_values_and_gradient_are_those_of_torch(dtype: torch.dtype, tolerance: float) -> None:
    logits, ids, weights = problem(dtype)
    wanted = F.cross_entropy(logits.float(), ids, reduction="none")
    (wanted_grad,) = torch.autograd.grad((wanted * weights).sum(), logits)
    nats = cross_entropy(logits * 1, ids)  # backward overwrites what it is given
    (grad,) = torch.autograd.grad((nats * weights).sum(), logits)
    assert nats.dtype == torch.float32 and grad.dtype == dtype
    torch.testing.assert_close(nats, wanted, atol=2e-6, rtol=1e-6)  # float32 sums, whatever the logits are
    torch.testing.assert_close(grad, wanted_grad, atol=tolerance, rtol=tolerance)


@pytest.mark.usefixtures("small_chunks")
def test_a_second_backward_is_refused() -> None:
    logits, ids, _ = problem(torch.float32)
    loss = cross_entropy(logits * 1, ids).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_measurement_leaves_its_logits() -> None:
    logits, ids, _ = problem(torch.float32)
    with torch.no_grad():
        before = logits.clone()
        torch.testing.assert_close(cross_entropy(logits, ids), F.cross_entropy(logits, ids, reduction="none"))
    assert torch.equal(logits, before)
