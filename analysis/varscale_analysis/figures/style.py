"""How every figure looks: 3.3 inches wide (a column of a paper), units on the axes, bands of 90 %, one colour a size.

Object-oriented matplotlib only: no pyplot, no global state. Colours are those of Okabe and Ito, sizes and budgets are
ordered by viridis; both survive greyscale and colour blindness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullFormatter

from varscale_analysis.laws.parameter import Parameter
from varscale_analysis.objective import Floats
from varscale_analysis.table import unit_of

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
INK, BLUE, ORANGE = "#1a1a1a", "#0072b2", "#d55e00"
GREEN, PINK, GREY = "#009e73", "#cc79a7", "#767676"
LABELS = {
    "params_nonembed": "non-embedding parameters N",
    "params_token": "block parameters used per token N",
    "params_blocks": "block parameters N",
    "params_total": "parameters N",
    "tokens_seen": "training tokens D",
    "flops_train": "training compute C",
    "val_nats_per_token_avg": "validation loss, all tokens",
    "val_nats_per_token_last": "validation loss, last scale",
    "val_error_avg": "token error, all tokens",
    "val_error_last": "token error, last scale",
}
SYMBOLS = {"tokens_seen": "D", "flops_train": "C"}
Colour = tuple[float, float, float, float]
_FEW, _MANY = 8.0, 80.0  # spans of a log axis below which ticks are linear, or at 1, 2, 5


@contextmanager
def panels(
    rows: int = 1, columns: int = 1, height: float = HEIGHT_IN, **options: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A styled figure of column width with rows x columns axes, row by row; ``options`` go to ``Figure.subplots``."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False, **options)
        yield figure, list(axes.ravel())


def png(figure: Figure) -> bytes:
    """The figure as PNG at ``DPI``; the same figure gives the same bytes."""
    buffer = BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def label(name: str) -> str:
    """What a column is called on an axis, with its unit."""
    unit = unit_of(name)
    text = LABELS.get(name, name)
    return text if unit in ("1", "parameter") else f"{text} ({unit})"


def symbol(name: str) -> str:
    """N, D or C where a column is one of them, else the name."""
    return "N" if name.startswith("params_") else SYMBOLS.get(name, name)


def short(number: float) -> str:
    """A count in three digits: 174k, 2.5M, 70B, 3e+18."""
    if number >= 1e15 or number < 1e-3:
        return f"{number:.3g}"
    for factor, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g}{suffix}"
    return f"{number:.3g}"


def size_colours(size_n: Floats) -> dict[float, Colour]:
    """One colour a size, dark to light with N."""
    sizes = np.unique(size_n)
    place = np.linspace(0.0, 0.88, len(sizes)) if len(sizes) > 1 else np.zeros(1)
    colours = mpl.colormaps["viridis"](place)
    return {float(size): tuple(map(float, colour)) for size, colour in zip(sizes, colours, strict=True)}  # type: ignore[misc]


def log_log(axes: Axes) -> None:
    """Logarithmic axes with readable ticks. Call it when all is drawn."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    count_ticks(axes.xaxis)
    loss_ticks(axes.yaxis)


def loss_ticks(axis: Axis) -> None:
    """Plain numbers on a log axis that spans less than a decade, as a loss does."""
    low, high = axis.get_view_interval()
    if high / low < _FEW:
        _ticks(axis, MaxNLocator(5), lambda value: f"{value:g}")


def count_ticks(axis: Axis) -> None:
    """Readable counts (20M, 50M) on a log axis that spans less than two decades, where powers of 10 are few."""
    low, high = axis.get_view_interval()
    if high / low < _MANY:
        _ticks(axis, MaxNLocator(4) if high / low < _FEW else LogLocator(subs=(1.0, 2.0, 5.0)), short)


def _ticks(axis: Axis, places: Locator, text: Callable[[float], str]) -> None:
    axis.set_major_locator(places)
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(LogLocator(subs=[]))


def head(figure: Figure, text: str) -> None:
    """A title from the left edge of the figure, where names of rows leave little room above the axes."""
    figure.suptitle(text, x=0.012, ha="left", fontsize=STYLE["axes.titlesize"])


def interval_rows(
    axes: Axes,
    names: Sequence[str],
    values: Sequence[float | None],
    intervals: Sequence[tuple[float, float] | None],
    colours: Sequence[str],
) -> None:
    """A dot a row, top to bottom, with its interval; a row without a value stays empty, with its name in grey."""
    for i, (value, ends, colour) in enumerate(zip(values, intervals, colours, strict=True)):
        if value is not None:
            if ends is not None:
                axes.plot(ends, (i, i), color=colour, linewidth=0.9)
            axes.plot([value], [i], "o", color=colour, markersize=2.8)
    axes.set_yticks(range(len(names)), names, fontsize=5.5)
    for text, value in zip(axes.get_yticklabels(), values, strict=True):
        text.set_color(INK if value is not None else GREY)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x", color="#dddddd", linewidth=0.4)
    axes.set_axisbelow(True)


def shade(axes: Axes, parameter: Parameter, colour: str = ORANGE) -> None:
    """A vertical band over the interval of a parameter, if it has one."""
    if parameter.low is not None and parameter.high is not None:
        axes.axvspan(parameter.low, parameter.high, color=colour, alpha=0.15, linewidth=0)
