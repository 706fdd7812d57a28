"""The compute frontier: an envelope below all curves, known exponents recovered, cut vertices told from crossings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from varscale_analysis import Curves, CurvesError, FitError, Frontier, RunTable
from varscale_analysis.frontier import DROPPED, run_curve

MakeStudy = Callable[..., Path]


@pytest.fixture
def long_runs(make_study: MakeStudy, truth) -> RunTable:  # type: ignore[no-untyped-def]
    """Curves that pass through their compute-optimal point, so that sizes cross: a = .5 / (.4 + .5) = .556."""
    wide = dataclasses.replace(truth, token_scale=1.0e6, images=250_000.0)
    return RunTable.read(make_study(truth=wide, noise=0.001) / "runs.csv")


def test_the_envelope_lies_on_or_below_every_curve(long_runs: RunTable) -> None:
    frontier = Frontier.from_envelope(long_runs, seed_average=False, bootstrap=0)
    for run in map(str, long_runs.rows["run_id"]):
        c_n, y_n = run_curve(long_runs, run, "val_nats_per_token_avg")
        inside = (frontier.flops >= c_n[0]) & (frontier.flops <= c_n[-1])
        assert (frontier.loss[inside] <= np.interp(np.log(frontier.flops[inside]), np.log(c_n), y_n) + 1e-12).all()
    assert (np.diff(frontier.loss) < 0).all()


def test_the_allocation_exponent_is_recovered_with_an_interval(long_runs: RunTable) -> None:
    frontier = Frontier.from_envelope(long_runs, bootstrap=300)
    assert len(frontier.crossings) >= 3
    a = frontier.n_exponent
    assert a is not None and a.low is not None and a.high is not None
    assert a.value == pytest.approx(0.556, abs=0.06)
    assert a.low < a.value < a.high
    assert frontier.d_exponent == pytest.approx(1 - a.value)
    inside = frontier.crossings[1]
    n_opt, factor = frontier.allocate(inside.flops)
    assert factor == 1.0
    assert n_opt == pytest.approx(inside.n_opt, rel=0.2)
    assert frontier.allocate(10 * frontier.crossings[-1].flops)[1] == pytest.approx(10)


def test_the_laws_of_compute_have_intervals_from_the_resampled_envelopes(long_runs: RunTable) -> None:
    frontier = Frontier.from_envelope(long_runs, bootstrap=200)
    assert frontier.power.diagnostics.draws == 200
    assert frontier.saturating is not None
    # L = E' + A C^-(alpha beta / (alpha + beta)) on the optimum of the additive law: .4 * .5 / .9 = .222.
    alpha = frontier.saturating.params["alpha"]
    assert alpha.low is not None and alpha.high is not None
    assert alpha.low < -0.222 < alpha.high
    assert frontier.power.params["beta"].unit == "1/FLOP"
    assert "82 runs" not in frontier.power.summary()
    assert frontier.to_dict()["vertices"]


def test_vertices_made_by_cut_curves_are_flagged_and_carry_no_exponent(make_study: MakeStudy, truth) -> None:  # type: ignore[no-untyped-def]
    short = dataclasses.replace(truth, token_scale=1.0e7)  # far below the optimum: a larger model is never ahead
    ended = Frontier.from_envelope(RunTable.read(make_study(truth=short) / "runs.csv"), bootstrap=0)
    assert {vertex.flag for vertex in ended.vertices} == {"end"}
    long = dataclasses.replace(truth, token_scale=1.0e3)  # far beyond it: a larger model is ahead where it begins
    begun = Frontier.from_envelope(RunTable.read(make_study(truth=long) / "runs.csv"), bootstrap=0)
    assert {vertex.flag for vertex in begun.vertices} == {"start"}
    for frontier in (ended, begun):
        assert frontier.n_exponent is None
        assert frontier.absent is not None
        assert "2 crossings" in frontier.absent
        with pytest.raises(FitError, match="crossings"):
            frontier.allocate(1e12)


def test_the_first_tenth_of_a_curve_is_dropped(study: Path) -> None:
    table = RunTable.read(study / "runs.csv")
    c_n, _ = run_curve(table, "run0008s0", "val_nats_per_token_avg")
    assert c_n[0] >= DROPPED * c_n[-1]
    assert table.curves is not None
    assert table.curves.of("run0008s0", "nats_per_token_avg")[0][0] < c_n[0]


def test_a_study_without_curves_says_what_is_missing(study: Path) -> None:
    table = dataclasses.replace(RunTable.read(study / "runs.csv"), curves=None)
    with pytest.raises(FitError, match=r"curves\.csv"):
        Frontier.from_envelope(table)
    with pytest.raises(FitError, match="has no curve"):
        Frontier.from_envelope(RunTable.read(study / "runs.csv"), y="fid")


def test_curves_that_cannot_be_read_are_refused(study: Path, tmp_path: Path) -> None:
    rows = pd.read_csv(study / "curves.csv")
    rows.drop(columns="flops").to_csv(tmp_path / "missing.csv", index=False)
    with pytest.raises(CurvesError, match="lacks the columns flops"):
        Curves.read(tmp_path / "missing.csv")
    rows.assign(value=np.inf).to_csv(tmp_path / "infinite.csv", index=False)
    with pytest.raises(CurvesError, match="value is not a finite number"):
        Curves.read(tmp_path / "infinite.csv")
