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
        rows["lr_peak"] = rate
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


def test_the_interval_of_the_exponent_holds_the_truth_as_often_as_it_says() -> None:
    """Optima that scatter about their line by .19 in log rate, beside little noise of the losses: 80 studies."""
    rng, n, slope, hits = np.random.default_rng(1), np.geomspace(5e3, 2e5, 6), -0.4, 0
    for study in range(80):
        rows = []
        for size, best in zip(n, 0.09 * (n / n[0]) ** slope * np.exp(0.19 * rng.standard_normal(6)), strict=True):
            for rate in best * 2.0 ** (np.arange(-2, 3) + rng.uniform(-0.5, 0.5)):
                loss = 3.5 + COST * np.log2(rate / best) ** 2 + 0.003 * rng.standard_normal(2)
                rows += [(size, rate, seed, y) for seed, y in enumerate(loss)]
        names = ["params_total", "lr_peak", "seed", "val_nats_per_token_avg"]
        table = RunTable.from_frame(pd.DataFrame(rows, columns=names).assign(tokens_seen=1e9))
        line = LearningRateScan.from_table(table, n="params_total", bootstrap=200, seed=study).exponent
        assert line is not None and line.low is not None and line.high is not None
        hits += line.low <= slope <= line.high
    assert 0.80 <= hits / 80 <= 0.98, hits / 80  # three standard errors of .9: .10


def test_diverged_neighbours_leave_the_optimum_uncertain(make_study: Callable[..., Path]) -> None:
    """The best trained rate is .01 at every size and twice it diverged: the exponent is known to the spacing only."""
    table = scanned(make_study, rates=(0.0025, 0.005, 0.01, 0.02))
    rate = table.rows["lr_peak"].to_numpy()
    loss = np.where(rate == 0.005, 3.5, np.where(rate == 0.01, 3.45, 3.6))
    status = np.where(rate == 0.02, "diverged", "finished")
    table = replace(table, rows=table.rows.assign(val_nats_per_token_avg=loss, status=status))
    line = LearningRateScan.from_table(table, bootstrap=500).exponent
    assert line is not None and line.low is not None and line.high is not None
    assert line.low < -0.05 and line.high > 0.05


def test_only_diverged_runs_of_the_scan_count(make_study: Callable[..., Path]) -> None:
    table = scanned(make_study, rates=(0.0025, 0.005, 0.01))
    lost = scanned(make_study, rates=(0.02,)).rows.assign(status="diverged")

    def first(rows: pd.DataFrame) -> str | None:
        both = replace(table, rows=pd.concat([table.rows, rows], ignore_index=True))
        return LearningRateScan.from_table(both, bootstrap=0).profiles[0].edge

    assert first(lost) is None
    others = {"exclude_reason": "bad node", "tokenizer_id": "tok1", "dataset_id": "data1", "steps": 600.0}
    others["lr_peak"] = np.nan
    assert {name: first(lost.assign(**{name: value})) for name, value in others.items()} == dict.fromkeys(
        others, "highest"
    )
    larger = lost[lost["width"] == 64].assign(params_nonembed=1e6)
    scan = LearningRateScan.from_table(replace(table, rows=pd.concat([table.rows, larger])), bootstrap=0)
    assert scan.lost == (1e6,) and "1,000,000  EVERY RATE DIVERGED" in scan.summary()


def test_every_number_of_tokens_is_scanned_by_itself(make_study: Callable[..., Path]) -> None:
    """Trained twice as long, every size is best at half the rate; a diverged run stopped at tokens of its own."""
    short = scanned(make_study, rates=(0.00125, *RATES), noise=1e-4).rows
    again = scanned(make_study, rates=(0.00125, *RATES), noise=1e-4).rows.assign(steps=2400.0)
    for name in ("tokens_seen", "images_seen", "flops_train"):
        again[name] *= 2
    again["run_id"] += "-long"
    octaves = np.log2(again["lr_peak"] * again["width"] / OPTIMUM)
    again["val_nats_per_token_avg"] += COST * ((octaves + 1) ** 2 - octaves**2) - 0.1
    lost = again[again["lr_peak"] == 0.04].assign(
        status="diverged", tokens_seen=1e5, run_id=lambda rows: rows["run_id"] + "x"
    )
    table = RunTable(pd.concat([short, again[again["lr_peak"] < 0.04], lost], ignore_index=True))
    one = analyse(RunTable(short), bootstrap=0)
    both = analyse(table, tokens=float(short["tokens_seen"].iloc[0]), bootstrap=0)
    assert len(both.rates) == 2 and both.rates[1].profiles[0].rate_R[-1] == 0.04  # the diverged runs are of the long
    for scan, factor in zip(both.rates, (1, 2), strict=True):
        widths = np.array([16, 24, 32, 48, 64])
        assert [p.best for p in scan.profiles] == pytest.approx(OPTIMUM / factor / widths, rel=0.01)
    name = "saturating/val_nats_per_token_avg"
    assert len(both.used) == 10 and both.fits[name].params["E"].value == one.fits[name].params["E"].value
    assert len(both.everything) == 20


def test_a_rate_is_chosen_where_it_can_be(make_study: Callable[..., Path]) -> None:
    """One size scanned and the others not: all are compared at the rate they share, and not at all without one."""
    rows = scanned(make_study, rates=(0.005, 0.01, 0.02)).rows
    some = rows[(rows["width"] == 64) | (rows["lr_peak"] == 0.02)]
    some = pd.concat(
        [some, rows.iloc[:1].assign(status="failed", lr_peak=np.nan)], ignore_index=True
    )  # changes nothing
    analysis = analyse(RunTable(some), bootstrap=0)
    assert set(analysis.used.rows["lr_peak"]) == {0.02} and len(analysis.used) == 10
    assert analysis.table.rows["exclude_reason"].str.contains("the one that all sizes have is 0.02").sum() == 4
    apart = some.assign(lr_peak=some["lr_peak"].where(some["width"] != 16, 0.03))
    analysis = analyse(RunTable(apart), bootstrap=0)
    assert not analysis.fits and not analysis.frontiers and analysis.prediction is None
    assert "4 of 5 sizes were trained at one lr_peak only" in analysis.absent["learning rates"]


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
    (scan,) = analysis.rates
    assert [p.edge for p in scan.profiles].count(None) == 2
    assert len(analysis.used.rows) == 10 and set(analysis.used.rows["lr_peak"]) <= {0.005, 0.01, 0.02}
    left = analysis.table.rows.query("exclude_reason != ''")
    assert len(left) == 20 and left["exclude_reason"].str.contains("the best of its size is").all()
    assert "AT THE EDGE" in analysis.summary() and analysis.to_dict()["rates"][0]["n"] == "params_nonembed"
    page = write_report(tmp_path, analysis).read_text()
    assert "Learning rates" in page and page.count("AT THE EDGE") == 3
    assert (tmp_path / "figures" / "learning_rates.png").exists()
    assert analyse(RunTable.read(make_study() / "runs.csv"), bootstrap=0).rates == ()


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
