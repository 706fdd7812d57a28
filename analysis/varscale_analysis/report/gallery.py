"""The figures of a study, by file name, each with its caption: whatever its analysis holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from matplotlib.figure import Figure

from varscale_analysis import figures
from varscale_analysis.figures.style import label
from varscale_analysis.fit import FitError
from varscale_analysis.laws.result import LawFit
from varscale_analysis.study import StudyAnalysis

Entry = tuple[str, Callable[..., Figure], tuple[Any, ...], str]


def study_figures(analysis: StudyAnalysis) -> dict[str, tuple[Figure, str]]:
    """Every figure the study carries, by file name, with its caption. One that its result refuses is left out."""
    out: dict[str, tuple[Figure, str]] = {}
    for name, draw, arguments, caption in (*_laws(analysis), *_frontiers(analysis), *_checks(analysis)):
        try:
            out[name] = draw(*arguments), caption
        except FitError:  # such as a ridge of a law whose E lies at its bound in every draw
            continue
    return out


def _laws(analysis: StudyAnalysis) -> Iterator[Entry]:
    for i, scan in enumerate(analysis.rates):
        text = f"The loss of every size at its peak rates {scan.at}, and the best rate against N; open at an edge."
        yield "learning_rates" + (f"_{i}" if i else ""), figures.rates_figure, (scan,), text
    by_loss: dict[str, list[LawFit]] = {}
    for fit in analysis.fits.values():
        if len(fit.points.x) == 1:
            by_loss.setdefault(fit.y, []).append(fit)
        else:
            text = f"{label(fit.y)} against N, one line a D, and the runs. {fit.formula}."
            yield f"{fit.law}_{fit.y.removeprefix('val_')}", figures.chinchilla_figure, (fit,), text
    for loss, fits in by_loss.items():
        text = f"{label(loss)} against N. A point is a run; a dashed line is another law of the same runs."
        yield f"law_{loss.removeprefix('val_')}", figures.law_figure, (fits,), text
    main = analysis.main
    if main is not None:
        text = "Residuals of every run: seed noise and lack of fit."
        if analysis.checks is not None and analysis.checks.lack_of_fit is not None:
            text = f"Residuals of every run; {analysis.checks.lack_of_fit.summary()}."
        yield "residuals", figures.residual_figure, (main,), text
    if len(analysis.per_scale) > 1:
        text = "Nats per token of each scale against N: what size buys at which resolution."
        yield "scales", figures.per_scale_figure, (analysis.per_scale, analysis.n), text
    if analysis.exponents:
        text = "The exponent depends on the offset taken off beforehand; Pearson's r hardly does."
        offset = main if main is not None and main.form.fixed_tokens else None
        yield "exponent", figures.exponent_figure, (analysis.exponents, offset), text
    if main is not None and "E" in main.params and len(main.draws):
        text = "What the points cannot tell apart: as E is held at one value after another, the best other parameters."
        yield "ridge", figures.ridge_figure, (main,), text


def _frontiers(analysis: StudyAnalysis) -> Iterator[Entry]:
    for route, frontier in analysis.frontiers.items():
        if frontier.envelope is not None:
            text = (
                "Validation curves, one colour a size, without their first 10 %, and their lower envelope. Filled "
                "circles are crossings of two sizes; open circles are places where a curve begins or ends."
            )
            yield "curves", figures.curves_figure, (analysis.everything, frontier), text
        if frontier.profiles:
            text = "Loss against N at each budget, with its minimum (star). Open grey profiles were refused."
            yield "isoflop", figures.isoflop_figure, (frontier,), text
        if route in analysis.flatness:
            text = f"What missing the best size costs, by {route}, at the largest compute."
            yield f"flatness_{route}", figures.flatness_figure, (frontier, [analysis.flatness[route].flops]), text
    drawn = [frontier for frontier in analysis.frontiers.values() if frontier.n_opt is not None]
    if drawn:
        text = "The best size against compute by every route, with 90 % bands: where they part, the method decides."
        yield "routes", figures.routes_figure, (drawn,), text


def _checks(analysis: StudyAnalysis) -> Iterator[Entry]:
    if analysis.prediction is not None:
        text = "A size predicted from the smaller ones, and what was measured."
        yield "holdout", figures.holdout_figure, (analysis.used, analysis.prediction, analysis.score), text
    checks, main = analysis.checks, analysis.main
    if checks is None or main is None:
        return
    if checks.rolling is not None:
        text = "Every size predicted from the smaller ones alone, with its interval, and what was measured."
        yield "rolling", figures.rolling_figure, (checks.rolling,), text
    for name, profile in checks.profiles.items():
        text = f"How much worse the fit becomes when {name} is held elsewhere, and the intervals that follow."
        yield f"profile_{name}", figures.profile_figure, (profile, main.params[name].unit), text
    if checks.sensitivity is not None:
        name = "a" if "a" in main.derived else "alpha"
        text = f"{name} under every choice that could have been made otherwise."
        yield "sensitivity", figures.sensitivity_figure, (checks.sensitivity, name, main), text
    if checks.conventions is not None:
        name = "n_exponent" if any(row.n_exponent is not None for row in checks.conventions.rows) else "alpha"
        text = "One exponent under every way to count N and C: the same runs, other numbers."
        yield "conventions", figures.conventions_figure, (checks.conventions, name), text
