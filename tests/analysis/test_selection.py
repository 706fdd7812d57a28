"""Comparing laws: likelihoods against scipy's densities, criteria, the ratio of nested laws, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.special import huber as scipy_huber
from scipy.stats import laplace, lognorm

from varscale_analysis import (
    FitError,
    JointLaw,
    PowerLaw,
    SaturatingPowerLaw,
    compare_laws,
    huber,
    least_absolute_deviations,
    likelihood_ratio,
)
from varscale_analysis.selection import log_likelihood

N = np.geomspace(2e7, 2e9, 16)


def noisy(e: float, seed: int = 0) -> np.ndarray:
    return (e + (2e-8 * N) ** -0.3) * np.exp(0.004 * np.random.default_rng(seed).standard_normal(len(N)))


def test_squares_of_log_residuals_are_the_log_normal() -> None:
    fit = SaturatingPowerLaw("n").fit((N, noisy(3.0)), bootstrap=0)
    s = np.sqrt((fit.residuals**2).mean())
    expected = lognorm.logpdf(fit.points.y, s, scale=fit.predict(N)).sum()
    assert fit.diagnostics.log_likelihood == pytest.approx(expected, rel=1e-9)


def test_absolute_deviations_are_laplace() -> None:
    fit = SaturatingPowerLaw("n", objective=least_absolute_deviations("raw")).fit((N, noisy(3.0)), bootstrap=0)
    expected = laplace.logpdf(fit.residuals, scale=np.abs(fit.residuals).mean()).sum()
    assert fit.diagnostics.log_likelihood == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("delta", [1e-3, 1e-2])
def test_hubers_density_integrates_to_one(delta: float) -> None:
    residual = 0.01 * np.random.default_rng(0).standard_t(3, 50)
    total, count = float(scipy_huber(delta, residual).sum()), len(residual)

    def value(s: float) -> float:
        norm = quad(lambda r: np.exp(-scipy_huber(delta, r) / s), -3, 3, points=[-delta, delta], limit=400)[0]
        return -count * float(np.log(norm)) - total / s

    best = minimize_scalar(lambda log_s: -value(np.exp(log_s)), bounds=np.log(total / count) + np.array([-2, 2]))
    expected = -float(best.fun)
    found = log_likelihood(huber(delta, "raw"), residual, np.ones(count), np.ones(count))
    assert found == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(("e", "better"), [(3.0, "saturating"), (0.0, "power")])
def test_the_law_behind_the_data_is_preferred(e: float, better: str) -> None:
    y = noisy(e)
    fits = {
        "power": PowerLaw("n").fit((N, y), bootstrap=0),
        "saturating": SaturatingPowerLaw("n").fit((N, y), bootstrap=0),
    }
    rows = compare_laws(fits)
    assert rows[0].law == better
    assert sum(row.weight for row in rows) == pytest.approx(1.0)
    by_name = {row.law: row for row in rows}
    assert by_name["power"].params == 2
    assert by_name["power"].aic == pytest.approx(2 * 3 - 2 * by_name["power"].log_likelihood)
    assert by_name["power"].bic == pytest.approx(3 * np.log(16) - 2 * by_name["power"].log_likelihood)
    ratio = likelihood_ratio(fits["power"], fits["saturating"])
    assert ratio.extra == 1
    assert (ratio.p < 1e-3) == (e > 0)


def test_the_ratio_rejects_about_as_often_as_it_says() -> None:
    rng, rejected = np.random.default_rng(0), 0
    for _ in range(60):
        y = (3.0 + (2e-8 * N) ** -0.3) * np.exp(0.004 * rng.standard_normal(len(N)))
        small = SaturatingPowerLaw("n", fixed={"alpha": -0.3}).fit((N, y), bootstrap=0)
        rejected += likelihood_ratio(small, SaturatingPowerLaw("n").fit((N, y), bootstrap=0)).p < 0.1
    assert 0.03 <= rejected / 60 <= 0.25  # chi-squared is asymptotic: at 16 points it rejects a little more than 10 %


def test_a_shared_exponent_is_tested_against_free_ones() -> None:
    columns = {"n": N, "a": noisy(3.0), "b": noisy(3.5, 1), "c": 2.0 + (2e-8 * N) ** -0.8}
    shared, free = (JointLaw(("a", "b"), "n", shared=s).fit(columns, bootstrap=0) for s in (True, False))
    assert likelihood_ratio(shared, free).p > 0.01
    shared, free = (JointLaw(("a", "c"), "n", shared=s).fit(columns, bootstrap=0) for s in (True, False))
    assert likelihood_ratio(shared, free).p < 1e-6


def test_fits_that_cannot_be_compared_are_refused() -> None:
    y = noisy(3.0)
    power, saturating = PowerLaw("n").fit((N, y), bootstrap=0), SaturatingPowerLaw("n").fit((N, y), bootstrap=0)
    with pytest.raises(FitError, match="different points"):
        compare_laws({"a": power, "b": PowerLaw("n").fit((N[1:], y[1:]), bootstrap=0)})
    with pytest.raises(FitError, match="name the larger law second"):
        likelihood_ratio(saturating, power)
    with pytest.raises(FitError, match="fit both alike"):
        likelihood_ratio(power, SaturatingPowerLaw("n", objective="raw").fit((N, y), bootstrap=0))
