"""Figures of choices side by side: sensitivity to every choice, conventions of N and C, two families."""

from __future__ import annotations

import re

import numpy as np
from matplotlib.figure import Figure

from varscale_analysis.compare import FamilyComparison
from varscale_analysis.conventions import ConventionTable
from varscale_analysis.figures.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PINK,
    SYMBOLS,
    head,
    interval_rows,
    label,
    log_log,
    panels,
    shade,
    short,
    symbol,
)
from varscale_analysis.fit import FitError
from varscale_analysis.laws.result import LawFit
from varscale_analysis.sensitivity import Sensitivity
from varscale_analysis.table import SIZES

_KINDS = {"base": INK, "objective": BLUE, "size": GREEN, "outlier": PINK, "offset": ORANGE}
_ROW_IN = 0.115
_LETTERS = 36  # of a row's name
_EXPONENTS = {
    "alpha": "exponent alpha of L(N)",
    "n_exponent": "exponent of N_opt(C)",
    "d_exponent": "exponent of D_opt(C)",
    "l_exponent": "exponent of L_opt(C)",
}


def sensitivity_figure(sensitivity: Sensitivity, name: str = "alpha", fit: LawFit | None = None) -> Figure:
    """One parameter under every choice, one row a choice; the interval of ``fit`` as it was given is shaded.

    A refused choice is a grey name without a dot. Raises ``FitError`` for a parameter that no row has.
    """
    sensitivity.span(name)
    rows = sensitivity.rows
    values = [row.values.get(name) for row in rows]
    with panels(height=0.75 + _ROW_IN * len(rows)) as (figure, (axes,)):
        interval_rows(
            axes, [_change(row.change) for row in rows], values, [None] * len(rows), [_KINDS[row.kind] for row in rows]
        )
        axes.axvline(values[0] if values[0] is not None else np.nan, color=INK, linewidth=0.6)
        parameter = None if fit is None else fit.params.get(name) or fit.derived.get(name)
        title = "one choice changed at a time"
        if parameter is not None:
            shade(axes, parameter, BLUE)
            title += "; shaded: interval as given" if parameter.low is not None else ""
        axes.set_xlabel(name if parameter is None or parameter.unit == "1" else f"{name} ({parameter.unit})")
        head(figure, title)
    return figure


def conventions_figure(conventions: ConventionTable, name: str = "n_exponent") -> Figure:
    """One exponent under every convention of N (rows) and of C (colours), with 90 % intervals.

    ``name`` is "alpha", "n_exponent", "d_exponent" or "l_exponent". Raises ``FitError`` where no convention has it.
    """
    if name not in _EXPONENTS:
        raise FitError(f"{name!r} is no exponent of conventions; choose {', '.join(_EXPONENTS)}")
    # Multiply-adds are a constant factor of the recorded rule: the same exponents, not a row of their own.
    rows = [row for row in conventions.rows if not row.flops_rule.startswith("forward_macs")]
    if name == "alpha":  # it does not know the rule of C
        rows = [row for row, before in zip(rows, [None, *rows], strict=False) if before is None or before.n != row.n]
    found = [getattr(row, name) for row in rows]
    if all(estimate is None for estimate in found):
        raise FitError(f"no convention has {name}: {'; '.join(why for row in rows for why in row.absent.values())}")
    names = [f"{row.n.removeprefix('params_')}" + ("" if name == "alpha" else f", {row.flops_rule}") for row in rows]
    with panels(height=0.85 + 0.16 * len(rows)) as (figure, (axes,)):
        interval_rows(
            axes,
            names,
            [None if estimate is None else estimate.value for estimate in found],
            [None if e is None or e.low is None else (e.low, e.high) for e in found],
            [ORANGE if row.flops_rule == "6nd" else BLUE for row in rows],
        )
        axes.set_xlabel(_EXPONENTS[name])
        spread = conventions.spread(name)
        title = "the same runs under every convention"
        head(figure, title if spread is None else f"{title}: moves by {spread:.2g}")
    return figure


def families_figure(comparison: FamilyComparison) -> Figure:
    """Two families: their runs and laws L(C) (above), and the compute multiplier against the loss (below).

    Above 1, family a needs more compute for the same loss than family b. An open circle is extrapolated.
    """
    a, b = comparison.names
    with panels(2, height=3.9, height_ratios=(3, 2)) as (figure, (top, bottom)):
        everything = np.concatenate([fit.points.x["n"] for fit in comparison.fits])
        losses = np.concatenate([fit.points.y for fit in comparison.fits])
        grid = np.geomspace(everything.min() / 1.5, everything.max() * 1.5, 200)
        for fit, name, colour in zip(comparison.fits, (a, b), (BLUE, ORANGE), strict=True):
            top.plot(fit.points.x["n"], fit.points.y, "o", color=colour, markersize=2.8)
            top.plot(grid, fit.predict(grid), color=colour, label=name)
        for m in comparison.multipliers:
            ends = [fit.solve(m.loss) for fit in comparison.fits]
            if grid[0] <= min(ends) and max(ends) <= grid[-1]:
                top.plot(ends, [m.loss] * 2, color=GREY, linewidth=0.7, linestyle=":")
        top.set_ylim(losses.min() * 0.995, losses.max() * 1.01)
        log_log(top)
        top.set_xlabel(f"{label(comparison.fits[0].x)}")
        top.set_ylabel(label(comparison.y))
        top.legend(loc="upper right")
        top.set_title("dotted: equal loss" + (", paired by seed" if comparison.paired else ""), loc="left")
        for m in comparison.multipliers:
            e = m.multiplier
            if e.low is not None and e.high is not None:
                bottom.plot([m.loss] * 2, (e.low, e.high), color=INK, linewidth=0.9)
            bottom.plot(m.loss, e.value, "o", color=INK, markerfacecolor="white" if m.extrapolated else INK)
        bottom.axhline(1.0, color=GREY, linewidth=0.6)
        bottom.set_xlabel(label(comparison.y))
        bottom.set_ylabel(f"compute of {a}\n/ compute of {b}")
    return figure


def _change(text: str) -> str:
    """A choice in few letters: N and D for their columns, 61.6M for 6.162e+07."""
    for column in (*SIZES, *SYMBOLS):
        text = text.replace(column, symbol(column))
    text = text.replace(" residuals", "").replace("without the point at", "without one at").replace(" = ", " ")
    if text.startswith("without"):
        text = re.sub(r"\b\d[\d.]*(e[+-]\d+)?", lambda found: short(float(found.group())), text)
    return text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…"
