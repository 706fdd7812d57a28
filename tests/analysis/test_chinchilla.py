"""Besiroglu et al. (arXiv:2404.10102) on their 240 points: point, table and bootstrap, each by its own objective."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from varscale_analysis import ChinchillaLaw, FitError, huber, least_absolute_deviations, sensitivity_of, squares

LOSS = "loss_nats_per_token"
LAW = ChinchillaLaw("n_params", "d_tokens", objective=huber(1e-3))


@pytest.fixture(scope="module")
def everything(test_data: Path) -> pd.DataFrame:
    """All 245 rows."""
    return pd.read_csv(test_data / "laws" / "besiroglu2024_chinchilla_svg.csv")


@pytest.fixture(scope="module")
def points(everything: pd.DataFrame) -> pd.DataFrame:
    """Without the five highest losses."""
    kept = everything.sort_values(LOSS).iloc[:-5].sort_index()
    assert (kept["kept_by_besiroglu"] == 1).all()
    return kept


def test_the_point_is_the_optimum_of_its_objective(points: pd.DataFrame) -> None:
    fit = LAW.fit(points, LOSS, bootstrap=0)
    assert fit.diagnostics.objective <= 0.0010182740179
    values = fit.values()
    assert values["alpha"] == pytest.approx(0.347310, abs=2e-5)
    assert values["beta"] == pytest.approx(0.367172, abs=2e-5)
    assert values["A"] == pytest.approx(477.826, abs=0.1)
    assert values["B"] == pytest.approx(2143.42, abs=1)
    assert values["E"] == pytest.approx(1.81722, abs=2e-5)
    certificate = fit.certificate
    assert certificate.starts_agreeing == certificate.starts_tried == 16
    assert certificate.gradient < 1e-6
    assert certificate.next_basin is None
    assert not certificate.at_bounds


def test_the_papers_table_is_the_fit_of_least_absolute_deviations(points: pd.DataFrame) -> None:
    published = {"A": 482.006, "B": 2085.43, "E": 1.81686, "alpha": 0.34781, "beta": 0.36585}
    absolute = ChinchillaLaw("n_params", "d_tokens", objective=least_absolute_deviations()).fit(
        points, LOSS, bootstrap=0
    )
    corner = ChinchillaLaw("n_params", "d_tokens", objective=huber(1e-7)).fit(points, LOSS, bootstrap=0)
    for name, value in published.items():
        assert absolute.values()[name] == pytest.approx(value, rel=1e-4), name
        assert corner.values()[name] == pytest.approx(value, rel=1e-4), name


def test_the_published_standard_errors_with_their_resamples(points: pd.DataFrame) -> None:
    """4000 draws of numpy's legacy stream, seed 42, over the rows in file order."""
    legacy = np.random.RandomState(42)
    draws = np.zeros((4000, len(points)))
    for draw in draws:
        np.add.at(draw, legacy.choice(len(points), len(points)), 1.0)
    fit = LAW.fit(points, LOSS, bootstrap=draws, intervals="pairs")
    expected = {"A": 124.49, "B": 1293.17, "E": 0.02566, "alpha": 0.01540, "beta": 0.02059, "a": 0.01997}
    for name, value in expected.items():
        assert fit.standard_error(name) == pytest.approx(value, rel=5e-3), name
    assert fit.diagnostics.draws == fit.diagnostics.draws_asked == 4000
    assert fit.diagnostics.draws_checked == fit.diagnostics.draws_agreeing == 200
    assert fit.derived["a"].value == pytest.approx(0.513, abs=2e-3)


def test_the_bootstrap_of_its_own_draws_is_statistically_the_same(points: pd.DataFrame) -> None:
    fit = LAW.fit(points, LOSS, bootstrap=500, intervals="pairs", seed=1)
    assert fit.standard_error("alpha") == pytest.approx(0.0154, rel=0.15)
    assert fit.standard_error("a") == pytest.approx(0.01997, rel=0.15)


def test_what_moves_the_exponents_is_shown(everything: pd.DataFrame, points: pd.DataFrame) -> None:
    table = sensitivity_of(LAW, points, LOSS, sizes=False, outliers=2)
    low, high = table.span("a", "objective")
    assert low == pytest.approx(0.513, abs=1e-3)
    by_change = {row.change: row for row in table.rows}
    assert by_change["squares of log residuals"].values["a"] == pytest.approx(0.530, abs=1e-3)
    assert high >= 0.530
    with_outliers = ChinchillaLaw("n_params", "d_tokens", objective=least_absolute_deviations()).fit(
        everything, LOSS, bootstrap=0
    )
    assert with_outliers.values()["beta"] == pytest.approx(0.452, abs=1e-3)
    assert len(table.to_frame()) == len(table.rows) == 1 + 6 + 3 + 6
    assert "span:" in table.summary()


def test_an_offset_above_the_smallest_loss_is_a_row_with_its_reason(points: pd.DataFrame) -> None:
    table = sensitivity_of(LAW, points, LOSS, sizes=False, outliers=0, deltas=(), offsets=[1.8, 2.5])
    good, bad = (row for row in table.rows if row.kind == "offset")
    assert good.refused is None and good.values["E"] == 1.8
    assert bad.refused is not None and "fixed E = 2.5" in bad.refused and not bad.values


def test_the_prefactors_unit_is_that_of_the_column(points: pd.DataFrame) -> None:
    billions = points.assign(n_params=points["n_params"] / 1e9)
    one, other = LAW.fit(points, LOSS, bootstrap=0), LAW.fit(billions, LOSS, bootstrap=0)
    alpha = one.values()["alpha"]
    assert other.values()["alpha"] == pytest.approx(alpha, rel=1e-8)
    assert other.values()["A"] == pytest.approx(one.values()["A"] * 1e9**-alpha, rel=1e-7)
    per = ChinchillaLaw("n_params", "d_tokens", per=1e9, objective=huber(1e-3)).fit(points, LOSS, bootstrap=0)
    assert per.values()["A"] == pytest.approx(other.values()["A"], rel=1e-7)


def test_one_size_or_too_few_points_are_refused() -> None:
    d = np.geomspace(1e9, 1e11, 6)
    with pytest.raises(FitError, match="n has one value"):
        ChinchillaLaw("n", "d", objective=squares()).fit((np.full(6, 1e8), d, 3 - np.log(d) / 50), bootstrap=0)
    with pytest.raises(FitError, match=r"5 parameters.* 4 different points.*tied"):
        ChinchillaLaw("n", "d").fit((d[:4], d[:4], 3 - np.log(d[:4]) / 50), bootstrap=0)


def test_points_on_one_line_of_n_and_d_do_not_tell_the_parameters_apart() -> None:
    n = np.geomspace(1e8, 1e10, 9)
    y = 1.7 + 400 * n**-0.34
    with pytest.raises(FitError, match=r"do not tell the parameters apart|only one of"):
        ChinchillaLaw("n", "d", tied=True).fit((n, 20 * n, y), bootstrap=0)
