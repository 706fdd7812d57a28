"""The scan of learning rates: interior optima, edges, diverged runs, the line against size, and what fits then take."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from varscale_analysis import RunTable, analyse
from varscale_analysis.figures.rates import rates_figure
from varscale_analysis.fit import FitError
from varscale_analysis.lr import LearningRateScan, several_rates, vertex
from varscale_analysis.report.page import write_report

RATES = (0.0025, 0.005, 0.01, 0.02, 0.04)
OPTIMUM = 0.32  # over the width
COST = 0.05  # nat for a factor of 2


def scanned(make_study: Callable[..., Path], rates: tuple[float, ...] = RATES, **options: object) -> RunTable:
    """A study at several rates in which the optimum is .32 / width."""
    table = RunTable.read(make_study(widths=(16, 24, 32, 48, 64), **options) / "runs.csv")
    parts = []
    for rate in rates:
        rows = table.rows.copy()
        octaves = np.log2(rate * rows["width"].to_numpy(float) / OPTIMUM)
        rows["val_nats_per_token_avg"] += COST * octaves**2
        rows["run_id"] = [f"{run}-{rate}" for run in rows["run_id"]]
        rows["lr_peak"] = str(rate)  # as a CSV holds it: no column of the contract
        parts.append(rows)
    return replace(table, rows=pd.concat(parts, ignore_index=True))


def test_the_minimum_of_a_parabola() -> None:
    x = np.log([1.0, 2.0, 5.0, 7.0])
    at, curvature = vertex(x, 3.0 + 0.5 * (x - 1.1) ** 2)
    assert (at, curvature) == pytest.approx((1.1, 0.5))
    assert vertex(np.array([0.0, 1.0, 2.0]), np.array([3.0, 2.0, np.inf])) == (1.0, None)


def test_interior_optima_and_their_line(make_study: Callable[..., Path]) -> None:
    table = scanned(make_study, noise=1e-4)
    scan = LearningRateScan.from_table(table, bootstrap=300)
    widths = np.array([16, 24, 32, 48, 64])
    assert not scan.at_edge
    assert [p.best for p in scan.profiles] == pytest.approx(OPTIMUM / widths, rel=0.01)
    assert [p.doubled for p in scan.profiles] == pytest.approx([COST] * 5, rel=0.02)
    n = np.array([p.n for p in scan.profiles])
    slope = np.polyfit(np.log(n), np.log(OPTIMUM / widths), 1)[0]
    assert scan.exponent is not None and scan.exponent.value == pytest.approx(slope, abs=0.01)
    assert scan.exponent.low is not None and scan.exponent.high is not None
    assert scan.exponent.low < slope < scan.exponent.high
    assert scan.predict(float(n[2])) == pytest.approx(0.01, rel=0.03)
    assert scan.noise is not None and 2e-5 < scan.noise < 3e-4  # the seeds of a size deviate alike at every rate
    assert "0 with the best rate at an edge" in scan.summary()


def test_sizes_at_an_edge_are_marked(make_study: Callable[..., Path]) -> None:
    scan = LearningRateScan.from_table(scanned(make_study, rates=(0.01, 0.02, 0.04)), bootstrap=0)
    assert [p.edge for p in scan.profiles] == [None, "lowest", "lowest", "lowest", "lowest"]
    assert scan.exponent is None and scan.summary().count("AT THE EDGE (lowest rate)") == 4
    with pytest.raises(FitError, match="fewer than two sizes"):
        scan.predict(1e5)
    scan = LearningRateScan.from_table(scanned(make_study, rates=(0.001, 0.0025)), bootstrap=0)
    assert {p.edge for p in scan.profiles} == {"highest"}


def test_a_diverged_rate_is_a_worse_one(make_study: Callable[..., Path]) -> None:
    """Without the runs at .02 and above the optimum of width 16 is at the edge; as diverged runs they bound it."""
    table = scanned(make_study, rates=(0.0025, 0.005, 0.01))
    assert LearningRateScan.from_table(table, bootstrap=0).profiles[0].edge == "highest"
    lost = scanned(make_study, rates=(0.02,)).rows.assign(status="diverged")
    profile = LearningRateScan.from_table(
        replace(table, rows=pd.concat([table.rows, lost], ignore_index=True)), bootstrap=0
    ).profiles[0]
    assert profile.edge is None and profile.best == 0.01 and profile.doubled is None
    assert json.loads(json.dumps(profile.to_dict()))["loss_R"][-1] is None


def test_one_rate_is_no_scan(make_study: Callable[..., Path]) -> None:
    table = scanned(make_study, rates=(0.01,))
    assert not several_rates(table, "params_nonembed")
    with pytest.raises(FitError, match="at one peak rate"):
        LearningRateScan.from_table(table)
    with pytest.raises(FitError, match="no column lr_peak"):
        LearningRateScan.from_table(replace(table, rows=table.rows.drop(columns="lr_peak")))


def test_an_analysis_takes_the_best_rate_of_each_size(make_study: Callable[..., Path], tmp_path: Path) -> None:
    table = scanned(make_study, rates=(0.005, 0.01, 0.02))
    analysis = analyse(table, bootstrap=0)
    assert analysis.rates is not None and [p.edge for p in analysis.rates.profiles].count(None) == 2
    assert len(analysis.used.rows) == 10 and set(analysis.used.rows["lr_peak"]) <= {"0.005", "0.01", "0.02"}
    left = analysis.table.rows.query("exclude_reason != ''")
    assert len(left) == 20 and left["exclude_reason"].str.contains("the best of its size is").all()
    assert "AT THE EDGE" in analysis.summary() and analysis.to_dict()["rates"]["n"] == "params_nonembed"
    page = write_report(tmp_path, analysis).read_text()
    assert "Learning rates" in page and page.count("AT THE EDGE") == 3
    assert (tmp_path / "figures" / "learning_rates.png").exists()
    assert analyse(RunTable.read(make_study() / "runs.csv"), bootstrap=0).rates is None


def test_the_figure_marks_edges(make_study: Callable[..., Path]) -> None:
    scan = LearningRateScan.from_table(scanned(make_study, rates=(0.005, 0.01, 0.02)), bootstrap=0)
    top, bottom = rates_figure(scan).axes
    assert top.get_xlabel() == "peak learning rate" and bottom.get_ylabel() == "best peak rate"
    bottom.figure.canvas.draw()
    for axes in (top, bottom):
        for axis in (axes.xaxis, axes.yaxis):
            box = axis.label.get_window_extent()
            assert box.x0 >= 0 and box.y0 >= 0 and box.y1 <= axes.figure.bbox.height, axis.label.get_text()
    hollow = [line for line in bottom.lines if line.get_marker() == "o" and line.get_markerfacecolor() == "white"]
    assert len(hollow) == 3
