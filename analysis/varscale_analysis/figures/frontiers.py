"""Figures of compute frontiers: curves with their envelope, IsoFLOP profiles, the routes side by side, flatness."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from varscale_analysis.curve_set import run_curve
from varscale_analysis.figures.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PINK,
    count_ticks,
    label,
    log_log,
    panels,
    short,
    size_colours,
    symbol,
)
from varscale_analysis.fit import Floats
from varscale_analysis.flatness import Flatness, flatness_of, slice_profile
from varscale_analysis.frontier import Frontier
from varscale_analysis.isoflop import IsoflopProfile
from varscale_analysis.table import RunTable
from varscale_analysis.trend import MIN_DRAWS

_REACH = 10.0  # times N_opt, on either side, where a law gives the loss of every size
_NAMED = 5  # budgets that a legend can name


def curves_figure(table: RunTable, frontier: Frontier) -> Figure:
    """Validation curves against compute, one colour a size, with the envelope's points, its laws and vertices.

    Raises ``ValueError`` for a frontier that is not from an envelope.
    """
    envelope = frontier.envelope
    if envelope is None:
        raise ValueError(f"the frontier is by {frontier.route}; this figure shows one from an envelope")
    with panels() as (figure, (axes,)):
        size_n = table.values(frontier.n)
        colours = size_colours(size_n)
        seen: set[float] = set()
        for run, size in sorted(
            zip(map(str, table.rows["run_id"]), map(float, size_n), strict=True), key=lambda p: p[1]
        ):
            c_n, y_n = run_curve(table, run, frontier.y)
            name = f"{short(size)}" if size not in seen else None
            axes.plot(c_n, y_n, color=colours[size], linewidth=0.8, alpha=0.9, label=name)
            seen.add(size)
        axes.plot(envelope.flops, envelope.loss, ".", color=INK, markersize=1.8, zorder=3)
        grid = np.geomspace(envelope.flops[0], envelope.flops[-1] * 2, 100)
        for fit, style in ((frontier.saturating, "-"), (frontier.power, "--")):
            if fit is not None:
                axes.plot(grid, fit.predict(grid), color=ORANGE, linestyle=style, linewidth=0.9, zorder=4)
        for vertex in envelope.vertices:
            face = INK if vertex.flag == "crossing" else "white"
            axes.plot(vertex.flops, vertex.loss, "o", color=INK, markerfacecolor=face, markersize=3, zorder=5)
        log_log(axes)
        axes.set_xlabel(f"training compute C (FLOP, rule {frontier.flops_rule})")
        axes.set_ylabel(label(frontier.y))
        axes.set_title("dots: lower envelope; orange: its laws", loc="left")
        axes.legend(title="N", ncols=2, loc="upper right", handlelength=1.2, columnspacing=1.0)
    return figure


def isoflop_figure(frontier: Frontier) -> Figure:
    """IsoFLOP profiles: loss against N, one colour a budget, with the interpolation and its minimum (orange).

    Refused profiles are grey and open. Raises ``ValueError`` for a frontier that is not from profiles.
    """
    if not frontier.profiles:
        raise ValueError(f"the frontier is by {frontier.route} and holds no profiles; use Frontier.from_isoflop")
    with panels() as (figure, (axes,)):
        colours = size_colours(np.array([profile.flops for profile in frontier.profiles]))
        for profile in frontier.profiles:
            best = profile.optimum
            colour = colours[profile.flops] if best is not None else (0.6, 0.6, 0.6, 1.0)
            face = colour if best is not None else "white"
            axes.plot(profile.n_S, profile.loss_S, "o", color=colour, markerfacecolor=face, markersize=2.5)
            if best is not None and best.loss is not None:
                grid = np.geomspace(profile.n_S[0], profile.n_S[-1], 200)
                axes.plot(grid, profile.loss_at(grid), color=colour, linewidth=0.8)
                axes.plot(best.n, best.loss, "*", color=ORANGE, markersize=5, zorder=5)
        log_log(axes)
        axes.set_xlabel(label(frontier.n))
        axes.set_ylabel(label(frontier.y))
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
    with panels() as (figure, (axes,)):
        ranges = [frontier.flops_range for frontier in drawn if frontier.flops_range is not None]
        low, high = (min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else (1e15, 1e21)
        grid = np.geomspace(low, high, 100)
        for frontier, colour in zip(drawn, (BLUE, ORANGE, INK, GREEN, PINK), strict=False):
            trend = frontier.n_opt
            assert trend is not None
            name = f"{frontier.route}: C^{trend.exponent:.3f}"
            axes.plot(grid, trend.predict(grid), color=colour, label=name)
            if len(trend.draws) >= MIN_DRAWS:
                axes.fill_between(grid, *trend.interval(grid), color=colour, alpha=0.15, linewidth=0)
            points = [(optimum.flops, optimum.n) for optimum in frontier.optima]
            if points:
                axes.plot(*zip(*points, strict=True), "o", color=colour, markersize=2.5, zorder=4)
        log_log(axes)
        count_ticks(axes.yaxis)
        axes.set_xlabel("training compute C (FLOP)")
        axes.set_ylabel(label(drawn[0].n).replace(" N", " N_opt"))
        axes.set_title("the best size by each route", loc="left")
        axes.legend(loc="upper left")
    return figure


def flatness_figure(frontier: Frontier, flops: Sequence[float] | None = None, *, within: float = 0.01) -> Figure:
    """What missing the best size costs: loss above the best (%) against N / N_opt, one colour a budget.

    ``flops`` and ``within`` as in ``flatness_of``, which also says what it raises. Where sizes were measured at a
    budget they are dots; the share ``within`` is the dotted line, and the sizes inside it stand in the legend.
    """
    rows = flatness_of(frontier, flops, within=within)
    with panels() as (figure, (axes,)):
        colours = size_colours(np.array([row.flops for row in rows]))
        highest = 0.0
        for i, row in enumerate(rows):
            n_G, loss_G, profile = _losses(frontier, row)
            percent_G = 100 * (loss_G / row.loss - 1)
            named = len(rows) <= _NAMED or i in (0, len(rows) - 1)
            axes.plot(n_G / row.n_opt, percent_G, color=colours[row.flops], linewidth=0.9, label=_within(row, named))
            highest = max(highest, float(np.nanmax(percent_G)))
            if profile is not None:
                measured = 100 * (profile.loss_S / row.loss - 1)
                axes.plot(profile.n_S / row.n_opt, measured, "o", color=colours[row.flops], markersize=2.3)
                highest = max(highest, float(measured.max()))
        axes.axhline(100 * within, color=ORANGE, linestyle=":", linewidth=0.9)
        axes.axvline(1.0, ymax=0.6, color=GREY, linewidth=0.5)
        axes.set_xscale("log")
        top = min(highest, 1200 * within)
        axes.set_ylim(-0.06 * top, 1.5 * top)
        count_ticks(axes.xaxis)
        axes.set_xlabel(f"{symbol(frontier.n)} / {symbol(frontier.n)}_opt at the same compute")
        axes.set_ylabel("loss above the best (%)")
        axes.set_title(f"by {frontier.route}; dotted: {100 * within:g} % above the best", loc="left")
        axes.legend(loc="upper center", title=f"C (FLOP): sizes within {100 * within:g} %")
    return figure


def _losses(frontier: Frontier, row: Flatness) -> tuple[Floats, Floats, IsoflopProfile | None]:
    """Sizes, their losses at the row's compute, and the profile they come from (none for a law)."""
    if frontier.law is not None:
        n_G = row.n_opt * np.geomspace(1 / _REACH, _REACH, 301)
        return n_G, frontier.law.loss(row.flops, n_G), None
    if frontier.envelope is not None:
        profile = slice_profile(frontier, row.flops)
    else:
        profile = next(profile for profile in frontier.profiles if profile.flops == row.flops)
    n_G = np.geomspace(profile.n_S[0], profile.n_S[-1], 301)
    return n_G, profile.loss_at(n_G), profile


def _within(row: Flatness, named: bool) -> str | None:
    if not named:
        return None
    low, high = (short(end.value) if end is not None else "?" for end in (row.n_low, row.n_high))
    return f"{row.flops:.2g}: {low} to {high}"
