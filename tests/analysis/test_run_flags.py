"""Rows that may not enter a fit: each is marked with its reason and listed, none is dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from varscale_analysis import (
    ChinchillaLaw,
    FitError,
    RunTable,
    RunTableError,
)

Y = "val_nats_per_token_avg"


def test_a_loss_that_is_not_finite_is_a_diverged_run(mapped: Any, tmp_path: Path) -> None:
    frame = mapped.foreign().astype(object)
    frame.loc[2, "loss"], frame.loc[5, "loss"], frame.loc[7, "loss"] = "nan", "inf", ""
    frame.to_csv(tmp_path / "sweep.csv", index=False)
    table = RunTable.from_csv(tmp_path / "sweep.csv", mapped.columns)
    assert len(table) == 20 and len(table.usable) == 17
    assert table.rows["status"].iloc[[2, 5]].tolist() == ["diverged"] * 2
    assert table.rows["exclude_reason"].iloc[7] == "no loss"
    assert table.notes == (
        "2 rows with a loss that is not finite, set to diverged: rows 2, 5",
        "1 row without a loss, left out: row 7",
    )
    numbers = mapped.foreign()
    numbers.loc[[2, 5], "loss"] = [np.nan, np.inf]
    assert mapped.read(numbers).notes == table.notes[:1]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("loss", 0.0, r"val_nats_per_token_avg is not above 0 in 2 rows \(rows 3, 4: 0, 0\); correct these cells"),
        ("loss", -2.5, r"val_nats_per_token_avg is not above 0 in 2 rows \(rows 3, 4: -2.5, -2.5\)"),
        ("size", 0.0, "params_total is not above 0"),
        ("size", np.nan, r"params_total is not a finite number in 2 rows \(rows 3, 4: nan, nan\)"),
        ("compute", np.inf, "flops_train is not a finite number"),
    ],
)
def test_values_outside_their_limits_are_named_with_their_rows(
    mapped: Any, column: str, value: float, message: str
) -> None:
    frame = mapped.foreign()
    frame.loc[[3, 4], column] = value
    with pytest.raises(RunTableError, match=message):
        mapped.read(frame)
    excluded = frame.assign(exclude_reason=["known" if i in (3, 4) else "" for i in range(20)])
    assert len(mapped.read(excluded).usable) == 18


def test_statuses_are_ours_or_the_words_of_others(mapped: Any) -> None:
    frame = mapped.foreign().assign(status=["finished"] * 16 + ["Crashed", "killed", "running", "completed"])
    table = mapped.read(frame)
    assert table.rows["status"].tolist()[16:] == ["failed", "stopped", "running", "finished"]
    frame.loc[3, "status"] = "blue"
    assert "status 'blue' in row 3 is not known" in mapped.problems_of(frame)


def test_a_run_short_of_its_budget_is_stopped(mapped: Any) -> None:
    frame = mapped.foreign()
    frame = frame.assign(budget_flops=frame["compute"], steps=1000.0, steps_done=1000.0)
    frame.loc[4, "budget_flops"] *= 1.02
    frame.loc[6, "budget_flops"] *= 1.005
    frame.loc[9, "steps_done"] = 900.0
    table = mapped.read(frame)
    assert np.flatnonzero(table.rows["status"] == "stopped").tolist() == [4, 9]
    assert "1 row whose flops_train falls short of budget_flops by more than 1%, set to stopped: row 4" in table.notes


def test_rows_told_twice_are_left_out_and_listed(mapped: Any) -> None:
    frame = pd.concat([mapped.foreign(), mapped.foreign().iloc[[3, 5, 3]]])
    table = mapped.read(frame)
    assert len(table) == 23 and len(table.usable) == 20
    assert table.rows["exclude_reason"].tolist()[20:] == [
        "duplicate of row 3",
        "duplicate of row 5",
        "duplicate of row 3",
    ]
    assert (
        "3 rows equal to an earlier one in every mapped column" in table.notes[0]
        and "rows 20, 21, 22" in table.notes[0]
    )
    assert len(mapped.read(frame.assign(seed=[0] * 20 + [1, 1, 2])).usable) == 23
    law = ChinchillaLaw(n="params_total")
    assert law.fit(table, bootstrap=0).rows == 20
    with pytest.raises(FitError, match="3 rows stand in the data twice"):
        ChinchillaLaw(n="size", d="tokens").fit(frame, "loss")


def test_the_newest_finished_row_of_a_run_id_stays(mapped: Any) -> None:
    frame = mapped.foreign().assign(run_id=[f"r{i}" for i in range(20)], created_utc="2025-01-01", status="finished")
    again = (
        mapped.foreign()
        .iloc[[3, 3]]
        .assign(run_id="r3", created_utc=["2025-01-02", "2025-01-03"], status=["finished", "crashed"])
    )
    table = mapped.read(pd.concat([frame, again]))
    assert table.rows["exclude_reason"].tolist() == [
        *[""] * 3,
        "the same run_id as row 20, which is finished or newer",
        *[""] * 17,
        "the same run_id as row 20, which is finished or newer",
    ]
    further = (
        mapped.foreign()
        .iloc[[3]]
        .assign(tokens=2e9, compute=lambda f: 6 * f["size"] * 2e9, run_id="r3", status="finished")
    )
    table = mapped.read(pd.concat([frame.drop(columns="created_utc"), further]))
    assert table.rows["exclude_reason"].iloc[3] == "the same run_id as row 20, which is finished or newer"
