"""The figures show the numbers they are given: maps, shares and outlines at their places."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes

from varscale.evaluation.attention_figures import GAP_IN, MapRow, hierarchy_figure, maps_figure
from varscale.evaluation.attention_maps import Query, uniform_shares
from varscale.schedule import ScaleSchedule

SCHEDULE = ScaleSchedule.square(1, 2, 3)


def test_a_map_shows_weights_relative_to_uniform() -> None:
    weights = np.zeros(14)
    weights[:5] = 0.2
    fine = np.r_[np.full(5, 0.1), np.full(8, 0.05), 0.1]
    rows = [MapRow("coarse", Query(1, 0, 1), weights), MapRow("fine", Query(2, 2, 0), fine)]
    figure = maps_figure(rows, SCHEDULE, np.zeros((8, 8, 3), np.uint8), "title")
    pictures = [axes for axes in figure.axes if axes.images]
    assert [shape(axes) for axes in pictures] == [(8, 8, 3), (1, 1), (2, 2), (8, 8, 3), (1, 1), (2, 2), (3, 3)]
    np.testing.assert_allclose(pictures[2].images[0].get_array(), 0.2 * 5)  # of 5 tokens that a query of 2 x 2 sees
    np.testing.assert_allclose(pictures[6].images[0].get_array()[2, 2], 0.1 * 14)
    assert [axes.get_title() for axes in pictures] == ["", "20%", "80%", "", "10%", "40%", "50%"]
    assert outline(pictures[0]) == outline(pictures[2]) == (1, 0)
    assert outline(pictures[3]) == outline(pictures[6]) == (0, 2)
    assert not pictures[1].patches and not pictures[5].patches
    places = [axes.get_position() for axes in pictures]
    width = figure.get_figwidth()
    assert min(b.x0 - a.x1 for a, b in pairwise(places[3:])) * width > 0.9 * GAP_IN
    assert places[0].y0 > places[3].y1


def test_shares_stand_in_their_cells() -> None:
    uniform = uniform_shares(SCHEDULE).numpy()
    measured = np.array([[1, 0, 0], [0.5, 0.5, 0], [0.004, 0.3, 0.696]])
    figure = hierarchy_figure(measured, uniform, SCHEDULE, "title")
    left, right, _ = figure.axes
    assert texts(left) == {(0, 0): "100", (0, 1): "50", (1, 1): "50", (0, 2): "0.4", (1, 2): "30", (2, 2): "70"}
    assert texts(right)[1, 2] == "29" and texts(right)[2, 2] == "64"
    assert (left.get_xlabel(), left.get_ylabel()) == ("scale of the keys", "scale of the queries")


def shape(axes: Axes) -> tuple[int, ...]:
    return tuple(axes.images[0].get_array().shape)


def outline(axes: Axes) -> tuple[float, float]:
    (place,) = {patch.get_xy() for patch in axes.patches}  # drawn twice, in two colours
    return place


def texts(axes: Axes) -> dict[tuple[int, int], str]:
    return {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}  # type: ignore[misc]
