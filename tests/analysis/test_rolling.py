"""Rolling hold-out: only smaller sizes are used, intervals and densities are those of the law, refusals are rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import comb
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from varscale_analysis import (
    BrokenPowerLaw,
    ChinchillaLaw,
    Coverage,
    FitError,
    PowerLaw,
    RollingHoldout,
    RunTable,
    RunTableError,
    SaturatingPowerLaw,
    compare_rolling,
    rolling_holdout,
)
from varscale_analysis.laws.law import Intervals
from varscale_analysis.rolling import log_density

LAW = SaturatingPowerLaw("n")


def ladder(sizes: int = 9, seeds: int = 2, noise: float = 0.004, rng_seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rng_seed)
    n = np.repeat(np.geomspace(5e3, 1.2e6, sizes), seeds)
    truth = 3.37 + (n / 3.0e3) ** -0.4
    return {"n": n, "y": truth * np.exp(noise * rng.standard_normal(len(n)))}


def test_every_prediction_is_the_fit_of_the_smaller_sizes() -> None:
    data = ladder()
    result = rolling_holdout(data, LAW, "y", bootstrap=200)
    sizes = np.unique(data["n"])
    assert [row.sizes for row in result.rows] == [4, 5, 6, 7, 8] and {row.ahead for row in result.rows} == {1}
    for row in result.rows:
        smaller = data["n"] < row.target
        fit = LAW.fit((data["n"][smaller], data["y"][smaller]), bootstrap=200)
        low, high = fit.predict_interval(row.target, seeds=2)
        measured = data["y"][data["n"] == row.target].mean()
        assert row.target == sizes[row.sizes] and row.runs == smaller.sum() and row.seeds == 2
        assert row.measured == pytest.approx(measured) and row.predicted == pytest.approx(
            float(fit.predict(row.target))
        )
        assert row.low == pytest.approx(float(low)) and row.high == pytest.approx(float(high))
        assert row.inside == (low <= measured <= high)
        assert row.error_percent == pytest.approx(100 * (row.predicted / measured - 1))
        before = data["y"][data["n"] == sizes[row.sizes - 1]].mean()
        assert row.naive_error_percent == pytest.approx(100 * (before / measured - 1))
    assert result.error_percent is not None and result.naive_error_percent is not None
    assert result.error_percent < 0.5 * result.naive_error_percent
    assert "5 of 5 inside" in result.summary()


@pytest.mark.parametrize("residual", ["log", "raw"])
@pytest.mark.parametrize("intervals", ["noise", "pairs"])
def test_the_log_score_is_the_density_behind_the_interval(residual: str, intervals: Intervals) -> None:
    """It integrates to one over log loss and has nine tenths of its mass in the interval, for either residual."""
    data = ladder()
    fit = SaturatingPowerLaw("n", objective=residual).fit((data["n"], data["y"]), bootstrap=400, intervals=intervals)
    x, z = {"n": 2.4e6}, np.linspace(np.log(3.2), np.log(3.8), 1201)
    density = np.exp([log_density(fit, x, y, 3) for y in np.exp(z)])
    assert np.trapezoid(density, z) == pytest.approx(1.0, abs=0.01)
    low, high = (float(np.log(end)) for end in fit.predict_interval(2.4e6, seeds=3))
    within = (z >= low) & (z <= high)
    assert np.trapezoid(density[within], z[within]) == pytest.approx(0.9, abs=0.04)


def test_the_horizon_predicts_several_sizes_from_the_same_fit() -> None:
    result = rolling_holdout(ladder(7, seeds=1), LAW, "y", first=5, horizon=3, bootstrap=100)
    assert [(row.sizes, row.ahead) for row in result.rows] == [(5, 1), (5, 2), (6, 1)]
    width = {row.ahead: np.log(row.high / row.low) for row in result.rows if row.sizes == 5}  # type: ignore[operator]
    assert width[2] > width[1]
    assert result.rows[1].naive_log_score < result.rows[0].naive_log_score


def chinchilla_runs() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    n, d = (a.ravel() for a in np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(2e8, 2e10, 5), indexing="ij"))
    y = (1.7 + 406 * n**-0.34 + 410 * d**-0.28) * np.exp(0.003 * rng.standard_normal(len(n)))
    return pd.DataFrame({"N": n, "D": d, "C": 6 * n * d, "L": y})


@pytest.mark.parametrize(("by", "targets"), [("n", 10), ("d", 6), ("C", None)])
def test_a_law_of_two_columns_is_ordered_by_either_or_by_compute(by: str, targets: int | None) -> None:
    runs = chinchilla_runs()
    result = rolling_holdout(runs, ChinchillaLaw("N", "D"), "L", by=by, first=4 if by != "C" else 8, bootstrap=60)
    column = {"n": "N", "d": "D", "C": "C"}[by]
    assert result.by == column and len(result.scored) == len(result.rows)
    if targets is not None:
        assert len(result.rows) == targets
    for row in result.rows:
        assert runs[column][runs[column] < row.target * 0.99].nunique() >= row.sizes
        at = (runs["N"] == row.at["N"]) & (runs["D"] == row.at["D"])
        assert row.measured == pytest.approx(float(runs["L"][at].iloc[0]))


def test_intervals_hold_the_share_they_claim_and_beat_the_naive_rule() -> None:
    """Eight studies; over sixty of them .92 of 300 were inside."""
    results = [rolling_holdout(ladder(rng_seed=i), LAW, "y", bootstrap=100) for i in range(8)]
    coverage = Coverage.of(sum(r.coverage.inside for r in results), sum(r.coverage.rows for r in results))
    assert coverage.rows == 40 and coverage.low < 0.9 < coverage.high
    gains = [r.log_score - r.naive_log_score for r in results if r.log_score is not None and r.naive_log_score]
    assert len(gains) == 8 and min(gains) > 0


def test_laws_and_the_naive_rule_are_compared_on_common_targets() -> None:
    laws = {"saturating": LAW, "power": PowerLaw("n")}
    comparison = compare_rolling(ladder(10), laws, "y", bootstrap=200)
    assert comparison.order == ("saturating", "power") and comparison.common == 6
    gap, error = comparison.difference("saturating", "power")
    assert gap > 2 * error > 0
    text = comparison.summary()
    assert text.index("saturating") < text.index("power") < text.index("naive")
    assert type(comparison).from_dict(json.loads(json.dumps(comparison.to_dict()))).summary() == text
    with pytest.raises(FitError, match="no target is predicted by every law"):
        compare_rolling(ladder(5, seeds=1), {"power": PowerLaw("n"), "broken": BrokenPowerLaw("n")}, "y", bootstrap=50)


def test_coverage_counts_and_its_exact_interval() -> None:
    """Clopper and Pearson's interval holds the share with which the observed count is just not too rare."""
    coverage = Coverage.of(8, 10)
    counts = np.arange(11)
    choose = np.array([comb(10, int(k)) for k in counts])
    for share, tail in ((coverage.low, counts >= 8), (coverage.high, counts <= 8)):
        assert (choose * share**counts * (1 - share) ** (10 - counts))[tail].sum() == pytest.approx(0.05, rel=1e-6)
    assert (Coverage.of(0, 5).low, Coverage.of(5, 5).high) == (0.0, 1.0)


def test_a_fit_that_is_refused_is_a_row_with_its_reason() -> None:
    data = ladder(6, seeds=1)
    result = rolling_holdout(data, LAW, "y", first=3, bootstrap=50)
    first, *rest = result.rows
    assert first.refused is not None and "no draws" in first.refused and first.predicted is None
    assert all(row.refused is None for row in rest) and result.coverage.rows == len(rest) == 2
    assert "refused" in result.summary()
    short = rolling_holdout(data, LAW, "y", first=2, bootstrap=50).rows[0]
    assert short.refused is not None and "2 sizes" in short.refused


def test_every_kind_of_data_gives_the_same(make_study: Callable[..., Path]) -> None:
    table = RunTable.read(make_study() / "runs.csv")
    law, options = SaturatingPowerLaw(), {"bootstrap": 50}
    results = [
        rolling_holdout(table, law, **options),
        rolling_holdout(table.rows, law, **options),
        rolling_holdout((table.values("params_nonembed"), table.values("val_nats_per_token_avg")), law, **options),
        rolling_holdout(table, law, by="flops_train", **options),
    ]
    for other in results[1:]:
        assert [row.predicted for row in other.rows] == pytest.approx([row.predicted for row in results[0].rows])
        assert [row.log_score for row in other.rows] == pytest.approx([row.log_score for row in results[0].rows])
    frame = results[0].to_frame()
    assert list(frame["params_nonembed"]) == [row.target for row in results[0].rows]
    assert RollingHoldout.from_dict(json.loads(json.dumps(results[0].to_dict()))) == results[0]
    mixed = table.rows.assign(tokenizer_id=[f"tok{i % 2}" for i in range(len(table))])
    with pytest.raises(RunTableError, match="2 tokenizers"):
        rolling_holdout(RunTable(mixed), law)


def test_what_cannot_be_rolled_is_refused() -> None:
    data = ladder(5, seeds=1)
    with pytest.raises(FitError, match="needs at least 6"):
        rolling_holdout(data, LAW, "y", first=5)
    with pytest.raises(FitError, match="no column 'compute'"):
        rolling_holdout(data, LAW, "y", by="compute")
    with pytest.raises(FitError, match="not positive"):
        rolling_holdout({**data, "C": -data["n"]}, LAW, "y", by="C")
    with pytest.raises(FitError, match="does not hold numbers"):
        rolling_holdout({**data, "C": ["a", "b", "c", "d", "e"]}, LAW, "y", by="C")
    with pytest.raises(ValueError, match="first=1"):
        rolling_holdout(data, LAW, "y", first=1)
    with pytest.raises(FitError, match="not a rolling hold-out"):
        RollingHoldout.from_dict({"rows": []})
