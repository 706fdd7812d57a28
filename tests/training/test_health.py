"""Health: what is not finite is found with its step, spikes are counted by the stated rule, state survives."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from varscale.training.health import DIVERGED_FILE, READ_EVERY, DivergedError, Health, write_divergence


def watch(health: Health, losses: list[float], first: int = 0) -> None:
    """One step a loss, read as the tasks read."""
    for step, loss in enumerate(losses, start=first):
        health.loss(step, torch.tensor(loss))
        health.gradient(step, torch.tensor(2.0 * loss))
        if (step + 1) % READ_EVERY == 0:
            health.read()


def losses(count: int) -> list[float]:
    return (4 + 0.1 * np.random.default_rng(0).standard_normal(count)).tolist()


def test_a_row_is_of_the_steps_since_the_last() -> None:
    health = Health("lr")
    watch(health, [1.0, 2.0, 3.0])
    mean, values = health.row()
    assert mean == 2.0
    assert dict((name, value) for name, _, value in values) == {
        "grad_norm_mean": 4.0,
        "grad_norm_max": 6.0,
        "loss_spikes": 0.0,
    }
    assert health.row() == (None, [])
    health.loss(3, torch.tensor(9.0), counted=False)
    health.gradient(3, torch.tensor(1.0))
    assert health.row() == (None, [("grad_norm_mean", None, 1.0), ("grad_norm_max", None, 1.0)])


def test_spikes_are_counted_and_noise_is_not() -> None:
    health, series = Health("lr"), losses(400)
    watch(health, series)
    assert ("loss_spikes", None, 0.0) in health.row()[1]
    spiked = list(series)
    spiked[210] = spiked[215] = 6.0
    spiked[300] = 4.5  # five deviations
    spiked[3] = 50.0  # before there is a window to compare with
    health = Health("lr")
    watch(health, spiked)
    assert ("loss_spikes", None, 2.0) in health.row()[1]


@pytest.mark.parametrize("at", [7, 20, 33, 55])
def test_a_resumed_run_writes_the_same_rows(at: int) -> None:
    series = losses(80)
    series[60] = 7.0
    whole, first, second = Health("lr"), Health("lr"), Health("lr")
    watch(whole, series)
    watch(first, series[:at])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    watch(second, series[at:], first=at)
    assert second.row() == whole.row()
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_bad_step_is_told(bad: float) -> None:
    health = Health("optim.lr (0.1)")
    watch(health, [1.0] * 5)
    health.gradient(5, torch.tensor(bad))
    health.loss(5, torch.tensor(1.0))
    health.loss(6, torch.tensor(bad))
    with pytest.raises(DivergedError, match=rf"gradient norm at step 5 is {bad}; lower optim.lr \(0.1\)") as raised:
        health.state_dict()
    assert (raised.value.step, raised.value.loss) == (5, 1.0)
    health = Health("optim.lr (0.1)")
    health.loss(3, torch.tensor(1.0))
    health.loss(3, torch.tensor(bad))  # the second part of its batch
    with pytest.raises(DivergedError, match=rf"the loss at step 3 is {bad}"):
        health.read()


def test_a_gradient_scaler_skips_what_overflows() -> None:
    health = Health("lr", scaled=True)
    health.loss(0, torch.tensor(1.0))
    health.gradient(0, torch.tensor(torch.inf))
    health.gradient(1, torch.tensor(3.0))
    assert dict((name, value) for name, _, value in health.row()[1])["grad_norm_max"] == 3.0


def test_numbers_that_are_no_json_are_text(tmp_path: Path) -> None:
    error = DivergedError("", step=2, loss=math.nan, grad_norm=None)
    write_divergence(tmp_path, error, seed=1, batch=4, size=None, checkpoint_step=None)
    told = json.loads((tmp_path / DIVERGED_FILE).read_text())
    assert (told["loss"], told["grad_norm"], told["checkpoint_step"]) == ("nan", None, None)
    assert told["images"] == [2**40 + 8 + i for i in range(4)] and told["epochs"] == [0] * 4
