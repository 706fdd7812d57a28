"""Any table by a map of its columns: the same numbers whatever their names and units; a flaw is told with its rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from varscale_analysis import (
    ChinchillaLaw,
    FitError,
    Frontier,
    PowerLaw,
    PrefactorLaw,
    RunTable,
    RunTableError,
    SaturatingPowerLaw,
    compare_families,
    huber,
)
from varscale_analysis.column_map import parse_columns
from varscale_analysis.units import factor_of

Y = "val_nats_per_token_avg"
COLUMNS = {"params_total": "size", "tokens_seen": "tokens", "flops_train": "compute", Y: "loss"}


def foreign(sizes: int = 5, budgets: int = 4) -> pd.DataFrame:
    """A grid of runs by a known law, in ones."""
    rng = np.random.default_rng(0)
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e9, sizes), np.geomspace(1e9, 1e11, budgets)))
    loss = (1.7 + 400 * n**-0.34 + 1000 * d**-0.3) * np.exp(0.002 * rng.standard_normal(n.size))
    return pd.DataFrame({"size": n, "tokens": d, "compute": 6 * n * d, "loss": loss})


def read(frame: pd.DataFrame, **options: object) -> RunTable:
    return RunTable.from_frame(frame, COLUMNS, **options)  # type: ignore[arg-type]


def problems_of(frame: pd.DataFrame, **options: object) -> str:
    with pytest.raises(RunTableError) as caught:
        read(frame, **options)
    return str(caught.value)


def test_a_csv_by_a_map_is_the_frame(tmp_path: Path) -> None:
    frame = foreign()
    frame.to_csv(tmp_path / "sweep.csv", index=False)
    table = RunTable.from_csv(tmp_path / "sweep.csv", COLUMNS)
    law = ChinchillaLaw(n="params_total")
    fit = law.fit(table, bootstrap=0)
    assert fit.params == law.fit(read(frame), bootstrap=0).params
    arrays = tuple(frame[name].to_numpy() for name in ("size", "tokens", "loss"))
    assert fit.values() == pytest.approx(law.fit(arrays, bootstrap=0).values(), rel=1e-12)
    assert len(table) == len(table.usable) == 20 and not table.notes
    assert set(table.rows["study"]) == {"sweep"} and set(table.rows["flops_rule"]) == {"as given"}


def test_columns_that_bear_our_names_need_no_map() -> None:
    frame = foreign().rename(columns={theirs: ours for ours, theirs in COLUMNS.items()})
    table = RunTable.from_frame(frame.assign(colour="red", rate=0.1))
    assert table.values(Y).tolist() == frame[Y].tolist()
    assert len(table.select(colour="red")) == 20 and table.values("rate").tolist() == [0.1] * 20


def test_units_and_constants_are_ones_again() -> None:
    frame = foreign()
    scaled = frame.assign(
        size=frame["size"] / 1e6,
        tokens=frame["tokens"] / 1e9,
        compute=frame["compute"] / 1e15,
        loss=frame["loss"] / np.log(2),
    )
    units = {"params_total": "M", "tokens_seen": 1e9, "flops_train": "PFLOP", Y: "bit"}
    table = read(scaled, units=units, constants={"tokenizer_id": "gpt-neox", "seed": "3"})
    for name, column in zip(COLUMNS, ("size", "tokens", "compute", "loss"), strict=True):
        assert table.values(name) == pytest.approx(frame[column].to_numpy(), rel=1e-12)
    assert set(table.rows["tokenizer_id"]) == {"gpt-neox"} and set(table.values("seed")) == {3.0}
    assert factor_of("PF-day") == 8.64e19 and factor_of("%") == 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"columns": {"params_totl": "size", Y: "loss"}},
            r"no column 'params_totl' in the run table\. Did you mean 'params_total'",
        ),
        (
            {"columns": {"params_total": "sise", Y: "loss"}},
            r"no column 'sise' \(for params_total\)\. Did you mean 'size'",
        ),
        ({"columns": {"params_total": "size"}}, "there is no loss; name its column as one of val_nats"),
        ({"columns": {Y: "loss"}}, "no sizes, tokens or FLOPs"),
        ({"columns": COLUMNS, "units": {"params_total": "megas"}}, "params_total: the unit 'megas' is not known"),
        ({"columns": COLUMNS, "units": {"params_total": -1.0}}, "the unit -1.0 is not known"),
        ({"columns": COLUMNS, "units": {"params_head": "M"}}, "params_head has a unit and no column"),
        ({"columns": COLUMNS | {"study": "size"}, "units": {"study": "M"}}, "study is text"),
        ({"columns": COLUMNS, "constants": {Y: 3.0}}, "given as a column and as a constant"),
        (
            {"columns": {"params_total": "size", Y: "loss"}, "constants": {"flops_rule": "6nd"}},
            "name columns of a size and",
        ),
    ],
)
def test_a_map_that_cannot_be_used_is_refused(options: dict[str, dict[str, str]], message: str) -> None:
    with pytest.raises(RunTableError, match=message):
        RunTable.from_frame(foreign(), **options)  # type: ignore[arg-type]


def test_pairs_of_a_command_line() -> None:
    assert parse_columns(["params_total=n_params", f"{Y} = loss=x"]) == {"params_total": "n_params", Y: "loss=x"}
    for bad, message in (("params_total", "is no pair"), ("=x", "is no pair"), ("a=", "is no pair")):
        with pytest.raises(RunTableError, match=message):
            parse_columns([bad])
    with pytest.raises(RunTableError, match="seed is given twice"):
        parse_columns(["seed=a", "seed=b"])


@pytest.mark.parametrize("content", [None, "", "a,b\n1,2,3\n4"])
def test_a_missing_or_broken_file_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "sweep.csv").write_text(content)
    with pytest.raises(RunTableError, match=r"sweep\.csv .*one row a run"):
        RunTable.from_csv(tmp_path / "sweep.csv", COLUMNS)


def test_a_header_without_rows_is_named(tmp_path: Path) -> None:
    (tmp_path / "sweep.csv").write_text("size,tokens,compute,loss\n")
    with pytest.raises(RunTableError, match="there are no rows"):
        RunTable.from_csv(tmp_path / "sweep.csv", COLUMNS)


def test_flops_are_computed_only_when_asked() -> None:
    frame = foreign().drop(columns="compute")
    columns = {ours: theirs for ours, theirs in COLUMNS.items() if theirs != "compute"}
    bare = RunTable.from_frame(frame, columns)
    with pytest.raises(RunTableError, match=r"flops_train is empty in 20 rows.*name the column that holds it"):
        PowerLaw(n="flops_train").fit(bare, bootstrap=0)
    table = RunTable.from_frame(frame, columns, constants={"flops_rule": "6nd"})
    assert table.values("flops_train") == pytest.approx(foreign()["compute"].to_numpy())
    assert table.notes == ("flops_train is computed: 6 params_total tokens_seen (flops_rule 6nd)",)


def test_the_rule_6nd_counts_the_size_that_the_package_counts() -> None:
    frame = foreign().assign(params_embed=1e6).drop(columns="compute")
    columns = {"params_total": "size", "tokens_seen": "tokens", Y: "loss"}
    table = RunTable.from_frame(frame, columns, constants={"flops_rule": "6nd"})
    assert table.values("params_nonembed").tolist() == (frame["size"] - 1e6).tolist()
    assert table.values("flops_train") == pytest.approx(6 * (frame["size"] - 1e6) * frame["tokens"])


def test_an_absent_column_is_named_with_what_there_is() -> None:
    table = read(foreign())
    with pytest.raises(RunTableError, match=r"params_nonembed is empty .*the sizes of this table are params_total"):
        ChinchillaLaw().fit(table)
    assert table.has("tokens_seen") and not table.has("params_nonembed") and not table.has("colour")


def test_a_law_of_n_needs_no_tokens() -> None:
    frame = foreign(sizes=6, budgets=1)
    table = RunTable.from_frame(frame, {"params_total": "size", Y: "loss"})
    fit = SaturatingPowerLaw(n="params_total").fit(table, bootstrap=0)
    assert fit.rows == 6 and fit.at == "at a D that is not given"
    at_d = read(frame)
    assert SaturatingPowerLaw(n="params_total").fit(at_d, bootstrap=0).at == "at D = 1e+09 tokens"
    with pytest.raises(RunTableError, match="different numbers of tokens"):
        SaturatingPowerLaw(n="params_total").fit(read(foreign()))


def test_a_frontier_and_a_comparison_take_a_mapped_table() -> None:
    rng = np.random.default_rng(1)
    c, ratio = (g.ravel() for g in np.meshgrid(np.geomspace(1e18, 1e21, 4), np.geomspace(0.1, 10, 9)))
    n = 0.1 * c**0.5 * ratio
    d = c / (6 * n)
    loss = 1.7 + 400 * n**-0.34 + 400 * d**-0.34 + 1e-4 * rng.standard_normal(n.size)
    frame = pd.DataFrame({"size": n, "tokens": d, "compute": c, "loss": loss})
    frontier = Frontier.from_isoflop(read(frame), n="params_total", bootstrap=0)
    assert frontier.n_exponent is not None and frontier.n_exponent.value == pytest.approx(0.5, abs=0.01)
    assert frontier.flops_rule == "as given"
    seeds = foreign(sizes=6, budgets=1).assign(seed=0)
    table = read(seeds)
    comparison = compare_families(table, table, bootstrap=20)
    assert comparison.multipliers[0].multiplier.value == pytest.approx(1.0)


def test_a_loss_that_is_not_finite_is_a_diverged_run(tmp_path: Path) -> None:
    frame = foreign().astype(object)
    frame.loc[2, "loss"], frame.loc[5, "loss"], frame.loc[7, "loss"] = "nan", "inf", ""
    frame.to_csv(tmp_path / "sweep.csv", index=False)
    table = RunTable.from_csv(tmp_path / "sweep.csv", COLUMNS)
    assert len(table) == 20 and len(table.usable) == 17
    assert table.rows["status"].iloc[[2, 5]].tolist() == ["diverged"] * 2
    assert table.rows["exclude_reason"].iloc[7] == "no loss"
    assert table.notes == (
        "2 rows with a loss that is not finite, set to diverged: rows 2, 5",
        "1 row without a loss, left out: row 7",
    )
    numbers = foreign()
    numbers.loc[[2, 5], "loss"] = [np.nan, np.inf]
    assert read(numbers).notes == table.notes[:1]


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
def test_values_outside_their_limits_are_named_with_their_rows(column: str, value: float, message: str) -> None:
    frame = foreign()
    frame.loc[[3, 4], column] = value
    with pytest.raises(RunTableError, match=message):
        read(frame)
    excluded = frame.assign(exclude_reason=["known" if i in (3, 4) else "" for i in range(20)])
    assert len(read(excluded).usable) == 18


def test_an_error_rate_above_one_names_the_unit() -> None:
    frame = foreign().assign(err=45.0, seed=range(20))
    columns = {"params_total": "size", "val_error_avg": "err"}
    with pytest.raises(RunTableError, match=r"val_error_avg is above 1\.0 in 20 rows"):
        RunTable.from_frame(frame, columns)
    table = RunTable.from_frame(frame, columns, units={"val_error_avg": "%"})
    assert set(table.values("val_error_avg")) == {0.45}


def test_text_in_a_column_of_numbers_is_told() -> None:
    frame = foreign().astype(object)
    frame.loc[3, "size"] = "12B"
    assert "params_total (from size) is not a number in 1 rows (row 3: '12B')" in problems_of(frame)


def test_statuses_are_ours_or_the_words_of_others() -> None:
    frame = foreign().assign(status=["finished"] * 16 + ["Crashed", "killed", "running", "completed"])
    table = read(frame)
    assert table.rows["status"].tolist()[16:] == ["failed", "stopped", "running", "finished"]
    frame.loc[3, "status"] = "blue"
    assert "status 'blue' in row 3 is not known" in problems_of(frame)


def test_a_run_short_of_its_budget_is_stopped() -> None:
    frame = foreign()
    frame = frame.assign(budget_flops=frame["compute"], steps=1000.0, steps_done=1000.0)
    frame.loc[4, "budget_flops"] *= 1.02
    frame.loc[6, "budget_flops"] *= 1.005
    frame.loc[9, "steps_done"] = 900.0
    table = read(frame)
    assert np.flatnonzero(table.rows["status"] == "stopped").tolist() == [4, 9]
    assert "1 row whose flops_train falls short of budget_flops by more than 1%, set to stopped: row 4" in table.notes


def test_rows_told_twice_are_left_out_and_listed() -> None:
    frame = pd.concat([foreign(), foreign().iloc[[3, 5, 3]]])
    table = read(frame)
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
    assert len(read(frame.assign(seed=[0] * 20 + [1, 1, 2])).usable) == 23
    law = ChinchillaLaw(n="params_total")
    assert law.fit(table, bootstrap=0).rows == 20
    with pytest.raises(FitError, match="3 rows stand in the data twice"):
        ChinchillaLaw(n="size", d="tokens").fit(frame, "loss")


def test_the_newest_finished_row_of_a_run_id_stays() -> None:
    frame = foreign().assign(run_id=[f"r{i}" for i in range(20)], created_utc="2025-01-01", status="finished")
    again = (
        foreign()
        .iloc[[3, 3]]
        .assign(run_id="r3", created_utc=["2025-01-02", "2025-01-03"], status=["finished", "crashed"])
    )
    table = read(pd.concat([frame, again]))
    assert table.rows["exclude_reason"].tolist() == [
        *[""] * 3,
        "the same run_id as row 20, which is finished or newer",
        *[""] * 17,
        "the same run_id as row 20, which is finished or newer",
    ]
    further = (
        foreign().iloc[[3]].assign(tokens=2e9, compute=lambda f: 6 * f["size"] * 2e9, run_id="r3", status="finished")
    )
    table = read(pd.concat([frame.drop(columns="created_utc"), further]))
    assert table.rows["exclude_reason"].iloc[3] == "the same run_id as row 20, which is finished or newer"


@pytest.mark.parametrize(("column", "factor"), [("size", 1e-9), ("size", 1e3), ("tokens", 1e-9), ("compute", 1e-15)])
def test_two_units_in_one_column_are_found_by_c_against_n_and_d(column: str, factor: float) -> None:
    frame = foreign()
    frame.loc[[2, 7], column] *= factor
    ours = next(name for name, theirs in COLUMNS.items() if theirs == column)
    text = problems_of(frame)
    assert "(rows 2, 7): one of params_total, tokens_seen, flops_train holds two units" in text
    if factor < 1e-3:
        assert f"most likely {ours}" in text


def test_two_units_of_n_alone_are_found_below_ten_thousand_parameters() -> None:
    columns = {"params_total": "size", Y: "loss"}
    frame = foreign()
    frame.loc[[2, 7], "size"] /= 1e6
    with pytest.raises(
        RunTableError, match=r"params_total leaps from .* \(rows 2, 7\) to .* with nothing between: two units"
    ):
        RunTable.from_frame(frame, columns)


def test_two_units_of_the_loss_are_found() -> None:
    frame = foreign()
    frame.loc[[2, 7], "loss"] *= 680
    assert "leaps from" in (text := problems_of(frame)) and "(rows 2, 7)" in text and "nats an image" in text


def test_a_wide_ladder_is_one_unit() -> None:
    ladder = foreign()
    ladder["size"] = np.tile([6e3, 2e5, 1e8, 5e10, 1e12], 4)
    assert len(read(ladder.assign(compute=lambda f: 6 * f["size"] * f["tokens"]))) == 20
    tiny = RunTable.from_frame(
        ladder.assign(size=np.tile([6e3, 1e4, 3e4, 1e5, 2e5], 4)), {"params_total": "size", Y: "loss"}
    )
    assert len(tiny.usable) == 20


def test_a_unit_that_is_missing_throughout_is_noted() -> None:
    frame = foreign()
    (note,) = read(frame.assign(size=frame["size"] / 1e9)).notes
    assert note.startswith("C / (N D) is 6e+09") and "is a unit missing?" in note


def test_runs_csv_brings_its_curves(make_study: Callable[..., Path]) -> None:
    folder = make_study()
    table, ours = RunTable.from_csv(folder / "runs.csv"), RunTable.read(folder / "runs.csv")
    assert table.curves is not None and not table.notes
    fits = [SaturatingPowerLaw().fit(t, bootstrap=0) for t in (table, ours)]
    assert fits[0].params == fits[1].params and fits[0].at == fits[1].at
    frontiers = [Frontier.from_envelope(t, bootstrap=0).to_dict() for t in (table, ours)]
    assert frontiers[0] == frontiers[1]


def test_published_tables_are_read_as_they_are(test_data: Path) -> None:
    svg = RunTable.from_csv(
        test_data / "laws/besiroglu2024_chinchilla_svg.csv",
        {"params_total": "n_params", "tokens_seen": "d_tokens", "flops_train": "c_flops", Y: "loss_nats_per_token"},
    )
    kept = svg.select(kept_by_besiroglu=1)
    assert (len(svg), len(svg.usable), len(kept)) == (245, 245, 240) and not svg.notes
    fit = ChinchillaLaw(n="params_total", objective=huber(1e-3)).fit(kept, bootstrap=0)
    assert fit.values()["alpha"] == pytest.approx(0.347310, abs=2e-5)

    porian = RunTable.from_csv(
        test_data / "laws/porian2024_isoflop_points.csv",
        {"dataset_id": "dataset", "study": "stage", "flops_train": "c_flops", "params_total": "n_params"}
        | {"tokens_seen": "d_tokens", Y: "loss_nats"},
    )
    assert len(porian.usable) == len(porian) == 1745
    stage = porian.select(dataset_id="rw", study="1_kaplan_reproduction")
    assert Frontier.from_isoflop(stage, n="params_total", bootstrap=0).n_opt is not None
    with pytest.raises(RunTableError, match="mix 2 data sets"):
        Frontier.from_isoflop(porian, n="params_total")

    gadre = RunTable.from_csv(
        test_data / "laws/gadre2024_testbed.csv",
        {"run_id": "name", "dataset_id": "dataset_name", "params_total": "n_params", "tokens_seen": "d_tokens"}
        | {"flops_train": "c_flops_6nd", Y: "loss_c4_val", "val_error_avg": "err_avg_subset"},
        constants={"flops_rule": "6nd"},
    )
    assert len(gadre.usable) == 104 and not gadre.notes
    rpj = gadre.select(dataset_id="rpj")
    assert ChinchillaLaw(n="params_total").fit(rpj, "loss_openlm", bootstrap=0).rows == len(rpj)

    pairs = RunTable.from_csv(
        test_data / "laws/porian2024_optimal_pairs.csv",
        {"dataset_id": "dataset", "study": "stage", "flops_train": "c_flops", "params_total": "n_opt_params"}
        | {"tokens_seen": "d_opt_tokens", Y: "loss_opt_nats"},
    )
    final = pairs.select(dataset_id="rw", study="1_kaplan_reproduction")
    exponent = PrefactorLaw(n="flops_train").fit(final, "params_total", bootstrap=0).values()["b"]
    assert exponent == pytest.approx(0.834, abs=0.02)


def test_a_second_loss_may_be_measured_in_part() -> None:
    frame = foreign().astype(object).assign(last=[5.0] * 10 + [None] * 10)
    table = RunTable.from_frame(frame, COLUMNS | {"val_nats_per_token_last": "last"})
    assert len(table.usable) == 20 and not table.notes
    assert ChinchillaLaw(n="params_total").fit(table, bootstrap=0).rows == 20
    with pytest.raises(RunTableError, match="val_nats_per_token_last is empty in 10 rows; measure or exclude them"):
        ChinchillaLaw(n="params_total").fit(table, "val_nats_per_token_last")
