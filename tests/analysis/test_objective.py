"""Objectives: each loss at its optimum against scipy, weights, the sum that is never a mean, kinks by continuation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog, minimize
from scipy.special import huber as scipy_huber

from varscale_analysis import (
    ChinchillaLaw,
    Objective,
    PowerLaw,
    SaturatingPowerLaw,
    huber,
    least_absolute_deviations,
    quantile,
    squares,
)

N = np.geomspace(2e7, 2e9, 24)


def heavy(seed: int = 0) -> np.ndarray:
    """A saturating law with noise of heavy tails."""
    return (3.0 + (2e-8 * N) ** -0.25) * np.exp(0.01 * np.random.default_rng(seed).standard_t(3, len(N)))


def law_at(theta: np.ndarray) -> np.ndarray:
    return theta[0] + np.exp(theta[1] + theta[2] * np.log(N / 2e8))


@pytest.mark.parametrize("residual", ["log", "raw"])
@pytest.mark.parametrize("delta", [1e-1, 1e-2, 1e-3])
def test_huber_is_below_a_simplex_search_that_was_restarted(residual: str, delta: float) -> None:
    y = heavy()

    def objective(theta: np.ndarray) -> float:
        f = law_at(theta)
        if (f <= 0).any():
            return 1e9
        return float(scipy_huber(delta, np.log(y / f) if residual == "log" else y - f).sum())

    fit = SaturatingPowerLaw("n", objective=huber(delta, residual)).fit((N, y), bootstrap=0)  # type: ignore[arg-type]
    best = np.array([fit.params["E"].value, 0.0, fit.params["alpha"].value])
    best[1] = best[2] * np.log(fit.params["beta"].value * 2e8)
    assert objective(best) == pytest.approx(fit.diagnostics.objective, rel=1e-9)
    found = [
        minimize(
            objective, best + 0.05 * k, method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-16, "maxiter": 4000}
        )
        for k in (-1, 1)
    ]
    assert fit.diagnostics.objective <= min(result.fun for result in found) * (1 + 1e-9)


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.9])
def test_quantile_lines_are_those_of_linear_programming(tau: float) -> None:
    y = heavy()
    x = np.stack([np.ones_like(N), np.log(N / 2e8)], axis=1)
    cost = np.concatenate([np.zeros(4), np.full(len(N), tau), np.full(len(N), 1 - tau)])
    eye = np.eye(len(N))
    exact = linprog(cost, A_eq=np.concatenate([x, -x, eye, -eye], axis=1), b_eq=np.log(y))
    fit = PowerLaw("n", objective=quantile(tau)).fit((N, y), bootstrap=0)
    assert fit.diagnostics.objective == pytest.approx(exact.fun, rel=2e-5)
    assert fit.params["alpha"].value == pytest.approx(exact.x[1] - exact.x[3], abs=2e-4)
    assert np.mean(fit.residuals < 0) == pytest.approx(tau, abs=2.5 / len(N))


def test_absolute_deviations_are_the_median_and_half_of_it() -> None:
    y = heavy()
    median = SaturatingPowerLaw("n", objective=quantile(0.5)).fit((N, y), bootstrap=0)
    absolute = SaturatingPowerLaw("n", objective=least_absolute_deviations()).fit((N, y), bootstrap=0)
    assert absolute.diagnostics.objective == pytest.approx(2 * median.diagnostics.objective, rel=1e-5)
    assert absolute.diagnostics.objective == pytest.approx(np.abs(absolute.residuals).sum(), rel=1e-12)


def test_a_wide_huber_is_half_of_squares() -> None:
    y = heavy()
    one = SaturatingPowerLaw("n", objective=squares()).fit((N, y), bootstrap=0)
    other = SaturatingPowerLaw("n", objective=huber(10.0)).fit((N, y), bootstrap=0)
    assert other.diagnostics.objective == pytest.approx(one.diagnostics.objective / 2, rel=1e-12)
    assert other.params["alpha"].value == pytest.approx(one.params["alpha"].value, rel=1e-8)


@pytest.mark.parametrize("objective", [squares(), huber(1e-2), least_absolute_deviations(), quantile(0.3)])
def test_objectives_are_sums_and_a_weight_of_two_is_a_point_twice(objective: Objective) -> None:
    y = heavy()
    twice = np.concatenate([np.arange(len(N)), [3, 7, 11]])
    weights = np.ones_like(N)
    weights[[3, 7, 11]] = 2.0
    law = PowerLaw("n", objective=objective)
    doubled = law.fit((N[twice], y[twice]), bootstrap=0)
    weighted = PowerLaw("n", objective=Objective(**{**vars(objective), "weights": "w"})).fit(
        (N, y, weights), bootstrap=0
    )
    assert weighted.diagnostics.objective == pytest.approx(doubled.diagnostics.objective, rel=1e-6)
    assert weighted.params["alpha"].value == pytest.approx(doubled.params["alpha"].value, abs=1e-5)


def test_a_weight_of_zero_is_a_point_left_out() -> None:
    y = heavy()
    y[5] *= 3.0
    weights = np.ones_like(N)
    weights[5] = 0.0
    keep = weights > 0
    law = SaturatingPowerLaw("n", objective=squares(weights="w"))
    fit, without = law.fit((N, y, weights)), SaturatingPowerLaw("n").fit((N[keep], y[keep]))
    assert fit.rows == len(N) - 1
    assert fit.params == without.params


def test_an_outlier_moves_squares_and_hardly_a_robust_loss() -> None:
    d = np.tile(np.geomspace(1e9, 1e11, 4), 6)
    y = 1.7 + 400 * N**-0.34 + 400 * d**-0.28
    spoiled = y.copy()
    spoiled[0] *= 1.2
    moved = {
        name: abs(
            ChinchillaLaw("n", "d", objective=objective).fit((N, d, spoiled), bootstrap=0).params["alpha"].value - 0.34
        )
        for name, objective in (
            ("squares", squares()),
            ("huber", huber(1e-3)),
            ("absolute", least_absolute_deviations()),
        )
    }
    assert moved["squares"] > 0.01
    assert moved["huber"] < 4e-3
    assert moved["absolute"] < 1e-5


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"loss": "huber"}, "needs one above 0"),
        ({"loss": "huber", "delta": 0.0}, "needs one above 0"),
        ({"delta": 1e-3}, "other losses have none"),
        ({"loss": "quantile", "tau": 1.0}, "between 0 and 1"),
        ({"loss": "cubes"}, "cubes"),
        ({"residual": "squared"}, "'log' or 'raw'"),
    ],
)
def test_an_objective_without_its_number_is_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Objective(**options)  # type: ignore[arg-type]
