"""Figures of attention: maps of single queries, and the share of each scale. Functions of results, no pyplot.

Weights are shown relative to uniform attention, on one logarithmic scale: a token of the coarsest map and one of the
finest can then be compared, though they compete with very different numbers of tokens.
Shapes: R side of the image in px, L all tokens, K scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from varscale.evaluation.attention_maps import Query
from varscale.schedule import ScaleSchedule

WIDTH_IN = 7.0
LEFT_IN, RIGHT_IN, TOP_IN, BOTTOM_IN = 0.25, 0.8, 0.22, 0.36  # margins of the maps
SHARE_IN, GAP_IN = 0.16, 0.03  # above a map for its share, and between maps
STYLE: Any = {"font.size": 7.5, "axes.titlesize": 7.5, "axes.linewidth": 0.5}
RATIO = 100.0  # weights from 1 / RATIO to RATIO times the uniform weight have a colour of their own
RELATIVE, SHARES, MARK = "RdBu_r", "viridis", "#ffd500"


@dataclass(frozen=True)
class MapRow:
    """One row of ``maps_figure``: a label, the query, and its weights over all tokens, (L,) with sum 1."""

    label: str
    query: Query
    weights_L: np.ndarray


def maps_figure(rows: Sequence[MapRow], schedule: ScaleSchedule, image_RR3: np.ndarray, title: str) -> Figure:
    """One row a query or head: the image with the query's cell, then the weights on each scale as a map.

    Colour: weight / uniform weight. Above each map: the share of the attention that its scale receives.

    Args:
        image_RR3: uint8; the cell of the query is outlined on it.
    """
    columns = max(row.query.scale for row in rows) + 2  # the image, then the scales
    side = (WIDTH_IN - LEFT_IN - RIGHT_IN) / columns
    height = TOP_IN + len(rows) * (side + SHARE_IN) + BOTTOM_IN
    norm = LogNorm(1 / RATIO, RATIO)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, height))
        FigureCanvasAgg(figure)

        def place(i: int, j: int) -> Axes:
            """Axes of row i and column j, placed by hand: a layout engine takes seconds for a hundred of them."""
            left, top = LEFT_IN + j * side, TOP_IN + i * (side + SHARE_IN) + SHARE_IN
            drawn = side - GAP_IN
            return figure.add_axes((left / WIDTH_IN, 1 - (top + drawn) / height, drawn / WIDTH_IN, drawn / height))

        for i, row in enumerate(rows):
            _image(place(i, 0), image_RR3, row, schedule)
            for k in range(row.query.scale + 1):
                _map(place(i, k + 1), row, k, schedule, norm)
        for j, name in enumerate(["query", *(f"{h} x {w}" for _, h, w in schedule.scales[: columns - 1])]):
            x = (LEFT_IN + (j + 0.5) * side - GAP_IN / 2) / WIDTH_IN
            figure.text(x, (BOTTOM_IN - 0.04) / height, name, ha="center", va="top")
        middle = (LEFT_IN + (columns - 1) * side / 2 + side / 2) / WIDTH_IN
        figure.text(middle, 0.04 / height, "scale of the keys, coarse to fine", ha="center", va="bottom")
        figure.text(0.5, 1 - 0.05 / height, title, ha="center", va="top", fontsize=8.5)
        tall = min(2.8, height - TOP_IN - BOTTOM_IN) / height
        bar_axes = figure.add_axes((1 - (RIGHT_IN - 0.12) / WIDTH_IN, 0.5 - tall / 2, 0.09 / WIDTH_IN, tall))
        bar = figure.colorbar(ScalarMappable(norm, RELATIVE), cax=bar_axes, extend="both")
        bar.set_ticks([0.01, 0.1, 1, 10, 100], labels=["1/100", "1/10", "1", "10", "100"])
        bar.ax.minorticks_off()
        bar.set_label("attention weight / uniform weight (1)")
    return figure


def hierarchy_figure(shares_KK: np.ndarray, uniform_KK: np.ndarray, schedule: ScaleSchedule, title: str) -> Figure:
    """Share of the attention of each query scale (rows) that each key scale (columns) receives, beside uniform's.

    Args:
        shares_KK: measured, rows sum to 1. uniform_KK: ``uniform_shares``.
    """
    K = schedule.num_scales
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 3.9), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 2, sharey=True)
        names = [f"{h} x {w}" for _, h, w in schedule.scales]
        for ax, values_KK, heading in zip(
            panels, (shares_KK, uniform_KK), ("measured", "uniform attention"), strict=True
        ):
            percent = np.ma.masked_where(~np.tri(K, dtype=bool), 100 * values_KK)
            shown = ax.imshow(percent, cmap=SHARES, vmin=0, vmax=100)
            for a, b in zip(*np.tril_indices(K), strict=True):
                value = percent[a, b]
                text = f"{value:.0f}" if value >= 0.95 else f"{value:.1f}" if value >= 0.05 else "0"
                ink = "black" if value > 60 else "white"
                ax.text(b, a, text, ha="center", va="center", color=ink, fontsize=6.5 if K <= 10 else 5.5)
            ax.set_xticks(range(K), names, rotation=45, ha="right", rotation_mode="anchor")
            ax.set_yticks(range(K), names)
            ax.set_xlabel("scale of the keys")
            ax.set_title(heading)
            ax.spines[["top", "right"]].set_visible(False)
            ax.tick_params(length=2, width=0.5)
        panels[0].set_ylabel("scale of the queries")
        figure.colorbar(shown, ax=panels, shrink=0.8, aspect=28, pad=0.01).set_label("share of the attention (%)")
        figure.suptitle(title, fontsize=8.5)
    return figure


def _image(ax: Axes, image_RR3: np.ndarray, row: MapRow, schedule: ScaleSchedule) -> None:
    """The image with the query's cell outlined, labelled at its left."""
    _, h, w = schedule.scales[row.query.scale]
    ax.imshow(image_RR3, interpolation="nearest", extent=(0, w, h, 0))
    _outline(ax, row.query, "black", MARK)
    ax.set_ylabel(row.label)
    _bare(ax)


def _map(ax: Axes, row: MapRow, k: int, schedule: ScaleSchedule, norm: LogNorm) -> None:
    """The weights on scale k; the query's own cell is outlined."""
    _, h, w = schedule.scales[k]
    weights = row.weights_L[schedule.slices[k]]
    relative = weights.reshape(h, w) * schedule.slices[row.query.scale].stop
    ax.imshow(relative.clip(norm.vmin), cmap=RELATIVE, norm=norm, interpolation="nearest", extent=(0, w, h, 0))
    if k == row.query.scale:
        _outline(ax, row.query, "white", "black")
    ax.set_title(f"{weights.sum():.0%}", pad=1.5, fontsize=6)
    _bare(ax)


def _outline(ax: Axes, query: Query, under: str, over: str) -> None:
    for colour, width in ((under, 1.8), (over, 0.9)):
        cell = Rectangle((query.column, query.row), 1, 1, fill=False, edgecolor=colour, linewidth=width)
        ax.add_patch(cell)


def _bare(ax: Axes) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
