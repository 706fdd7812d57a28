"""Figures: of column width, legible, labelled with units, drawn from results and from nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.axis import Tick
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from varscale_analysis import (
    ChinchillaLaw,
    FitError,
    Frontier,
    LawFit,
    PowerLaw,
    RunTable,
    SaturatingPowerLaw,
    StudyAnalysis,
    analyse_conventions,
    compare_families,
    huber,
    sensitivity_of,
)
from varscale_analysis import figures as drawn
from varscale_analysis.figures.identification import _held, _threshold
from varscale_analysis.figures.style import short
from varscale_analysis.report.gallery import study_figures
from varscale_analysis.rolling import rolling_holdout

LOSS = "val_nats_per_token_avg"


def assert_legible(figure: Figure) -> None:
    """Column width, every axis labelled, no letter under 5.5 pt, no text cut off, no tick label upon another."""
    assert figure.get_figwidth() == pytest.approx(3.3)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert figure.get_supylabel() or all(axes.get_xlabel() or axes.get_ylabel() for axes in shown)
    of_ticks = {id(text) for tick in figure.findobj(Tick) for text in (tick.label1, tick.label2)}  # type: ignore[attr-defined]
    texts = [text for text in figure.findobj(Text) if id(text) not in of_ticks and text.axes in (None, *shown)]
    for axes in shown:
        for place, axis in enumerate((axes.xaxis, axes.yaxis)):
            low, high = sorted(axis.get_view_interval())
            labels = [t for t in axis.get_ticklabels(which="both") if low <= t.get_position()[place] <= high]
            labels = [t for t in labels if t.get_visible() and t.get_text()]
            edges = sorted(tuple(t.get_window_extent(renderer).get_points()[:, place]) for t in labels)
            assert all(a[1] <= b[0] + 1.0 for a, b in pairwise(edges)), [t.get_text() for t in labels]
            texts += labels
    for text in texts:
        assert isinstance(text, Text)
        if text.get_visible() and text.get_text().strip():
            box = text.get_window_extent(renderer)
            assert text.get_fontsize() >= 5.5
            inside = box.x0 >= -1 and box.y0 >= -1
            assert inside and box.x1 <= figure.bbox.width + 1 and box.y1 <= figure.bbox.height + 1, text.get_text()


@pytest.fixture(scope="module")
def analyses(ladder: StudyAnalysis, budgets: StudyAnalysis) -> dict[str, StudyAnalysis]:
    """A ladder at one D, and IsoFLOP budgets."""
    return {"ladder": ladder, "budgets": budgets}


@pytest.fixture(scope="module")
def law(isoflop_table: RunTable) -> LawFit:
    """A law of N and D."""
    return ChinchillaLaw(n="params_total").fit(isoflop_table, LOSS, bootstrap=200)


@pytest.mark.parametrize("kind", ["ladder", "budgets"])
def test_every_figure_of_a_study_is_legible(analyses: dict[str, StudyAnalysis], kind: str) -> None:
    found = study_figures(analyses[kind])
    wanted = {
        "ladder": {"law_nats_per_token_avg", "scales", "exponent", "curves", "holdout"},
        "budgets": {"chinchilla_nats_per_token_avg", "isoflop", "routes", "flatness_isoflop", "flatness_law"},
    }
    wanted = {
        name: names | {"residuals", "ridge", "rolling", "sensitivity", "conventions"} for name, names in wanted.items()
    }
    assert wanted[kind] <= found.keys()
    for name, (figure, caption) in found.items():
        assert caption.endswith("."), name
        assert_legible(figure)


def test_the_same_fit_gives_the_same_figure(law: LawFit, coarse: None) -> None:
    first, second = (drawn.png(drawn.residual_figure(law)) for _ in range(2))
    assert first == second
    assert first.startswith(b"\x89PNG")


def test_a_law_of_n_and_d_has_a_line_a_d_and_its_points(law: LawFit) -> None:
    axes = drawn.chinchilla_figure(law).axes[0]
    assert len(axes.lines) == 6  # the 30 D are shown by six
    (points,) = axes.collections
    assert len(points.get_offsets()) == 30
    two = law.points.where(np.isin(law.points.x["d"], np.unique(law.points.x["d"])[[3, 20]]))
    assert len(drawn.chinchilla_figure(replace(law, points=two)).axes[0].lines) == 2
    with pytest.raises(FitError, match="draw it with chinchilla_figure"):
        drawn.law_figure([law])


def test_residuals_of_n_and_d_stand_against_both(law: LawFit) -> None:
    figure = drawn.residual_figure(law)
    assert [axes.get_xlabel() for axes in figure.axes] == ["parameters N", "training tokens D (token)"]
    offsets = np.asarray(figure.axes[1].collections[0].get_offsets())
    assert offsets[:, 1] == pytest.approx(100 * (law.points.y / law.predict(**law.points.x) - 1))


@pytest.mark.parametrize("objective", ["log", huber(1e-3)])
def test_the_ridge_is_where_the_other_parameters_are_best(isoflop_table: RunTable, objective) -> None:  # type: ignore[no-untyped-def]
    form = ChinchillaLaw(n="params_total", objective=objective)
    fit = form.fit(isoflop_table, LOSS, bootstrap=0)
    held = _held(fit, {"E": np.array([1.75, 1.85])})
    assert held.theta[:, 0] == pytest.approx([1.75, 1.85])
    for theta, objective_at, e in zip(held.theta, held.objective, (1.75, 1.85), strict=True):
        again = replace(form, fixed={"E": e}).fit(isoflop_table, LOSS, bootstrap=0)
        assert objective_at == pytest.approx(again.diagnostics.objective, rel=1e-6)
        assert theta[3] == pytest.approx(again.params["alpha"].value, abs=1e-5)
    profile = fit.profile("E")
    assert _threshold(fit, 1) == pytest.approx(profile.threshold(0.9) - profile.least, rel=1e-6)


def test_the_ridge_figure_has_every_pair(law: LawFit, study) -> None:  # type: ignore[no-untyped-def]
    figure = drawn.ridge_figure(law)
    assert sum(axes.get_visible() for axes in figure.axes) == 3
    table = RunTable.read(study / "runs.csv")
    two = drawn.ridge_figure(SaturatingPowerLaw().fit(table, LOSS, bootstrap=200), ("E", "alpha"))
    assert_legible(two)
    with pytest.raises(FitError, match="no ridge"):
        drawn.ridge_figure(PowerLaw().fit(table, LOSS, bootstrap=200))
    with pytest.raises(FitError, match="no ridge"):
        drawn.ridge_figure(SaturatingPowerLaw(fixed={"E": 3.0}).fit(table, LOSS, bootstrap=200))


def test_a_profile_shows_its_interval(law: LawFit) -> None:
    profile = law.profile("alpha")
    figure = drawn.profile_figure(profile)
    assert_legible(figure)
    low, high = profile.interval(0.9)
    assert any(f"90%: {low:.4g} to {high:.4g}" in text.get_text() for text in figure.axes[0].texts)
    curve = figure.axes[0].lines[0]
    inside = np.abs(np.asarray(curve.get_xdata()) - profile.best) < 1e-12
    assert np.asarray(curve.get_ydata())[inside] == pytest.approx([0.0], abs=1e-9)


def test_sensitivity_has_a_row_a_choice(law: LawFit, isoflop_table: RunTable) -> None:
    form = law.form
    assert isinstance(form, ChinchillaLaw)
    table = sensitivity_of(form, isoflop_table, LOSS, sizes=False)
    figure = drawn.sensitivity_figure(table, "a", law)
    assert_legible(figure)
    (axes,) = figure.axes
    assert len(axes.get_yticks()) == len(table.rows)
    refused = replace(table, rows=(table.rows[0], replace(table.rows[1], values={}, refused="too few")))
    assert len(drawn.sensitivity_figure(refused, "a").axes[0].lines) == 2  # a dot and the line through the base
    with pytest.raises(FitError, match="gamma"):
        drawn.sensitivity_figure(table, "gamma")


def test_flatness_has_a_curve_a_budget_and_its_optimum_at_one(analyses: dict[str, StudyAnalysis]) -> None:
    for frontier in analyses["budgets"].frontiers.values():
        figure = drawn.flatness_figure(frontier)
        assert_legible(figure)
        for line in figure.axes[0].lines:
            x, y = (np.asarray(values, dtype=np.float64) for values in line.get_data())
            if len(x) > 100:
                assert x[np.nanargmin(y)] == pytest.approx(1.0, rel=0.03)
                assert np.nanmin(y) == pytest.approx(0.0, abs=0.02)


def test_conventions_have_a_row_each(study) -> None:  # type: ignore[no-untyped-def]
    table = analyse_conventions(
        RunTable.read(study / "runs.csv"), sizes=["params_nonembed", "params_total"], bootstrap=100
    )
    assert len(drawn.conventions_figure(table, "alpha").axes[0].get_yticks()) == 2
    figure = drawn.conventions_figure(table, "l_exponent")
    assert_legible(figure)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [
        "nonembed, dense (recorded)", "nonembed, 6nd", "total, dense (recorded)", "total, 6nd",
    ]  # fmt: skip
    with pytest.raises(FitError, match="no exponent of conventions"):
        drawn.conventions_figure(table, "beta")


def _family(saving: float, seeds: Sequence[int], rng: np.random.Generator) -> RunTable:
    rows = [
        (
            n,
            6 * n * 2.5e7,
            seed,
            (3.2 + (saving * 6 * n * 2.5e7 / 3e11) ** -0.16) * np.exp(0.002 * rng.standard_normal()),
        )
        for n in np.geomspace(2e5, 2e7, 6)
        for seed in seeds
    ]
    frame = pd.DataFrame(rows, columns=["params_total", "flops_train", "seed", LOSS])
    return RunTable.from_frame(frame, constants={"tokens_seen": 2.5e7})


def test_two_families_stand_side_by_side() -> None:
    rng = np.random.default_rng(0)
    comparison = compare_families(_family(1.0, (0, 1), rng), _family(1.5, (0, 1), rng), names=("base", "new"))
    figure = drawn.families_figure(comparison)
    assert_legible(figure)
    top, bottom = figure.axes
    assert [text.get_text() for text in top.get_legend().get_texts()] == ["base", "new"]  # type: ignore[union-attr]
    assert bottom.get_ylabel() == "compute of base\n/ compute of new"
    again = type(comparison).from_dict(comparison.to_dict())
    assert again.summary() == comparison.summary()
    assert again.fits[0].predict(1e14) == pytest.approx(comparison.fits[0].predict(1e14))
    with pytest.raises(FitError, match="not a saved comparison"):
        type(comparison).from_dict({"names": ("a", "b")})


def test_rolling_hold_out_marks_what_lies_outside(study) -> None:  # type: ignore[no-untyped-def]
    rolling = rolling_holdout(RunTable.read(study / "runs.csv"), SaturatingPowerLaw(), LOSS, bootstrap=200)
    moved = replace(rolling, rows=(replace(rolling.rows[0], inside=False), *rolling.rows[1:]))
    figure = drawn.rolling_figure(moved)
    assert_legible(figure)
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]  # type: ignore[union-attr]
    assert "measured, outside" in names
    none = replace(rolling, rows=tuple(replace(row, refused="no fit") for row in rolling.rows))
    with pytest.raises(FitError, match="no fit"):
        drawn.rolling_figure(none)


def test_routes_without_an_optimum_are_refused(analyses: dict[str, StudyAnalysis]) -> None:
    frontier = analyses["ladder"].frontier
    assert isinstance(frontier, Frontier)
    with pytest.raises(ValueError, match=r"no N_opt|no frontier has an N_opt"):
        drawn.routes_figure([replace(frontier, n_opt=None)])
    with pytest.raises(ValueError, match="shows one from an envelope"):
        drawn.curves_figure(analyses["ladder"].table, analyses["budgets"].frontiers["law"])


@pytest.mark.parametrize(
    ("number", "text"), [(0.2, "0.2"), (5.0, "5"), (174_216.0, "174k"), (2.5e6, "2.5M"), (7e10, "70B"), (3e18, "3e+18")]
)
def test_counts_are_short(number: float, text: str) -> None:
    assert short(number) == text
