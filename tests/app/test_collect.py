"""Collecting runs: columns in order, nothing lost without a word, nothing half-written."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from varscale.app.collect import CURVES_FILE, RUNS_FILE, CollectError, collect, main
from varscale.app.config import ConfigError
from varscale.records import CURVE_COLUMNS, CURVE_FILE, RUN_FILE, CurveWriter, RecordError, Run, write_run

RUN = Run(
    schema_version=1,
    run_id="a",
    created_utc="2026-01-01T00:00:00+00:00",
    study="s",
    design="quickstart",
    status="finished",
    varscale_version="0.1.0",
    config_path="config.yaml",
    family="var",
    tokenizer_id="t",
    dataset_id="d",
    seed=0,
    flops_train=1.2345678901234567e18,
    flops_rule="dense",
    resolution_px=32,
    frames=1,
    schedule="1-2-4",
    num_tokens=21,
    code="index(256)",
    depth=2,
    width=8,
    heads=1,
    params_token=10,
    params_image=5,
    params_blocks=15,
    params_embed=3,
    params_head=2,
    params_total=20,
    batch_images=16,
    steps=100,
    lr_peak=0.08,
    weight_decay=0.05,
    warmup_steps=6,
    lr_schedule="linear",
    label_drop=0.1,
    images_seen=1600.0,
    unique_images=1600.0,
    tokens_seen=33600.0,
    val_nats_per_token_avg=4.0,
    device="cpu",
    num_devices=1,
    precision="bf16-mixed",
)


def record(folder: Path, run: Run, loss: float = 4.0) -> None:
    write_run(folder, run)
    CurveWriter(folder, run.run_id).append(
        step=10, images_seen=160.0, tokens_seen=3360.0, flops=1e9, values={"val": [("nats", None, loss)]}
    )


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_runs_and_curves_are_merged_to_the_last_digit(tmp_path: Path) -> None:
    record(tmp_path / "runs/width=8", RUN)
    record(tmp_path / "runs/width=16", RUN.replace(run_id="b", width=16, status="running"), loss=3.1)
    result = collect(tmp_path / "runs", tmp_path)
    assert [run.run_id for run in result.runs] == ["b", "a"] and not result.replaced and not result.unreadable
    table = rows(tmp_path / RUNS_FILE)
    assert list(table[0]) == list(RUN.to_dict())
    assert float(table[0]["flops_train"]) == RUN.flops_train and table[0]["fid"] == ""
    assert pd.read_csv(tmp_path / RUNS_FILE)["fid"].isna().all()
    curves = rows(tmp_path / CURVES_FILE)
    assert list(curves[0]) == list(CURVE_COLUMNS)
    assert [(row["run_id"], float(row["value"])) for row in curves] == [("b", 3.1), ("a", 4.0)]


def test_the_newest_finished_run_of_an_id_counts(tmp_path: Path) -> None:
    record(tmp_path / "runs/old", RUN.replace(val_nats_per_token_avg=5.0))
    record(tmp_path / "runs/new", RUN.replace(created_utc="2026-01-02T00:00:00+00:00"))
    record(tmp_path / "runs/newest_unfinished", RUN.replace(created_utc="2026-01-03T00:00:00+00:00", status="stopped"))
    result = collect(tmp_path / "runs", tmp_path)
    assert [run.val_nats_per_token_avg for run in result.runs] == [4.0]
    assert sorted((left.name, stands.name) for left, stands in result.replaced) == [
        ("newest_unfinished", "new"),
        ("old", "new"),
    ]
    assert len(rows(tmp_path / CURVES_FILE)) == 1


@pytest.mark.parametrize("broken", ["cut off", "missing column", "inconsistent", "curve", "stranger"])
def test_an_unreadable_run_is_told_and_the_others_are_written(tmp_path: Path, broken: str) -> None:
    record(tmp_path / "runs/good", RUN)
    bad = tmp_path / "runs/bad"
    record(bad, RUN.replace(run_id="b"))
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


def test_the_verb_says_what_it_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path / "runs/one", RUN)
    record(tmp_path / "runs/two", RUN.replace(created_utc="2026-01-02T00:00:00+00:00"))
    main(OmegaConf.create({"source": "runs", "paths": {"runs": str(tmp_path / "runs"), "study": str(tmp_path)}}))
    captured = capsys.readouterr()
    assert "1 runs (1 finished)" in captured.out
    assert "one is left out: two is the same run" in captured.err


def test_a_source_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="source is wanbd; it is runs"):
        main(OmegaConf.create({"source": "wanbd", "paths": {"runs": str(tmp_path), "study": str(tmp_path)}}))
