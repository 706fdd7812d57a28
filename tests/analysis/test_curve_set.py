"""Curves of several sizes: used as measured unless smoothing is said, which takes noise away and no slope."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from varscale_analysis import CurveSet, FitError, Frontier, RunTable


def noisy(noise: float, points: int = 200) -> tuple[CurveSet, list[np.ndarray]]:
    """Four sizes by a known law, and the losses without noise."""
    rng = np.random.default_rng(0)
    rows, truth = [], []
    for n in np.geomspace(1e7, 1e9, 4):
        d = np.linspace(1 / points, 1, points) * 200 * n
        loss = 1.7 + 400 * n**-0.34 + 1000 * d**-0.3
        kept = 6 * n * d >= 0.1 * (6 * n * d).max()
        truth.append(loss[kept])
        measured = loss * np.exp(noise * rng.standard_normal(points))
        rows.append(pd.DataFrame({"run": f"{n:g}", "c": 6 * n * d, "n": n, "d": d, "y": measured}))
    return CurveSet.from_frame(pd.concat(rows), run="run", flops="c", n="n", y="y", d="d"), truth


def test_curves_are_as_measured_unless_smoothing_is_said(study: Path) -> None:
    table = RunTable.read(study / "runs.csv")
    plain = Frontier.from_envelope(table, bootstrap=0)
    smooth = Frontier.from_envelope(table, smooth=1.5, bootstrap=0)
    assert "smoothed" not in plain.summary() and CurveSet.from_table(table, "params_total", plain.y).smoothing is None
    assert "smoothed over a factor 1.5 of compute" in smooth.summary()
    assert "smoothed over a factor 1.5" in smooth.to_dict()["basis"]
    assert Frontier.from_dict(smooth.to_dict()).summary() == smooth.summary()


def test_smoothing_takes_noise_away_and_keeps_the_ends() -> None:
    curves, truth = noisy(0.01)
    smooth = curves.smoothed(1.3)
    for c_n, y_n, s_n, t_n in zip(curves.flops_R, curves.loss_R, smooth.loss_R, truth, strict=True):
        assert len(s_n) == len(c_n)
        late = c_n > 0.5 * c_n[-1]  # linear steps: there a window holds 25 measurements or more
        assert np.std((s_n / t_n)[late]) < 0.35 * np.std((y_n / t_n)[late])
    clean, truth = noisy(0.0)
    for s_n, t_n in zip(clean.smoothed(1.3).loss_R, truth, strict=True):
        assert np.abs(s_n / t_n - 1).max() < 1e-3 and abs(s_n[-1] / t_n[-1] - 1) < 3e-4


def test_a_line_in_log_compute_is_left_as_it_is() -> None:
    c_n = np.geomspace(1.0, 100.0, 40)
    frame = pd.concat([pd.DataFrame({"run": str(n), "c": c_n, "n": n, "y": 9 - np.log(c_n) - n}) for n in (1.0, 2.0)])
    curves = CurveSet.from_frame(frame, run="run", flops="c", n="n", y="y")
    assert curves.smoothed(2.0).loss_R[0] == pytest.approx(curves.loss_R[0], rel=1e-12)
    assert curves.smoothed(1.0001).loss_R[0].tolist() == curves.loss_R[0].tolist()  # nothing but itself in a window


@pytest.mark.parametrize("factor", [1.0, 0.5, np.nan])
def test_a_window_is_a_factor_above_one(factor: float) -> None:
    with pytest.raises(FitError, match="a factor of compute above 1"):
        noisy(0.0)[0].smoothed(factor)


def test_curves_are_smoothed_once() -> None:
    with pytest.raises(FitError, match=r"smoothed already, over a factor 1\.2"):
        noisy(0.0)[0].smoothed(1.2).smoothed(1.2)


def test_a_table_without_tokens_has_curves_without_them(study: Path) -> None:
    rows = pd.read_csv(study / "runs.csv").drop(columns=["tokens_seen", "images_seen"])
    table = RunTable.from_frame(rows)
    ours = RunTable.read(study / "runs.csv")
    frontier = Frontier.from_envelope(RunTable(table.rows, ours.curves), bootstrap=0)
    assert frontier.d is None and frontier.n_opt is not None and "tokens are not given" in frontier.absent["D_opt"]


def test_curves_without_flops_say_so(study: Path) -> None:
    table = RunTable.read(study / "runs.csv")
    assert table.curves is not None
    table.curves.rows["flops"] = np.nan
    with pytest.raises(FitError, match=r"curve of run run0008s0 has no flops.*CurveSet\.from_frame"):
        Frontier.from_envelope(table, bootstrap=0)
