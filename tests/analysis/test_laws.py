"""Laws: known truths recovered, published numbers reproduced, certificates, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy.optimize import least_squares

from varscale_analysis import FitError, LawFit, PowerLaw, SaturatingPowerLaw, exponent_against_offset

# Total parameters of VAR d6 ... d30 at 256 px (arXiv:2404.02905, per-block AdaLN), and the law of the average loss.
VAR_SIZES = 1e6 * np.array([18.49, 41.3, 78.4, 133.2, 209.3, 310.28, 439.6, 600.9, 797.7, 1033.4, 1311.7, 2010.0])
VAR_LOSS = 5.0 + (2.5 * VAR_SIZES / 1e9) ** -0.20

SIZES = np.geomspace(6e3, 2e5, 7)


def ladder(seeds: int = 2, noise: float = 0.005, rng_seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    n = np.repeat(SIZES, seeds)
    return n, 3.37 + (n / 3.0e3) ** -0.40 + noise * np.random.default_rng(rng_seed).standard_normal(len(n))


def test_the_papers_law_is_recovered_in_the_papers_units() -> None:
    fit = SaturatingPowerLaw(n="params_total", per=1e9).fit((VAR_SIZES, VAR_LOSS))
    assert fit.params["E"].value == pytest.approx(5.0, abs=1e-6)
    assert fit.params["alpha"].value == pytest.approx(-0.20, abs=1e-6)
    assert fit.params["beta"].value == pytest.approx(2.5, rel=1e-5)
    assert fit.params["beta"].unit == "1/(1e+09 parameter)"
    assert fit.certificate.starts_agreeing == fit.certificate.starts_tried


@pytest.mark.parametrize(
    ("offset", "alpha", "r"),
    [
        (0.0, -0.038, -0.994),
        (4.5, -0.139, -0.999),
        (4.9, -0.184, -0.9999),
        (5.0, -0.200, -1.0),
        (5.1, -0.220, -0.9999),
        (5.25, -0.259, -0.9992),
        (5.4, -0.317, -0.9969),
    ],
)
def test_the_offset_decides_the_exponent_while_r_stays(offset: float, alpha: float, r: float) -> None:
    (row,) = exponent_against_offset(VAR_SIZES, VAR_LOSS, [offset])
    assert row.alpha == pytest.approx(alpha, abs=5e-4)
    assert row.pearson_r == pytest.approx(r, abs=5e-4)


def test_an_offset_at_or_above_the_smallest_loss_is_refused() -> None:
    with pytest.raises(FitError, match="smallest loss"):
        exponent_against_offset(VAR_SIZES, VAR_LOSS, [VAR_LOSS.min()])
    assert exponent_against_offset(VAR_SIZES, VAR_LOSS)[-1].offset < VAR_LOSS.min()


@pytest.mark.parametrize("objective", ["log", "raw"])
def test_the_optimum_equals_an_independent_solver(objective: str) -> None:
    n, y = ladder(noise=0.01)
    fit = SaturatingPowerLaw(objective=objective).fit((n, y), bootstrap=0)  # type: ignore[arg-type]

    def residual(theta: np.ndarray) -> np.ndarray:
        f = theta[0] + np.exp(theta[1] + theta[2] * np.log(n / 3e4))
        return np.log(y / f) if objective == "log" else y - f

    other = least_squares(residual, [3.0, -0.5, -0.3], xtol=1e-15, ftol=1e-15, gtol=1e-15)
    rms = np.sqrt((other.fun**2).mean())
    assert fit.diagnostics.rms == pytest.approx(rms, rel=1e-9)
    assert fit.params["E"].value == pytest.approx(other.x[0], abs=1e-5)
    assert fit.params["alpha"].value == pytest.approx(other.x[2], abs=1e-5)


def test_the_power_law_is_the_log_log_line() -> None:
    n, y = ladder()
    fit = PowerLaw().fit((n, y), bootstrap=0)
    slope, intercept = np.polyfit(np.log(n), np.log(y), 1)
    assert fit.params["alpha"].value == pytest.approx(slope, abs=1e-9)
    assert np.log(fit.params["beta"].value) * slope == pytest.approx(intercept, rel=1e-8)


def test_a_change_of_unit_moves_only_the_prefactor() -> None:
    n, y = ladder()
    one, thousand = SaturatingPowerLaw().fit((n, y)), SaturatingPowerLaw(per=1e3).fit((n, y))
    assert thousand.params["beta"].value == pytest.approx(1e3 * one.params["beta"].value, rel=1e-12)
    assert thousand.params["alpha"] == one.params["alpha"]
    scaled = SaturatingPowerLaw().fit((n / 1e3, y))
    assert scaled.params["E"].value == pytest.approx(one.params["E"].value, abs=1e-9)
    assert scaled.params["alpha"].low == pytest.approx(one.params["alpha"].low, abs=1e-6)


def test_predict_and_solve_are_inverse() -> None:
    fit = SaturatingPowerLaw().fit(ladder())
    assert fit.solve(float(fit.predict(5e4))) == pytest.approx(5e4, rel=1e-9)
    assert fit.predict([5e4, 6e4]).shape == (2,)
    with pytest.raises(FitError, match="never reaches"):
        fit.solve(fit.params["E"].value)
    with pytest.raises(ValueError, match="must be positive"):
        fit.predict(0)


def test_intervals_widen_with_level_noise_and_distance() -> None:
    fit = SaturatingPowerLaw().fit(ladder())
    width = {
        key: float(high - low)
        for key, (low, high) in {
            "90": fit.predict_interval(4e5),
            "50": fit.predict_interval(4e5, level=0.5),
            "far": fit.predict_interval(4e6),
            "mean of 4": fit.predict_interval(4e5, seeds=4),
            "curve": fit.curve_interval(4e5),
        }.items()
    }
    assert width["50"] < width["90"] < width["far"]
    assert width["curve"] < width["mean of 4"] < width["90"]


def test_a_fit_survives_json() -> None:
    fit = SaturatingPowerLaw().fit(ladder())
    again = LawFit.from_dict(json.loads(json.dumps(fit.to_dict(), allow_nan=False)))
    assert again.params == fit.params
    assert again.diagnostics == fit.diagnostics
    assert again.predict_interval(4e5) == fit.predict_interval(4e5)
    with pytest.raises(FitError, match="not a saved fit"):
        LawFit.from_dict({"law": "power"})


def test_the_same_seed_gives_the_same_intervals_and_another_does_not() -> None:
    data = ladder()
    first, same, other = (SaturatingPowerLaw().fit(data, seed=seed) for seed in (0, 0, 1))
    assert first.params == same.params
    assert first.params["E"].low != other.params["E"].low
    assert first.params["E"].value == other.params["E"].value


def test_fewer_sizes_than_parameters_is_an_error_with_both_numbers() -> None:
    n = np.repeat([1e4, 2e4], 3)
    with pytest.raises(FitError, match=r"3 parameters.* 2 sizes.*PowerLaw"):
        SaturatingPowerLaw().fit((n, 4 - np.log(n) / 10))
    with pytest.raises(FitError, match=r"2 parameters.* 1 sizes"):
        PowerLaw().fit((n[:3], n[:3] / n[:3]))


def test_as_many_points_as_parameters_have_no_interval() -> None:
    n = np.array([1e4, 2e4, 4e4])
    fit = SaturatingPowerLaw().fit((n, 3 + (n / 3e3) ** -0.4))
    assert fit.params["E"].low is None
    with pytest.raises(FitError, match="no degree of freedom"):
        fit.predict_interval(8e4)


def test_points_that_are_not_positive_numbers_are_refused() -> None:
    with pytest.raises(FitError, match=r"y .* has 1 values"):
        PowerLaw().fit(([1e3, 2e3, 4e3], [4.0, float("nan"), 3.0]))
    with pytest.raises(FitError, match="one y for each x"):
        PowerLaw().fit(([1e3, 2e3], [4.0]))


def test_a_law_without_offset_puts_e_at_its_bound_and_says_so() -> None:
    n = np.repeat(SIZES, 2)
    # Convex the wrong way in log-log: the best offset is negative, the bound is 0.
    y = 4.0 * (n / 1e4) ** -0.05 - 0.02 * np.log(n / 1e4) ** 2
    fit = SaturatingPowerLaw().fit((n, y), bootstrap=0)
    assert fit.params["E"].value == 0.0
    assert fit.params["E"].at_bound
    line = PowerLaw().fit((n, y), bootstrap=0)
    assert fit.params["alpha"].value == pytest.approx(line.params["alpha"].value, abs=1e-6)
    assert "(at its bound)" in fit.summary()


def test_an_unconverged_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varscale_analysis.solver._STAGES", (1,))
    with pytest.raises(FitError, match=r"did not converge.*gradient"):
        SaturatingPowerLaw().fit(ladder())


def test_lack_of_fit_widens_the_intervals_of_many_seeds() -> None:
    n, y = ladder(seeds=8, noise=0.003)
    bent = y + np.repeat(0.02 * np.array([1, -1, 1, -1, 1, -1, 1]), 8)
    smooth, rough = SaturatingPowerLaw().fit((n, y)), SaturatingPowerLaw().fit((n, bent))
    assert rough.diagnostics.lack_of_fit_p is not None
    assert rough.diagnostics.lack_of_fit_p < 1e-3
    assert rough.diagnostics.size_sd is not None
    assert rough.diagnostics.size_sd > 0.003
    low, high = smooth.params["E"].low, smooth.params["E"].high
    low_rough, high_rough = rough.params["E"].low, rough.params["E"].high
    assert low is not None and high is not None and low_rough is not None and high_rough is not None
    assert high_rough - low_rough > 3 * (high - low)


def test_the_summary_labels_the_correlation_and_prints_units() -> None:
    text = SaturatingPowerLaw().fit(ladder()).summary()
    assert "printed, not evidence" in text
    assert "nat/token" in text
    assert "1/parameter" in text
    assert "starts agree" in text


def test_results_are_frozen() -> None:
    fit = PowerLaw().fit(ladder(), bootstrap=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        fit.law = "other"  # type: ignore[misc]
