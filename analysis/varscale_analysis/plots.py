"""Figures of a study, as a paper prints them: functions of results that return matplotlib Figures.

Log-log where the law is one, bands are 90 % intervals, one colour a size from a sequential map that survives greyscale
and colour blindness, units on the axes, 3.3 inches wide. Object-oriented matplotlib only: no pyplot, no global state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from varscale_analysis.curve_set import run_curve
from varscale_analysis.fit import Floats
from varscale_analysis.frontier import Frontier
from varscale_analysis.holdout import HoldoutScore, Prediction
from varscale_analysis.laws.result import LawFit
from varscale_analysis.offset import ExponentAtOffset
from varscale_analysis.table import RunTable, unit_of
from varscale_analysis.trend import MIN_DRAWS

WIDTH_IN, HEIGHT_IN = 3.3, 2.5
DPI = 300
STYLE: Any = {
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "axes.titlesize": 7.5,
    "legend.fontsize": 6.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "svg.hashsalt": "varscale",
}
INK, SECOND, ACCENT = "#1a1a1a", "#0072b2", "#d55e00"  # black, blue and vermilion of the Okabe-Ito palette
LABELS = {
    "params_nonembed": "non-embedding parameters N",
    "params_token": "block parameters used per token N",
    "params_blocks": "block parameters N",
    "params_total": "parameters N",
    "flops_train": "training compute C",
    "val_nats_per_token_avg": "validation loss, all tokens",
    "val_nats_per_token_last": "validation loss, last scale",
    "val_error_avg": "token error, all tokens",
    "val_error_last": "token error, last scale",
}


def law_figure(table: RunTable, fits: Sequence[LawFit]) -> Figure:
    """Points (every seed) with the first fit's line and 90 % prediction band; further fits of the same data dashed.

    Axes: log-log. ``table`` holds the rows behind the fits.
    """
    first = fits[0]
    with _figure() as (figure, axes):
        x_n, y_n = table.values(first.x), table.values(first.y)
        grid = np.geomspace(x_n.min() / 1.25, x_n.max() * 2.0, 200)
        if len(first.draws):
            low, high = first.predict_interval(grid)
            axes.fill_between(grid, low, high, color=SECOND, alpha=0.18, linewidth=0, label="90 % prediction interval")
        axes.plot(grid, first.predict(grid), color=SECOND, label=_equation(first))
        for fit in fits[1:]:
            axes.plot(grid, fit.predict(grid), color=ACCENT, linestyle="--", linewidth=0.9, label=_equation(fit))
        colours = size_colours(x_n)
        axes.scatter(x_n, y_n, s=11, c=[colours[float(x)] for x in x_n], edgecolors="white", linewidths=0.4, zorder=3)
        axes.set_xscale("log")
        axes.set_yscale("log")
        _loss_ticks(axes.yaxis)
        axes.set_xlabel(_label(first.x))
        axes.set_ylabel(_label(first.y))
        axes.set_title(f"{first.at}: {first.basis}", loc="left")
        axes.legend(loc="upper right")
    return figure


def per_scale_figure(per_scale: Mapping[float, Sequence[float]], n: str) -> Figure:
    """Nats per token of each scale against N: one line a scale, dark (coarse) to light (fine). Axes: log-log."""
    with _figure() as (figure, axes):
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
        axes.set_xscale("log")
        axes.set_yscale("log")
        _loss_ticks(axes.yaxis)
        axes.set_xlabel(_label(n))
        axes.set_ylabel("validation loss of a scale (nat/token)")
        axes.set_title(f"scales 1 (coarsest) to {scales}", loc="left")
    return figure


def curves_figure(table: RunTable, frontier: Frontier) -> Figure:
    """Validation curves against compute, one colour a size, with the envelope's points, its laws and vertices.

    Raises ``ValueError`` for a frontier that is not from an envelope.
    """
    envelope = frontier.envelope
    if envelope is None:
        raise ValueError(f"the frontier is by {frontier.route}; this figure shows one from an envelope")
    with _figure() as (figure, axes):
        size_n = table.values(frontier.n)
        colours = size_colours(size_n)
        seen: set[float] = set()
        for run, size in sorted(
            zip(map(str, table.rows["run_id"]), map(float, size_n), strict=True), key=lambda p: p[1]
        ):
            c_n, y_n = run_curve(table, run, frontier.y)
            label = f"{_short(size)}" if size not in seen else None
            axes.plot(c_n, y_n, color=colours[size], linewidth=0.8, alpha=0.9, label=label)
            seen.add(size)
        axes.plot(envelope.flops, envelope.loss, ".", color=INK, markersize=1.8, zorder=3)
        grid = np.geomspace(envelope.flops[0], envelope.flops[-1] * 2, 100)
        for fit, style in ((frontier.saturating, "-"), (frontier.power, "--")):
            if fit is not None:
                axes.plot(grid, fit.predict(grid), color=ACCENT, linestyle=style, linewidth=0.9, zorder=4)
        for vertex in envelope.vertices:
            face = INK if vertex.flag == "crossing" else "white"
            axes.plot(vertex.flops, vertex.loss, "o", color=INK, markerfacecolor=face, markersize=3, zorder=5)
        axes.set_xscale("log")
        axes.set_yscale("log")
        _loss_ticks(axes.yaxis)
        axes.set_xlabel(f"training compute C (FLOP, rule {frontier.flops_rule})")
        axes.set_ylabel(_label(frontier.y))
        axes.set_title("dots: lower envelope; orange: its laws", loc="left")
        axes.legend(title="N", ncols=2, loc="upper right", handlelength=1.2, columnspacing=1.0)
    return figure


def isoflop_figure(frontier: Frontier) -> Figure:
    """IsoFLOP profiles: loss against N, one colour a budget, with the interpolation and its minimum (orange).

    Refused profiles are grey and open. Raises ``ValueError`` for a frontier that is not from profiles.
    """
    if not frontier.profiles:
        raise ValueError(f"the frontier is by {frontier.route} and holds no profiles; use Frontier.from_isoflop")
    with _figure() as (figure, axes):
        colours = size_colours(np.array([profile.flops for profile in frontier.profiles]))
        for profile in frontier.profiles:
            best = profile.optimum
            colour = colours[profile.flops] if best is not None else (0.6, 0.6, 0.6, 1.0)
            face = colour if best is not None else "white"
            axes.plot(profile.n_S, profile.loss_S, "o", color=colour, markerfacecolor=face, markersize=2.5)
            if best is not None and best.loss is not None:
                grid = np.geomspace(profile.n_S[0], profile.n_S[-1], 200)
                axes.plot(grid, profile.loss_at(grid), color=colour, linewidth=0.8)
                axes.plot(best.n, best.loss, "*", color=ACCENT, markersize=5, zorder=5)
        axes.set_xscale("log")
        axes.set_yscale("log")
        _loss_ticks(axes.yaxis)
        axes.set_xlabel(_label(frontier.n))
        axes.set_ylabel(_label(frontier.y))
        budgets = [profile.flops for profile in frontier.profiles]
        axes.set_title(f"C {min(budgets):.1e} (dark) to {max(budgets):.1e} FLOP", loc="left")
    return figure


def routes_figure(frontiers: Sequence[Frontier]) -> Figure:
    """N_opt(C) by every route, with its optima and 90 % band. Axes: log-log.

    Raises ``ValueError`` where no frontier has an N_opt(C).
    """
    drawn = [frontier for frontier in frontiers if frontier.n_opt is not None]
    if not drawn:
        reasons = "; ".join(f"{frontier.route}: {frontier.absent.get('N_opt', '')}" for frontier in frontiers)
        raise ValueError(f"no frontier has an N_opt(C) ({reasons})")
    with _figure() as (figure, axes):
        ranges = [frontier.flops_range for frontier in drawn if frontier.flops_range is not None]
        low, high = (min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else (1e15, 1e21)
        grid = np.geomspace(low, high, 100)
        for frontier, colour in zip(drawn, (SECOND, ACCENT, INK, "#009e73", "#cc79a7"), strict=False):
            trend = frontier.n_opt
            assert trend is not None
            label = f"{frontier.route}: C^{trend.exponent:.3f}"
            axes.plot(grid, trend.predict(grid), color=colour, label=label)
            if len(trend.draws) >= MIN_DRAWS:
                axes.fill_between(grid, *trend.interval(grid), color=colour, alpha=0.15, linewidth=0)
            points = [(optimum.flops, optimum.n) for optimum in frontier.optima]
            if points:
                axes.plot(*zip(*points, strict=True), "o", color=colour, markersize=2.5, zorder=4)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("training compute C (FLOP)")
        axes.set_ylabel(_label(drawn[0].n).replace(" N", " N_opt"))
        axes.set_title("the best size by each route", loc="left")
        axes.legend(loc="upper left")
    return figure


def exponent_figure(rows: Sequence[ExponentAtOffset], fit: LawFit | None = None) -> Figure:
    """The exponent for each fixed offset E (above) and Pearson's r (below); the fitted E with its interval shaded."""
    with _style():
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN * 1.15), layout="constrained")
        FigureCanvasAgg(figure)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        offsets = [row.offset for row in rows]
        top.plot(offsets, [row.alpha for row in rows], color=SECOND)
        bottom.plot(offsets, [row.pearson_r for row in rows], color=INK)
        if fit is not None and "E" in fit.params:
            e = fit.params["E"]
            for axes in (top, bottom):
                axes.axvline(e.value, color=ACCENT, linewidth=0.9)
                if e.low is not None and e.high is not None:
                    axes.axvspan(e.low, e.high, color=ACCENT, alpha=0.15, linewidth=0)
            top.set_title(f"fitted E = {e.value:.3g}, 90 % interval shaded", loc="left")
        top.set_ylabel("exponent alpha")
        bottom.set_ylabel("Pearson r\n(not evidence)")
        bottom.set_xlabel("fixed offset E (nat/token)")
        figure.align_ylabels()
    return figure


def holdout_figure(table: RunTable, prediction: Prediction, score: HoldoutScore | None) -> Figure:
    """The sizes used, the prediction with its interval, what was measured, and the naive rule. Axes: log-log."""
    with _figure() as (figure, axes):
        x_n, y_n = table.values(prediction.n), table.values(prediction.y)
        used = x_n < prediction.n_target * (1 - 1e-6)
        target = np.isclose(x_n, prediction.n_target, rtol=1e-6)
        grid = np.geomspace(x_n[used].min(), prediction.n_target * 1.1, 100)
        axes.plot(grid, prediction.law_at(grid), color=SECOND, linewidth=0.9, label="law of the smaller sizes")
        axes.scatter(x_n[used], y_n[used], s=11, color=INK, edgecolors="white", linewidths=0.4, label="measured, used")
        error = [[prediction.value - prediction.low], [prediction.high - prediction.value]]
        axes.errorbar(
            [prediction.n_target],
            [prediction.value],
            yerr=error,
            fmt="_",
            color=SECOND,
            capsize=5,
            zorder=5,
            label="predicted, 90 %",
        )
        if target.any():
            axes.scatter(
                x_n[target], y_n[target], s=16, marker="D", color=ACCENT, edgecolors="white", linewidths=0.4, zorder=4,
                label="measured, held out",
            )  # fmt: skip
        axes.hlines(
            prediction.previous_loss,
            prediction.previous_n,
            prediction.n_target,
            color="#767676",
            linestyle=":",
            linewidth=0.9,
            label="previous size again",
        )
        axes.set_xscale("log")
        axes.set_yscale("log")
        _loss_ticks(axes.yaxis)
        axes.set_xlabel(_label(prediction.n))
        axes.set_ylabel(_label(prediction.y))
        kind = "after the fact" if prediction.measured_before else "registered beforehand"
        axes.set_title(kind if score is None else f"{kind}: error {score.error_percent:+.2f} %", loc="left")
        axes.legend(loc="best")
    return figure


def residual_figure(table: RunTable, fit: LawFit) -> Figure:
    """Residuals of every run in per cent of the law: seed noise is the spread at one size, lack of fit its trend."""
    with _figure() as (figure, axes):
        x_n, y_n = table.values(fit.x), table.values(fit.y)
        percent_n = 100 * (y_n / fit.predict(x_n) - 1)
        colours = size_colours(x_n)
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.scatter(
            x_n, percent_n, s=12, c=[colours[float(x)] for x in x_n], edgecolors="white", linewidths=0.4, zorder=3
        )
        sd = fit.diagnostics.seed_sd
        title = f"rms {float(np.sqrt((percent_n**2).mean())):.2f} %"
        if sd is not None and fit.residual == "log":
            axes.axhspan(-100 * sd, 100 * sd, color=SECOND, alpha=0.12, linewidth=0)
            title += f"; noise of a run {100 * sd:.2f} %, shaded"
        axes.set_xscale("log")
        axes.set_xlabel(_label(fit.x))
        axes.set_ylabel("measured / law - 1 (%)")
        axes.set_title(title, loc="left")
    return figure


def size_colours(size_n: Floats) -> dict[float, tuple[float, float, float, float]]:
    """One colour a size, dark to light with N."""
    sizes = np.unique(size_n)
    place = np.linspace(0.0, 0.88, len(sizes)) if len(sizes) > 1 else np.zeros(1)
    colours = mpl.colormaps["viridis"](place)
    return {float(size): tuple(map(float, colour)) for size, colour in zip(sizes, colours, strict=True)}  # type: ignore[misc]


@contextmanager
def _style() -> Iterator[None]:
    with mpl.rc_context(STYLE):
        yield


@contextmanager
def _figure() -> Iterator[tuple[Figure, Axes]]:
    with _style():
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots()


def _label(name: str) -> str:
    unit = unit_of(name)
    text = LABELS.get(name, name)
    return text if unit in ("1", "parameter") else f"{text} ({unit})"


def _short(size: float) -> str:
    for factor, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size >= factor:
            return f"{size / factor:.3g}{suffix}"
    return f"{size:.0f}"


def _equation(fit: LawFit) -> str:
    variable = "N" if fit.x.startswith("params") else "C"
    p = fit.params
    alpha = p["alpha"].value
    try:
        constant = 1.0 / p["beta"].value
        readable = 1.0 <= constant < 1e12
        power = f"({variable}/{_short(constant)})^{alpha:.3f}" if readable else f"(beta {variable})^{alpha:.3f}"
    except ZeroDivisionError:
        power = f"(beta {variable})^{alpha:.3f}"
    return f"L = {p['E'].value:.3g} + {power}" if "E" in p else f"L = {power}"


def _loss_ticks(axis: Axis) -> None:
    """Plain numbers on a log axis that spans less than a decade."""
    low, high = axis.get_view_interval()
    if high / low < 8:
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
        axis.set_minor_locator(LogLocator(subs=[]))
