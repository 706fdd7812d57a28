"""The power-law average is the weighted mean it is defined as."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from varscale.training.averages import PowerAverage


def weights_at(step: int) -> torch.Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


@pytest.mark.parametrize("gamma", [-0.5, 0.0, 2.0, 9.0])
def test_it_is_its_definition(gamma: float) -> None:
    """Unrolled: weight (1 - beta(t)) times the betas after it, which for gamma = 0 is 1 / T for each step."""
    model = nn.Linear(3, 5, dtype=torch.float64)
    average, steps = PowerAverage(model, gamma), 40
    shares = torch.zeros(steps, dtype=torch.float64)
    for step in range(1, steps + 1):
        with torch.no_grad():
            model.weight.copy_(weights_at(step))
        average.update(model, step)
        beta = (1 - 1 / step) ** (gamma + 1)
        shares *= beta
        shares[step - 1] += 1 - beta
    wanted = sum(share * weights_at(step) for step, share in enumerate(shares, start=1))
    torch.testing.assert_close(average.module.weight, wanted, rtol=1e-12, atol=1e-14)
    assert float(shares.sum()) == pytest.approx(1)
    if gamma == 0.0:
        torch.testing.assert_close(shares, torch.full_like(shares, 1 / steps))
    if gamma == 2.0:  # for large t the share of step t tends to that of t^gamma
        power = torch.arange(1, steps + 1, dtype=torch.float64) ** gamma
        assert shares[20:].sub(power[20:] / power.sum()).abs().max() < 2e-3


def test_it_starts_as_the_weights_and_takes_no_gradient() -> None:
    model = nn.Linear(2, 2)
    average = PowerAverage(model, 9.0)
    with torch.no_grad():
        model.weight.fill_(3.0)
    average.update(model, 1)
    assert torch.equal(average.module.weight, model.weight) and average.module.weight is not model.weight
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert average.name == "power, gamma 9"
    with pytest.raises(ValueError, match=r"train\.average\.gamma is -1; it must be above -1"):
        PowerAverage(model, -1)
