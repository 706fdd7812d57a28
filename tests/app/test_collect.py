"""Collecting runs: columns in order, nothing lost without a word, nothing half-written."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from varscale.app.collect import CURVES_FILE, RUNS_FILE, CollectError, collect, main
from varscale.app.config import ConfigError
from varscale.records import CURVE_COLUMNS, CURVE_FILE, RUN_FILE, RecordError, Run

Record = Callable[..., Run]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_runs_and_curves_are_merged_to_the_last_digit(record: Record, tmp_path: Path) -> None:
    run = record(tmp_path / "runs/width=8", run_id="a")
    record(tmp_path / "runs/width=16", run_id="b", width=16, status="running", val_nats_per_token_avg=3.1)
    result = collect(tmp_path / "runs", tmp_path)
    assert [run.run_id for run in result.runs] == ["b", "a"] and not result.replaced and not result.unreadable
    table = rows(tmp_path / RUNS_FILE)
    assert list(table[0]) == list(run.to_dict())
    assert float(table[0]["flops_train"]) == run.flops_train and table[0]["fid"] == ""
    assert pd.read_csv(tmp_path / RUNS_FILE)["fid"].isna().all()
    curves = rows(tmp_path / CURVES_FILE)
    assert list(curves[0]) == list(CURVE_COLUMNS)
    assert [(row["run_id"], float(row["value"])) for row in curves] == [("b", 3.1), ("a", 4.0)]


def test_the_newest_finished_run_of_an_id_counts(record: Record, tmp_path: Path) -> None:
    record(tmp_path / "runs/old", val_nats_per_token_avg=5.0)
    record(tmp_path / "runs/new", created_utc="2026-01-02T00:00:00+00:00")
    record(tmp_path / "runs/newest_unfinished", created_utc="2026-01-03T00:00:00+00:00", status="stopped")
    result = collect(tmp_path / "runs", tmp_path)
    assert [run.val_nats_per_token_avg for run in result.runs] == [4.0]
    assert sorted((left.name, stands.name) for left, stands in result.replaced) == [
        ("newest_unfinished", "new"),
        ("old", "new"),
    ]
    assert len(rows(tmp_path / CURVES_FILE)) == 1


@pytest.mark.parametrize("broken", ["cut off", "missing column", "inconsistent", "curve", "stranger"])
def test_an_unreadable_run_is_told_and_the_others_are_written(record: Record, tmp_path: Path, broken: str) -> None:
    record(tmp_path / "runs/good", run_id="a")
    bad = tmp_path / "runs/bad"
    record(bad, run_id="b")
    match broken:
        case "cut off":
            (bad / RUN_FILE).write_text((bad / RUN_FILE).read_text()[:100])
        case "missing column":
            (bad / RUN_FILE).write_text('{"run_id": "b"}')
        case "inconsistent":
            (bad / RUN_FILE).write_text(
                (bad / RUN_FILE).read_text().replace('"params_total": 20', '"params_total": 21')
            )
        case "curve":
            (bad / CURVE_FILE).write_text("step,loss\n1,2\n")
        case "stranger":
            (bad / CURVE_FILE).write_text((bad / CURVE_FILE).read_text().replace("b,10", "c,10"))
    config = OmegaConf.create({"source": "runs", "paths": {"runs": str(tmp_path / "runs"), "study": str(tmp_path)}})
    with pytest.raises(CollectError, match="1 of the runs could not be read") as caught:
        main(config)
    assert str(bad) in str(caught.value)
    assert [row["run_id"] for row in rows(tmp_path / RUNS_FILE)] == ["a"]
    assert [row["run_id"] for row in rows(tmp_path / CURVES_FILE)] == ["a"]


def test_no_runs_is_an_error_that_keeps_the_old_table(tmp_path: Path) -> None:
    (tmp_path / RUNS_FILE).write_text("old")
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(RecordError, match="train a run first"):
            collect(folder, tmp_path)
    assert (tmp_path / RUNS_FILE).read_text() == "old"


def test_the_verb_says_what_it_merged(record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path / "runs/one")
    record(tmp_path / "runs/two", created_utc="2026-01-02T00:00:00+00:00")
    main(OmegaConf.create({"source": "runs", "paths": {"runs": str(tmp_path / "runs"), "study": str(tmp_path)}}))
    captured = capsys.readouterr()
    assert "1 runs (1 finished)" in captured.out
    assert "one is left out: two is the same run" in captured.err


def test_a_source_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="source is wanbd; it is runs"):
        main(OmegaConf.create({"source": "wanbd", "paths": {"runs": str(tmp_path), "study": str(tmp_path)}}))
