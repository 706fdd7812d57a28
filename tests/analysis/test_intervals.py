"""Intervals of every kind: what they keep together, agree on and refuse; profiles and the jackknife."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from varscale_analysis import (
    ChinchillaLaw,
    FitError,
    PowerLaw,
    SaturatingPowerLaw,
    huber,
    least_absolute_deviations,
    profile_of,
)
from varscale_analysis.bootstrap import pairs, signs, within, without_each

SIZES = np.geomspace(2e7, 2e9, 12)
N = np.repeat(SIZES, 2)
TRUTH = 3.0 + (2e-8 * N) ** -0.25


def table(noise: float = 0.004, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"n": N, "y": TRUTH * np.exp(noise * rng.standard_normal(len(N))), "seed": np.tile([0.0, 1.0], 12)}


def widths(kind: str, groups: str = "rows") -> dict[str, float]:
    fit = SaturatingPowerLaw("n").fit(table(), "y", bootstrap=600, intervals=kind, groups=groups)  # type: ignore[arg-type]
    out = {}
    for name, p in fit.params.items():
        assert p.low is not None and p.high is not None
        assert p.low < p.value < p.high
        out[name] = p.high - p.low
    return out


def test_draws_keep_groups_together() -> None:
    group, rng = np.repeat(np.arange(4), 3), np.random.default_rng(0)
    drawn = pairs(group, 50, rng)
    assert (drawn.reshape(50, 4, 3) == drawn.reshape(50, 4, 3)[:, :, :1]).all()
    assert (drawn.sum(1) == 12).all()
    inside = within(group, 50, rng)
    assert (inside.reshape(50, 4, 3).sum(-1) == 3).all()
    flipped = signs(group, 50, rng)
    assert set(np.unique(flipped)) == {-1.0, 1.0}
    assert (flipped.reshape(50, 4, 3) == flipped.reshape(50, 4, 3)[:, :, :1]).all()
    assert (without_each(group).sum(1) == 9).all()


@pytest.mark.parametrize(
    ("kind", "groups"),
    [
        ("pairs", "rows"),
        ("pairs", "sizes"),
        ("wild", "rows"),
        ("wild", "designs"),
        ("jackknife", "rows"),
        ("profile", "rows"),
    ],
)
def test_kinds_agree_on_independent_noise(kind: str, groups: str) -> None:
    reference, other = widths("noise"), widths(kind, groups)
    for name, width in reference.items():
        assert other[name] == pytest.approx(width, rel=0.55), name


def test_the_line_has_the_exact_t_interval() -> None:
    n = np.geomspace(2e7, 2e9, 24)
    data = {"n": n, "y": (2e-5 * n) ** -0.1 * table()["y"] / TRUTH}
    x, z = np.log(n) - np.log(n).mean(), np.log(data["y"])
    slope = (x * z).sum() / (x**2).sum()
    rest = z - z.mean() - slope * x
    half = student.ppf(0.95, 22) * np.sqrt((rest**2).sum() / 22 / (x**2).sum())
    by_profile = PowerLaw("n").fit(data, "y", intervals="profile").params["alpha"]
    assert (by_profile.low, by_profile.high) == pytest.approx((slope - half, slope + half), rel=2e-4)
    by_noise = PowerLaw("n").fit(data, "y", bootstrap=6000).params["alpha"]
    assert by_noise.low is not None and by_noise.high is not None
    assert by_noise.high - by_noise.low == pytest.approx(2 * half, rel=0.05)


def test_a_profile_is_the_least_objective_at_each_value() -> None:
    law = SaturatingPowerLaw("n")
    fit = law.fit(table(), "y", bootstrap=0)
    traced = fit.profile("E")
    assert (np.diff(traced.values) > 0).all()
    for i in (2, len(traced.values) // 2, len(traced.values) // 2 + 4):
        given = SaturatingPowerLaw("n", fixed={"E": float(traced.values[i])}).fit(table(), "y", bootstrap=0)
        assert given.diagnostics.objective == pytest.approx(float(traced.objective[i]), rel=1e-6)
    low, high = traced.interval(0.9)
    at_ends = [
        SaturatingPowerLaw("n", fixed={"E": e}).fit(table(), "y", bootstrap=0).diagnostics.objective
        for e in (low, high)
    ]
    assert at_ends == pytest.approx([traced.threshold(0.9)] * 2, rel=2e-3)
    assert traced.interval(0.5)[1] < high


def test_a_profile_ends_at_its_bound() -> None:
    n = np.geomspace(1e7, 1e9, 8)
    y = (1e-7 * n) ** -0.05 * np.exp(0.02 * np.random.default_rng(0).standard_normal(8))
    fit = SaturatingPowerLaw("n").fit((n, y), bootstrap=0)
    traced = profile_of(fit.problem, np.array(fit.theta), "E")
    assert traced.interval(0.9)[0] == pytest.approx(0.0, abs=1e-9)


def test_prefactors_and_derived_numbers_have_profiles() -> None:
    n, d = (axis.ravel() for axis in np.meshgrid(np.geomspace(5e7, 5e9, 5), np.geomspace(1e9, 1e11, 4)))
    y = (1.69 + 406 * n**-0.34 + 410 * d**-0.28) * np.exp(0.003 * np.random.default_rng(0).standard_normal(len(n)))
    fit = ChinchillaLaw("n", "d", objective=huber(2e-3)).fit((n, d, y), intervals="profile")
    for name in ("A", "B", "alpha"):
        p = fit.params[name]
        assert p.low is not None and p.high is not None and p.low < p.value < p.high
    a = fit.derived["a"]
    assert a.low is not None and a.high is not None and a.low < 0.28 / 0.62 < a.high
    with pytest.raises(FitError, match="has no 'gamma'"):
        profile_of(fit.problem, np.array(fit.theta), "gamma")
    absolute = ChinchillaLaw("n", "d", objective=least_absolute_deviations())
    with pytest.raises(FitError, match="no curvature"):
        absolute.fit((n, d, y), intervals="profile")


def test_a_given_parameter_has_no_interval() -> None:
    fit = SaturatingPowerLaw("n", fixed={"E": 2.9}).fit(table(), "y", bootstrap=100)
    assert fit.params["E"].given and fit.params["E"].low is None
    assert "(given)" in fit.summary()
    with pytest.raises(FitError, match="given, not fitted"):
        profile_of(fit.problem, np.array(fit.theta), "E")


def test_a_jackknife_bounds_the_curve_and_not_a_new_run() -> None:
    fit = SaturatingPowerLaw("n").fit(table(), "y", intervals="jackknife", groups="sizes")
    assert len(fit.draws) == 12
    low, high = fit.curve_interval(5e9)
    assert low < fit.predict(5e9) < high
    with pytest.raises(FitError, match="no prediction interval"):
        fit.predict_interval(5e9)


def test_resampled_residuals_widen_a_prediction() -> None:
    fit = SaturatingPowerLaw("n").fit(table(), "y", bootstrap=500, intervals="pairs")
    curve, new, mean = fit.curve_interval(1e9), fit.predict_interval(1e9), fit.predict_interval(1e9, seeds=9)
    assert curve[1] - curve[0] < mean[1] - mean[0] < new[1] - new[0]


def test_given_draws_are_used_as_they_are() -> None:
    data = table()
    draws = np.random.default_rng(3).multinomial(len(N), np.full(len(N), 1 / len(N)), 50).astype(float)
    fit = SaturatingPowerLaw("n").fit(data, "y", bootstrap=draws, intervals="pairs")
    assert fit.diagnostics.draws == 50
    keep = np.repeat(np.arange(len(N)), draws[7].astype(int))
    alone = SaturatingPowerLaw("n").fit((N[keep], data["y"][keep]), bootstrap=0)
    assert fit.drawn()["alpha"][7] == pytest.approx(alone.params["alpha"].value, rel=1e-6)
    with pytest.raises(FitError, match="intervals='pairs'"):
        SaturatingPowerLaw("n").fit(data, "y", bootstrap=draws)


def test_a_bootstrap_that_cannot_be_certified_is_refused() -> None:
    n = np.geomspace(1e7, 1e9, 4)
    y = 3 + (1e-8 * n) ** -0.3 * np.exp(0.01 * np.random.default_rng(0).standard_normal(4))
    with pytest.raises(FitError, match=r"draws are certified, 95% are asked.*noise"):
        SaturatingPowerLaw("n").fit((n, y), intervals="pairs")
    some = SaturatingPowerLaw("n").fit((n, y), intervals="pairs", certified_share=0.2)
    assert some.diagnostics.draws < some.diagnostics.draws_asked == 1000


def test_groups_that_are_not_there_are_named() -> None:
    with pytest.raises(FitError, match=r"no groups 'run_id'.*seed"):
        SaturatingPowerLaw("n").fit(table(), "y", intervals="pairs", groups="run_id")
    by_seed = SaturatingPowerLaw("n").fit(table(), "y", intervals="pairs", groups="seed", bootstrap=50)
    assert by_seed.intervals == "pairs of seed"


def test_a_law_knows_which_runs_share_a_trunk() -> None:
    n, d = (a.ravel() for a in np.meshgrid(np.geomspace(1e6, 1e8, 6), np.geomspace(1e8, 1e10, 4)))
    y = 1.7 + 400 * n**-0.34 + 400 * d**-0.3 + 1e-3 * np.random.default_rng(0).standard_normal(24)
    data = pd.DataFrame({"n": n, "d": d, "y": y, "run_id": [f"r{i}" for i in range(24)]})
    law = ChinchillaLaw("n", "d")
    data["trunk_id"] = [f"t{i}" for i in n]
    fit = law.fit(data, "y", bootstrap=100)
    assert fit.intervals == "noise of trunks" and fit.basis == "24 runs, 6 sizes, 6 trunks"
    assert law.fit(data, "y", bootstrap=100, intervals="pairs", certified_share=0.5).intervals == "pairs of trunks"
    two = data[data["n"] < 3e6].assign(trunk_id=lambda rows: rows["trunk_id"].where(rows["d"] > 1e9, None))
    alone = PowerLaw("d").fit(two[two["n"] < 2e6], "y", bootstrap=100)
    assert alone.basis == "4 runs, 4 sizes, 3 trunks"  # a run from scratch is its own trunk
    data["trunk_id"] = "one"
    assert law.fit(data, "y", bootstrap=100).intervals == "none"  # nothing tells its noise from the law
    data["trunk_id"] = ""
    assert law.fit(data, "y", bootstrap=100).basis == "24 runs, 6 sizes"
