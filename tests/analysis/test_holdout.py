"""Hold-out: a registered prediction is made from smaller sizes only, is not overwritten silently, and is scored."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from varscale_analysis import (
    FitError,
    Prediction,
    PredictionError,
    RunTable,
    SaturatingPowerLaw,
    leave_largest_out,
    predict_holdout,
)

MakeStudy = Callable[..., Path]
LAW = SaturatingPowerLaw()


@pytest.fixture
def table(study: Path) -> RunTable:
    return RunTable.read(study / "runs.csv")


def smaller(table: RunTable) -> RunTable:
    n = table.values("params_nonembed")
    return table.where(n < n.max())


def test_a_prediction_before_the_measurement(table: RunTable, tmp_path: Path) -> None:
    target = float(table.values("params_nonembed").max())
    prediction = predict_holdout(smaller(table), LAW, target)
    assert not prediction.measured_before
    assert (prediction.sizes, prediction.runs) == (6, 12)
    assert prediction.low < prediction.value < prediction.high
    assert prediction.tokens == pytest.approx(19_200 * 130)
    kept = prediction.write(tmp_path / "prediction.json")
    assert Prediction.read(tmp_path / "prediction.json") == kept == prediction
    score = prediction.compare(table)
    assert score.runs == 2
    assert score.inside
    assert abs(score.error_percent) < 0.3
    assert score.better_than_naive
    assert score.naive_error_percent > 1.0
    assert "inside" in prediction.summary(score)
    assert "registered" in prediction.summary()


def test_larger_rows_in_the_table_do_not_change_it_but_are_confessed(table: RunTable) -> None:
    target = float(table.values("params_nonembed").max())
    before, after = predict_holdout(smaller(table), LAW, target), predict_holdout(table, LAW, target)
    assert (after.value, after.low, after.rows_sha256) == (before.value, before.low, before.rows_sha256)
    assert after.measured_before
    assert "after the fact" in after.summary()


def test_what_was_measured_or_begun_before_is_confessed(table: RunTable) -> None:
    """A run that is excluded has shown its loss; one that is running has not."""
    n = table.values("params_nonembed")
    largest, target = n == n.max(), float(n.max())
    hidden = table.rows.assign(exclude_reason=np.where(largest, "for later", ""))
    assert predict_holdout(RunTable(hidden), LAW, target).measured_before
    running = table.rows.assign(status=np.where(largest, "running", "finished"))
    running["val_nats_per_token_avg"] = table.rows["val_nats_per_token_avg"].where(~largest)
    prediction = predict_holdout(RunTable(running), LAW, target)
    assert not prediction.measured_before
    score = prediction.compare(table)  # its runs are of 2025
    assert score.begun_before == 2 and "2 had begun before the prediction" in prediction.summary(score)
    for date in ("2099-01-01T00:00:00+00:00", "", "soon"):
        assert prediction.compare(RunTable(table.rows.assign(created_utc=date))).begun_before == 0


def test_leave_largest_out_scores_the_seed_mean(table: RunTable) -> None:
    prediction, score = leave_largest_out(table, LAW)
    n, y = table.values("params_nonembed"), table.values("val_nats_per_token_avg")
    assert score.measured == pytest.approx(y[n == n.max()].mean())
    assert score.runs == prediction.seeds == 2
    assert score.error_percent == pytest.approx(100 * (prediction.value / score.measured - 1))


def test_the_saved_parameters_give_the_law(table: RunTable) -> None:
    prediction, _ = leave_largest_out(table, SaturatingPowerLaw(per=1e6))
    assert prediction.law_at(prediction.n_target) == pytest.approx(prediction.value, rel=1e-9)


def test_a_file_is_kept_for_the_same_rows_and_defended_against_others(table: RunTable, tmp_path: Path) -> None:
    path, target = tmp_path / "prediction.json", 2e5
    first = predict_holdout(smaller(table), LAW, target)
    first.write(path)
    later = dataclasses.replace(first, created_utc="2099-01-01T00:00:00+00:00")
    assert later.write(path).created_utc == first.created_utc
    other = predict_holdout(table, LAW, target)
    with pytest.raises(PredictionError, match="already holds a prediction"):
        other.write(path)
    assert Prediction.read(path) == first
    assert other.write(path, replace_other=True).replaces == first.rows_sha256


def test_what_was_measured_otherwise_is_not_compared(table: RunTable) -> None:
    prediction, _ = leave_largest_out(table, LAW)
    with pytest.raises(PredictionError, match="train it, then collect"):
        prediction.compare(smaller(table))
    for column, value, text in (("tokenizer_id", "tok1", "tok1"), ("tokens_seen", 9.9e6, "same D")):
        with pytest.raises(PredictionError, match=text):
            prediction.compare(RunTable(table.rows.assign(**{column: value})))


def test_a_prediction_from_too_little_is_refused(table: RunTable, tmp_path: Path) -> None:
    sizes = np.unique(table.values("params_nonembed"))
    with pytest.raises(FitError, match="2 sizes"):
        predict_holdout(table, LAW, float(sizes[2]))
    with pytest.raises(PredictionError, match="smaller"):
        predict_holdout(table, LAW, float(sizes[0]))
    (tmp_path / "broken.json").write_text(json.dumps({"value": 1})[:-1])
    with pytest.raises(PredictionError, match="not a prediction"):
        Prediction.read(tmp_path / "broken.json")


def test_a_changed_prediction_is_noticed(table: RunTable, tmp_path: Path) -> None:
    path = tmp_path / "prediction.json"
    prediction = predict_holdout(smaller(table), LAW, 2e5)
    prediction.write(path)
    values = json.loads(path.read_text())
    assert values["sha256"] == prediction.sha256 and len(prediction.sha256) == 64
    changes: tuple[dict[str, object], ...] = (
        {"value": values["value"] + 1e-3},
        {"created_utc": "2020-01-01T00:00:00+00:00"},
        {"params": {**values["params"], "E": 0.0}},
    )
    for change in changes:
        path.write_text(json.dumps({**values, **change}))
        with pytest.raises(PredictionError, match="does not match its hash"):
            Prediction.read(path)
    path.write_text(json.dumps({k: v for k, v in values.items() if k != "sha256"}))
    with pytest.raises(PredictionError, match="carries no hash"):
        Prediction.read(path)
    path.write_text(json.dumps(values))
    assert Prediction.read(path) == prediction
