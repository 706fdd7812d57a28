"""Figures of predictions beside what was measured: one size held out, and rolling hold-out along the ladder."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from varscale_analysis.figures.style import BLUE, GREY, INK, ORANGE, label, log_log, panels, short, symbol
from varscale_analysis.fit import FitError, Floats
from varscale_analysis.holdout import HoldoutScore, Prediction
from varscale_analysis.holdout_scores import RollingHoldout
from varscale_analysis.table import RunTable

_CROWD = 30  # predictions beyond which they are drawn smaller
_STEPS_NAMED = 6  # on the axis


def holdout_figure(table: RunTable, prediction: Prediction, score: HoldoutScore | None) -> Figure:
    """The sizes used, the prediction with its interval, what was measured, and the naive rule. Axes: log-log."""
    with panels() as (figure, (axes,)):
        x_n, y_n = table.values(prediction.n), table.values(prediction.y)
        used = x_n < prediction.n_target * (1 - 1e-6)
        target = np.isclose(x_n, prediction.n_target, rtol=1e-6)
        grid = np.geomspace(x_n[used].min(), prediction.n_target * 1.1, 100)
        axes.plot(grid, prediction.law_at(grid), color=BLUE, linewidth=0.9, label="law of the smaller sizes")
        axes.scatter(x_n[used], y_n[used], s=11, color=INK, edgecolors="white", linewidths=0.4, label="measured, used")
        error = [[prediction.value - prediction.low], [prediction.high - prediction.value]]
        axes.errorbar(
            [prediction.n_target],
            [prediction.value],
            yerr=error,
            fmt="_",
            color=BLUE,
            capsize=5,
            zorder=5,
            label="predicted, 90 %",
        )
        if target.any():
            axes.scatter(
                x_n[target], y_n[target], s=16, marker="D", color=ORANGE, edgecolors="white", linewidths=0.4, zorder=4,
                label="measured, held out",
            )  # fmt: skip
        axes.hlines(
            prediction.previous_loss,
            prediction.previous_n,
            prediction.n_target,
            color=GREY,
            linestyle=":",
            linewidth=0.9,
            label="previous size again",
        )
        log_log(axes)
        axes.set_xlabel(label(prediction.n))
        axes.set_ylabel(label(prediction.y))
        kind = "after the fact" if prediction.measured_before else "registered beforehand"
        axes.set_title(kind if score is None else f"{kind}: error {score.error_percent:+.2f} %", loc="left")
        axes.legend(loc="best")
    return figure


def rolling_figure(rolling: RollingHoldout) -> Figure:
    """Predictions of the next size along the ladder with their intervals, and what was measured (open: outside).

    Only the rows one size ahead are drawn. A law of one column is drawn as losses against it, log-log. A law of more
    has several targets a step: they stand side by side at their step, in per cent of what was predicted.
    Raises ``FitError`` where no row has a prediction.
    """
    rows = [row for row in rolling.scored if row.ahead == 1]
    if not rows:
        reasons = "; ".join(dict.fromkeys(row.refused for row in rolling.rows if row.refused is not None))
        raise FitError(f"no prediction one size ahead to draw ({reasons or 'the rolling hold-out has no rows'})")
    with panels() as (figure, (axes,)):
        names = ("target", "predicted", "low", "high", "measured")
        x_n, value, low, high, measured = (np.array([getattr(row, name) for row in rows]) for name in names)
        steps, several = np.unique(x_n), len(rows[0].at) > 1
        if several:
            low, high, measured = (100 * (values / value - 1) for values in (low, high, measured))
            x_n, value = _side_by_side(x_n), np.zeros(len(x_n))
        name = f"predicted, {rolling.level:.0%} interval"
        size, width = (1.5, 0.5) if len(rows) > _CROWD else (3.2, 1.1)
        error = [value - low, high - value]
        axes.errorbar(
            x_n,
            value,
            yerr=error,
            fmt="_",
            color=BLUE,
            elinewidth=width,
            capsize=size - 1.5,
            markersize=2 * size,
            label=name,
        )
        inside_n = np.array([bool(row.inside) for row in rows])
        for some, face, text in ((inside_n, INK, "measured, inside"), (~inside_n, "white", "measured, outside")):
            if some.any():
                axes.plot(x_n[some], measured[some], "o", color=INK, markerfacecolor=face, markersize=size, label=text)
        axes.set_xscale("log")
        if several:
            shown = steps[:: 1 + len(steps) // _STEPS_NAMED]
            axes.set_xticks(shown, [short(step) for step in shown])
            axes.set_xticks([], minor=True)
            axes.set_ylabel("measured / predicted - 1 (%)")
            axes.margins(y=0.25)
        else:
            log_log(axes)
            axes.set_ylabel(label(rolling.y))
        axes.set_xlabel(label(rolling.by))
        c = rolling.coverage
        axes.set_title(
            f"{rolling.law}, step by step along {symbol(rolling.by)}: {c.inside} of {c.rows} inside", loc="left"
        )
        axes.legend(loc="best")
    return figure


def _side_by_side(x_n: Floats) -> Floats:
    """The values with those that are alike moved apart: several targets at one step."""
    levels, level, count = np.unique(x_n, return_inverse=True, return_counts=True)
    gap = float(np.log(levels[1:] / levels[:-1]).min()) if len(levels) > 1 else 1.0
    place = np.array([(level[:i] == level[i]).sum() for i in range(len(x_n))]) - (count[level] - 1) / 2
    return np.asarray(x_n * np.exp(0.75 * gap * place / count.max()))
