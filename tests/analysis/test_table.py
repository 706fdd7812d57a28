"""RunTable: what it reads, what it refuses, and that it lists every problem at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from varscale_analysis import PowerLaw, RunTable, RunTableError, SaturatingPowerLaw

MakeStudy = Callable[..., Path]


def edit(folder: Path, change: Callable[[pd.DataFrame], object]) -> Path:
    """Change runs.csv in place, all cells as text."""
    path = folder / "runs.csv"
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    change(rows)
    rows.to_csv(path, index=False)
    return path


def test_a_study_is_read_with_its_curves(study: Path) -> None:
    table = RunTable.read(study / "runs.csv")
    assert len(table) == len(table.usable) == 14
    assert table.curves is not None
    assert (table.values("params_nonembed") == table.values("params_total") - table.values("params_embed")).all()
    assert table.at_tokens == "at D = 2.496e+06 tokens"


def test_every_problem_is_listed_at_once(make_study: MakeStudy) -> None:
    def change(rows: pd.DataFrame) -> None:
        rows.loc[0, "val_nats_per_token_avg"] = "nan"
        rows.loc[1, "val_nats_per_token_last"] = "inf"
        rows.loc[2, "val_nats_per_token_avg"] = ""
        rows.loc[3, "run_id"] = rows.loc[4, "run_id"]
        rows.loc[5, "val_error_avg"] = "1.5"
        rows.loc[6, "params_total"] = "12.5"
        rows.loc[7, "status"] = "done"
        rows.loc[8, "tokens_seen"] = "0"
        rows.loc[9, "flops_train"] = "many"

    with pytest.raises(RunTableError) as caught:
        RunTable.read(edit(make_study(), change))
    text = str(caught.value)
    assert len(caught.value.problems) == 9
    for part in (
        "val_nats_per_token_avg is nan though the run is finished",
        "val_nats_per_token_last is inf",
        "val_nats_per_token_avg is empty",
        "stands in more than one row",
        "at most 1",
        "whole number",
        "status 'done'",
        "tokens_seen is 0 token; it must be above 0",
        "'many', not a number (FLOP)",
    ):
        assert part in text


def test_missing_columns_are_named(make_study: MakeStudy) -> None:
    path = make_study() / "runs.csv"
    pd.read_csv(path).drop(columns=["flops_rule", "seed"]).to_csv(path, index=False)
    with pytest.raises(RunTableError, match="lacks the columns seed, flops_rule"):
        RunTable.read(path)


@pytest.mark.parametrize("content", [None, "", "a,b\n1,2,3\n4"])
def test_a_missing_or_broken_file_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "runs.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RunTableError, match=r"runs\.csv"):
        RunTable.read(path)


def test_roles_that_do_not_add_up_are_refused(make_study: MakeStudy) -> None:
    def change(rows: pd.DataFrame) -> None:
        rows.loc[0, "params_head"] = "1"

    with pytest.raises(RunTableError, match="do not add up"):
        RunTable.read(edit(make_study(), change))


def test_rows_out_of_the_fits_stay_in_the_table(make_study: MakeStudy) -> None:
    def change(rows: pd.DataFrame) -> None:
        rows.loc[0, ["status", "val_nats_per_token_avg"]] = ["diverged", "nan"]
        rows.loc[1, ["exclude_reason", "val_nats_per_token_avg"]] = ["label noise", ""]
        rows.loc[2, ["status", "val_nats_per_token_avg"]] = ["running", ""]

    table = RunTable.read(edit(make_study(), change))
    assert len(table) == 14
    assert len(table.usable) == 11
    assert PowerLaw().fit(table, bootstrap=0).rows == 11


@pytest.mark.parametrize(
    ("column", "value", "what"),
    [("flops_rule", "6nd", "FLOP rules"), ("tokenizer_id", "tok1", "tokenizers"), ("dataset_id", "data1", "data sets")],
)
def test_rows_that_cannot_be_compared_are_refused(make_study: MakeStudy, column: str, value: str, what: str) -> None:
    def change(rows: pd.DataFrame) -> None:
        rows.loc[0, column] = value

    table = RunTable.read(edit(make_study(), change))
    with pytest.raises(RunTableError, match=rf"{what}.*{value}.*table\.select"):
        PowerLaw().fit(table, bootstrap=0)
    kept = table.select(**{column: str(table.rows[column].iloc[5])})
    assert PowerLaw().fit(kept, bootstrap=0).rows == 13


def test_different_tokens_are_refused_and_can_be_chosen(make_study: MakeStudy) -> None:
    def per_run(width: int, seed: int) -> dict[str, object]:
        return {"tokens_seen": 5.0e6} if seed else {}

    table = RunTable.read(make_study(per_run=per_run) / "runs.csv")
    with pytest.raises(RunTableError, match="different numbers of tokens"):
        SaturatingPowerLaw().fit(table)
    assert SaturatingPowerLaw().fit(table.select(tokens_seen=5e6), bootstrap=0).rows == 7
    with pytest.raises(RunTableError, match="no column 'colour'"):
        table.select(colour="red")


def test_no_finished_run_says_so(make_study: MakeStudy) -> None:
    table = RunTable.read(make_study(per_run=lambda width, seed: {"status": "running"}) / "runs.csv")
    with pytest.raises(RunTableError, match="none is finished"):
        PowerLaw().fit(table)


def test_a_column_that_is_empty_or_text_cannot_be_fitted(make_study: MakeStudy) -> None:
    table = RunTable.read(make_study(per_run=lambda width, seed: {"val_error_avg": ""}) / "runs.csv")
    with pytest.raises(RunTableError, match="val_error_avg is empty in 14 rows"):
        PowerLaw().fit(table, "val_error_avg")
    with pytest.raises(RunTableError, match="does not hold numbers"):
        PowerLaw().fit(table, "device")


def test_the_hash_of_rows_depends_on_their_numbers_and_not_on_their_order(study: Path) -> None:
    table = RunTable.read(study / "runs.csv")
    names = ("params_nonembed", "val_nats_per_token_avg")
    assert RunTable(table.rows.iloc[::-1]).sha256(*names) == table.sha256(*names)
    assert RunTable(table.rows.iloc[1:]).sha256(*names) != table.sha256(*names)
