"""Figures of what the points tell about the parameters: exponent against E, the ridge of E-alpha-beta, profiles.

The ridge is the path of the best other parameters as E is held at one value after another; the contours are of the
objective with E and an exponent held. Both come from the solver, with the held parameters given no influence, all at
once.
Shapes: B parameter vectors, P parameters of one, n points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import fdtri

from varscale_analysis.figures.style import BLUE, GREY, HEIGHT_IN, INK, ORANGE, head, loss_ticks, panels, shade
from varscale_analysis.fit import FitError, Floats
from varscale_analysis.laws.result import LawFit
from varscale_analysis.offset import ExponentAtOffset
from varscale_analysis.profile import Profile
from varscale_analysis.solver import Solutions, solve
from varscale_analysis.table import LEVEL

_STEPS = 41  # of the ridge
_GRID = 24  # of a contour, across the ridge
_REACH = 6.0  # of that grid, in standard deviations of the draws about the ridge
_SHOWN = 1500  # draws at most
_CLOUD = (0.003, 0.997)  # of the draws, which set the ranges of the axes


def exponent_figure(rows: Sequence[ExponentAtOffset], fit: LawFit | None = None) -> Figure:
    """The exponent for each fixed offset E (above) and Pearson's r (below); the fitted E with its interval shaded."""
    with panels(2, height=HEIGHT_IN * 1.15, sharex=True, height_ratios=(3, 2)) as (figure, (top, bottom)):
        offsets = [row.offset for row in rows]
        top.plot(offsets, [row.alpha for row in rows], color=BLUE)
        bottom.plot(offsets, [row.pearson_r for row in rows], color=INK)
        if fit is not None and "E" in fit.params:
            e = fit.params["E"]
            for axes in (top, bottom):
                axes.axvline(e.value, color=ORANGE, linewidth=0.9)
                shade(axes, e)
            top.set_title(f"fitted E = {e.value:.3g}, 90 % interval shaded", loc="left")
        top.set_ylabel("exponent alpha")
        bottom.set_ylabel("Pearson r\n(not evidence)")
        bottom.set_xlabel("fixed offset E (nat/token)")
        figure.align_ylabels()
    return figure


def ridge_figure(fit: LawFit, names: Sequence[str] = ("E", "alpha", "beta")) -> Figure:
    """Every pair of parameters: draws (dots), the ridge of the objective (orange), its 90 % contour of E and alpha.

    The ridge joins, for each E held, the best values of all other parameters; it is dashed where E lies outside its
    profile interval. A prefactor has a log axis. Raises ``FitError`` for a law without draws or without an E that is
    fitted, and for fewer than two of the names.
    """
    names = [name for name in names if name in fit.params and not fit.params[name].given]
    if "E" not in names or len(names) < 2:
        raise FitError(f"{fit.formula} has no fitted E with another of these parameters: there is no ridge to draw")
    drawn = fit.drawn()
    logs = {name for name, log in zip(fit.form.names, fit.form.log_linear, strict=False) if log}
    ranges = {name: np.asarray(np.quantile(drawn[name], _CLOUD)) for name in names}
    path = _held(fit, {"E": np.linspace(ranges["E"][0], ranges["E"][1], _STEPS)})
    ridge = fit.form.report(path.theta, np.array(fit.centre))
    inside = _rise(fit, path.objective) <= _threshold(fit, 1) if not fit.objective.kinked else None
    some = np.random.default_rng(0).permutation(len(fit.draws))[:_SHOWN]
    count = len(names) - 1
    height = 2.2 if count == 1 else 1.55 * count
    with panels(count, count, height=height, sharex="col", sharey="row") as (figure, shown):
        grid = np.array(shown, dtype=object).reshape(count, count)
        for panel in shown:
            panel.set_visible(False)
        for i, j in combinations(range(len(names)), 2):
            axes: Axes = grid[j - 1, i]
            axes.set_visible(True)
            x, y = names[i], names[j]
            axes.plot(drawn[x][some], drawn[y][some], ".", color=BLUE, alpha=0.25, markersize=1.6, markeredgewidth=0)
            if (x, y) == ("E", "alpha") and inside is not None:
                _contour(axes, fit, ridge, drawn)
            axes.plot(ridge[x], ridge[y], "--", color=ORANGE, linewidth=0.8)
            if inside is not None:
                axes.plot(ridge[x][inside], ridge[y][inside], color=ORANGE, linewidth=1.4)
            axes.plot(fit.params[x].value, fit.params[y].value, "o", color=INK, markersize=3, zorder=5)
            for name, scale in ((x, axes.set_xscale), (y, axes.set_yscale)):
                if name in logs:
                    scale("log")
            axes.set_xlim(_wider(ranges[x], x in logs))
            axes.set_ylim(_wider(ranges[y], y in logs))
            if y in logs:
                loss_ticks(axes.yaxis)
            if j == len(names) - 1:
                axes.set_xlabel(_named(fit, x))
            if i == 0:
                axes.set_ylabel(_named(fit, y))
        how = "dots: draws; orange: ridge;\ncontour: 90 % by the objective" if inside is not None else "dots: draws"
        if count > 1:
            figure.text(0.985, 0.93, how, ha="right", va="top", fontsize=6.5, color=INK)
        else:
            head(figure, how.replace("\n", " "))
    return figure


def profile_figure(profile: Profile, unit: str = "1", levels: Sequence[float] = (0.68, LEVEL)) -> Figure:
    """The profile of one parameter: rise of the objective above its least, in units of F, and the interval levels.

    ``unit`` is that of the parameter. An interval end that the profile never reaches is not marked.
    """
    with panels() as (figure, (axes,)):
        rise = (profile.objective - profile.least) / profile.unit_of_f
        highest = float(fdtri(1, profile.degrees_of_freedom, max(levels)))
        shown = rise <= 2.2 * highest
        axes.plot(profile.values[shown], rise[shown], color=BLUE, marker="o", markersize=2.2, linewidth=0.9)
        axes.plot([profile.best], [0], "o", color=INK, markersize=3.5, zorder=4)
        for level in levels:
            height = (profile.threshold(level) - profile.least) / profile.unit_of_f
            low, high = profile.interval(level)
            axes.axhline(height, color=ORANGE, linewidth=0.7)
            ends = " to ".join(f"{end:.4g}" for end in (low, high))
            place: Any = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "fontsize": 6.5}
            axes.annotate(f"{level:.0%}: {ends}", (profile.best, height), color=ORANGE, **place)
            for end in (low, high):
                if np.isfinite(end):
                    axes.vlines(end, 0, height, color=ORANGE, linestyle=":", linewidth=0.7)
        axes.set_ylim(-0.05 * highest, 2.2 * highest)
        axes.set_xlabel(profile.name if unit == "1" else f"{profile.name} ({unit})")
        axes.set_ylabel("rise of the objective (units of F)")
        axes.set_title(f"profile, {profile.degrees_of_freedom} degrees of freedom", loc="left")
    return figure


def _held(fit: LawFit, values: dict[str, Floats]) -> Solutions:
    """The best other parameters for each value of the held ones (E and exponents, which stand in theta as they are)."""
    problem = fit.problem
    index = [fit.form.names.index(name) for name in values]
    start = np.repeat(np.array([fit.theta]), len(next(iter(values.values()))), axis=0)
    for i, held in zip(index, values.values(), strict=True):
        start[:, i] = held

    def evaluate(theta_BP: Floats, u_Vn: Floats) -> tuple[Floats, Floats]:
        f_Bn, jacobian_BPn = fit.form.evaluate(theta_BP, u_Vn)
        jacobian_BPn[:, index] = 0.0  # a parameter without influence rests
        return f_Bn, jacobian_BPn

    y, w = problem.points.y[None], problem.points.w[None]
    return solve(evaluate, problem.u, start, y, w, fit.objective, *problem.limits, problem.linear)


def _rise(fit: LawFit, objective_B: Floats) -> Floats:
    return np.asarray(objective_B - fit.diagnostics.objective)


def _threshold(fit: LawFit, held: int) -> float:
    """How far the objective may rise in a 90 % region of ``held`` parameters: the F region that ``Profile`` uses."""
    freedom = max(1, fit.diagnostics.degrees_of_freedom)
    r_n, w_n, delta = fit.residuals, fit.points.w, fit.objective.delta
    psi = r_n if delta is None else np.clip(r_n, -delta, delta)
    inside = float((w_n * (psi == r_n)).sum() / w_n.sum())
    variance = float((w_n * psi**2).sum() / freedom / max(inside, 1e-3))
    return held * variance / (1 if delta is None else 2) * float(fdtri(held, freedom, LEVEL))


def _contour(axes: Axes, fit: LawFit, ridge: Mapping[str, Floats], drawn: Mapping[str, Floats]) -> None:
    """The 90 % region, on a grid that follows the ridge: one of E and alpha would be too coarse for a narrow ridge."""
    e_S, alpha_S = ridge["E"][::2], ridge["alpha"][::2]
    spread = float(np.std(drawn["alpha"] - np.interp(drawn["E"], e_S, alpha_S)))
    lower, upper = (float(limit[fit.form.names.index("alpha")]) for limit in fit.problem.limits)
    alpha_GS = np.clip(alpha_S + spread * np.linspace(-_REACH, _REACH, _GRID)[:, None], lower, upper)
    e_GS = np.broadcast_to(e_S, alpha_GS.shape)
    rise = _rise(fit, _held(fit, {"E": e_GS.ravel(), "alpha": alpha_GS.ravel()}).objective).reshape(alpha_GS.shape)
    axes.contour(e_GS, alpha_GS, rise, levels=[_threshold(fit, 2)], colors=[GREY], linewidths=0.7)


def _wider(ends: Floats, logarithmic: bool = False) -> tuple[float, float]:
    low, high = (np.log(ends) if logarithmic else ends).tolist()
    out = np.array([low - 0.12 * (high - low), high + 0.12 * (high - low)])
    low, high = (np.exp(out) if logarithmic else out).tolist()
    return low, high


def _named(fit: LawFit, name: str) -> str:
    unit = fit.params[name].unit
    return name if unit == "1" else f"{name} ({unit})"
