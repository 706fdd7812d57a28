"""Figures of fitted laws: the law with its points and band, the law of N and D, residuals, every scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from varscale_analysis.figures.style import (
    BLUE,
    HEIGHT_IN,
    INK,
    ORANGE,
    STYLE,
    count_ticks,
    label,
    log_log,
    panels,
    short,
    size_colours,
    symbol,
)
from varscale_analysis.fit import FitError, Floats
from varscale_analysis.laws.result import LawFit

_LINES = 6  # of a law of N and D, where its D are many
_CROWD = 60  # points beyond which they are drawn smaller


def law_figure(fits: Sequence[LawFit]) -> Figure:
    """Points of the first fit with its line and 90 % prediction band; further fits of the same data dashed.

    Axes: log-log. Raises ``FitError`` for a law of several columns, which ``chinchilla_figure`` draws.
    """
    first = fits[0]
    if len(first.points.x) != 1:
        raise FitError(f"{first.law} is a law of {', '.join(first.points.x)}; draw it with chinchilla_figure")
    (x_n,), y_n = first.points.x.values(), first.points.y
    with panels() as (figure, (axes,)):
        grid = np.geomspace(x_n.min() / 1.25, x_n.max() * 2.0, 200)
        if len(first.draws) and not first.intervals.startswith("jackknife"):
            low, high = first.predict_interval(grid)
            axes.fill_between(grid, low, high, color=BLUE, alpha=0.18, linewidth=0, label="90 % prediction interval")
        axes.plot(grid, first.predict(grid), color=BLUE, label=_equation(first))
        for fit in fits[1:]:
            axes.plot(grid, fit.predict(grid), color=ORANGE, linestyle="--", linewidth=0.9, label=_equation(fit))
        colours = size_colours(x_n)
        axes.scatter(x_n, y_n, s=11, c=[colours[float(x)] for x in x_n], edgecolors="white", linewidths=0.4, zorder=3)
        log_log(axes)
        axes.set_xlabel(label(first.x))
        axes.set_ylabel(label(first.y))
        axes.set_title(f"{first.at}: {first.basis}" if first.at else first.basis, loc="left")
        axes.legend(loc="upper right")
    return figure


def chinchilla_figure(fit: LawFit) -> Figure:
    """A law of N and D: loss against N, one line a D (six of them where there are more), the points in the D's colour.

    Axes: log-log. Raises ``FitError`` for a law of other columns.
    """
    n_n, d_n, y_n = _of_n_and_d(fit)
    with panels() as (figure, (axes,)):
        levels = np.unique(d_n)
        if len(levels) > _LINES:
            levels = np.geomspace(levels[0], levels[-1], _LINES)
        norm = LogNorm(d_n.min() / 1.01, d_n.max() * 1.01)
        colours = mpl.colormaps["viridis"].resampled(256)
        shades = ScalarMappable(norm, mpl.colors.ListedColormap(colours(np.linspace(0.0, 0.9, 256))))
        grid = np.geomspace(n_n.min() / 1.25, n_n.max() * 1.25, 200)
        for d in levels:
            axes.plot(grid, fit.predict(n=grid, d=d), color=shades.to_rgba(d), linewidth=0.9)
        size = 9 if len(y_n) <= _CROWD else 4
        axes.scatter(n_n, y_n, s=size, c=shades.to_rgba(d_n), edgecolors="white", linewidths=0.25, zorder=3)
        log_log(axes)
        axes.set_ylim(top=y_n.max() * 1.05)
        axes.set_xlabel(label(fit.form.roles["n"]))
        axes.set_ylabel(label(fit.y))
        bar = figure.colorbar(shades, ax=axes, pad=0.02, aspect=30)
        bar.set_label(label(fit.form.roles["d"]))
        bar.outline.set_linewidth(0.4)
        count_ticks(bar.ax.yaxis)
        shown = (f"{name} = {fit.params[name].value:.3g}" for name in ("E", "alpha", "beta") if name in fit.params)
        axes.set_title(", ".join(shown), loc="left")
    return figure


def per_scale_figure(per_scale: Mapping[float, Sequence[float]], n: str) -> Figure:
    """Nats per token of each scale against N: one line a scale, dark (coarse) to light (fine). Axes: log-log."""
    with panels() as (figure, (axes,)):
        sizes = np.array(sorted(per_scale))
        scales = max(len(values) for values in per_scale.values())
        colours = mpl.colormaps["viridis"](np.linspace(0.0, 0.88, scales))
        values_SK = np.array([per_scale[size] for size in sizes])
        for k in range(scales):
            axes.plot(sizes, values_SK[:, k], marker="o", markersize=2.5, color=colours[k], linewidth=0.9)
            axes.annotate(
                f"{k + 1}",
                (sizes[-1], values_SK[-1, k]),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                color=colours[k],
                fontsize=6.5,
            )
        log_log(axes)
        axes.set_xlabel(label(n))
        axes.set_ylabel("validation loss of a scale (nat/token)")
        axes.set_title(f"scales 1 (coarsest) to {scales}", loc="left")
    return figure


def residual_figure(fit: LawFit) -> Figure:
    """Residuals of every point in per cent of the law, against each column: their trend is lack of fit.

    For a law of one column the spread at one size is the noise of a run, shaded. For a law of several columns there is
    a panel a column, and colour follows the other one, dark to light.
    """
    points = fit.points
    percent_n = 100 * (points.y / fit.predict(**points.x) - 1)
    roles = list(points.x)
    with panels(len(roles), height=HEIGHT_IN if len(roles) == 1 else 1.55 * len(roles), sharey=True) as (figure, shown):
        for axes, role in zip(shown, roles, strict=True):
            x_n = points.x[role]
            by = x_n if len(roles) == 1 else points.x[roles[roles.index(role) - 1]]
            axes.axhline(0, color=INK, linewidth=0.6)
            size = 12 if len(x_n) <= _CROWD else 5
            axes.scatter(x_n, percent_n, s=size, c=_ranks(by), edgecolors="white", linewidths=0.3, zorder=3)
            axes.set_xscale("log")
            count_ticks(axes.xaxis)
            axes.set_xlabel(label(fit.form.roles[role]))
        if len(roles) == 1:
            shown[0].set_ylabel("measured / law - 1 (%)")
        else:
            figure.supylabel("measured / law - 1 (%)", fontsize=STYLE["axes.labelsize"])
        sd = fit.diagnostics.seed_sd
        title = f"rms {float(np.sqrt((percent_n**2).mean())):.2f} %"
        if sd is not None and fit.residual == "log":
            for axes in shown:
                axes.axhspan(-100 * sd, 100 * sd, color=BLUE, alpha=0.12, linewidth=0)
            title += f"; noise of a run {100 * sd:.2f} %, shaded"
        shown[0].set_title(title, loc="left")
    return figure


def _of_n_and_d(fit: LawFit) -> tuple[Floats, Floats, Floats]:
    if not {"n", "d"} <= fit.points.x.keys() or len(fit.points.x) != 2 or "E" not in fit.params:
        raise FitError(f"{fit.formula} is not a law of N and D with an offset; draw it with law_figure")
    return fit.points.x["n"], fit.points.x["d"], fit.points.y


def _ranks(x_n: Floats) -> Floats:
    """A colour (n, 4) for each value, by its rank."""
    level = np.unique(x_n, return_inverse=True)[1]
    return np.asarray(mpl.colormaps["viridis"](0.88 * level / max(1, int(level.max()))))


def _equation(fit: LawFit) -> str:
    variable = symbol(fit.x)
    p = fit.params
    if not {"alpha", "beta"} <= p.keys():
        return fit.formula
    alpha = p["alpha"].value
    try:
        constant = 1.0 / p["beta"].value
        readable = 1.0 <= constant < 1e12
        power = f"({variable}/{short(constant)})^{alpha:.3f}" if readable else f"(beta {variable})^{alpha:.3f}"
    except ZeroDivisionError:
        power = f"(beta {variable})^{alpha:.3f}"
    return f"L = {p['E'].value:.3g} + {power}" if "E" in p else f"L = {power}"
