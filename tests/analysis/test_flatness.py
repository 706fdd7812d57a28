"""How flat an optimum is: closed form against profiles, and what missing it costs."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from varscale_analysis import CurveSet, FitError, Frontier, flatness_of, flatness_table
from varscale_analysis.flatness import slice_profile
from varscale_analysis.laws import ChinchillaLaw

E, A, B, ALPHA, BETA = 1.8, 482.0, 2085.0, 0.348, 0.366
A_EXPONENT = BETA / (ALPHA + BETA)
G = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
NAMES = {"n": "N", "y": "L"}


def loss_of(c: np.ndarray | float, n: np.ndarray | float) -> np.ndarray | float:
    return E + A * n**-ALPHA + B * (c / 6 / n) ** -BETA


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for c in (1e17, 1e18, 1e19, 1e20):
        for n in G * (c / 6) ** A_EXPONENT * np.geomspace(0.125, 8, 11):
            rows.append((c, n, c / 6 / n, loss_of(c, n) + 5e-4 * rng.standard_normal()))
    return pd.DataFrame(rows, columns=["C", "N", "D", "L"])


@pytest.fixture(scope="module")
def by_law(runs: pd.DataFrame) -> Frontier:
    return Frontier.from_law(ChinchillaLaw(n="N", d="D").fit(runs, "L", bootstrap=200))


def test_law_and_profile_agree_with_the_truth(runs: pd.DataFrame, by_law: Frontier) -> None:
    by_profile = Frontier.from_isoflop(runs, flops="C", d="D", **NAMES)
    for frontier in (by_law, by_profile):
        (row,) = flatness_of(frontier, [1e19], within=0.01)
        n = np.geomspace(1e6, 1e11, 200_001)
        true = np.asarray(loss_of(1e19, n))
        near = n[true <= true.min() * 1.01]
        assert row.n_low is not None and row.n_high is not None
        assert row.n_low.value == pytest.approx(near[0], rel=0.06)
        assert row.n_high.value == pytest.approx(near[-1], rel=0.06)
        assert row.n_low.low is not None and row.n_low.high is not None
        assert row.n_low.low <= row.n_low.value <= row.n_low.high
        assert [cost.factor for cost in row.costs] == [0.25, 0.5, 2.0, 4.0]
        best = G * (1e19 / 6) ** A_EXPONENT
        for cost in row.costs:
            excess = loss_of(1e19, best * cost.factor) - true.min()
            assert cost.excess.value == pytest.approx(excess, abs=0.004)
            assert cost.compute_multiplier is not None
            # The compute at which the best size has that loss, by the true law.
            c = np.geomspace(1e17, 1e19, 20_001)
            best_loss = E + (true.min() - E) * (c / 1e19) ** (-ALPHA * A_EXPONENT)
            wasted = 1e19 / c[np.argmin(np.abs(best_loss - true.min() - excess))]
            assert cost.compute_multiplier.value == pytest.approx(wasted, rel=0.05)
            assert cost.compute_multiplier.value > 1


def test_a_wider_share_is_a_wider_range(by_law: Frontier) -> None:
    (narrow,), (wide,) = (flatness_of(by_law, [1e18], within=share) for share in (0.005, 0.02))
    assert narrow.n_low is not None and narrow.n_high is not None
    assert wide.n_low is not None and wide.n_high is not None
    assert wide.n_low.value < narrow.n_low.value < narrow.n_opt < narrow.n_high.value < wide.n_high.value


def test_nothing_is_said_beyond_the_sizes_measured(runs: pd.DataFrame) -> None:
    frontier = Frontier.from_isoflop(runs, flops="C", d="D", **NAMES)
    (row,) = flatness_of(frontier, [1e18], within=3.0, factors=(0.01, 1.5, 100.0))
    assert row.n_low is None and row.n_high is None
    assert [cost.factor for cost in row.costs] == [1.5]
    assert "not measured to not measured" in flatness_table([row], "L")
    assert json.dumps(row.to_dict())


def test_an_envelope_is_cut_at_one_compute() -> None:
    n_R = np.geomspace(1e7, 1e9, 9)
    flops = tuple(np.geomspace(1 / 30, 30, 300) * 6 * (n / G) ** (1 / A_EXPONENT) for n in n_R)
    loss = tuple(np.asarray(loss_of(c, n)) for n, c in zip(n_R, flops, strict=True))
    frontier = Frontier.from_envelope(CurveSet(n_R, flops, loss, None), **NAMES, bootstrap=0)
    profile = slice_profile(frontier, 1e19)
    assert profile.optimum is not None
    assert profile.optimum.n == pytest.approx(G * (1e19 / 6) ** A_EXPONENT, rel=0.1)
    rows = flatness_of(frontier)
    assert len(rows) >= 5
    with pytest.raises(FitError, match="outside the curves"):
        slice_profile(frontier, 1e30)


def test_bad_questions_are_refused(runs: pd.DataFrame, by_law: Frontier) -> None:
    with pytest.raises(ValueError, match="above 0"):
        flatness_of(by_law, within=0.0)
    with pytest.raises(ValueError, match="above 0"):
        flatness_of(by_law, factors=(-1.0,))
    with pytest.raises(FitError, match="no profile has a budget within 10 %"):
        flatness_of(Frontier.from_isoflop(runs, flops="C", d="D", **NAMES), [5e17])
