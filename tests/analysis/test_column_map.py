"""Any table by a map of its columns: the same numbers whatever their names and units; a flaw is told with its rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from varscale_analysis import (
    ChinchillaLaw,
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

Y = "val_nats_per_token_avg"


def test_a_csv_by_a_map_is_the_frame(mapped: Any, tmp_path: Path) -> None:
    frame = mapped.foreign()
    frame.to_csv(tmp_path / "sweep.csv", index=False)
    table = RunTable.from_csv(tmp_path / "sweep.csv", mapped.columns)
    law = ChinchillaLaw(n="params_total")
    fit = law.fit(table, bootstrap=0)
    assert fit.params == law.fit(mapped.read(frame), bootstrap=0).params
    arrays = tuple(frame[name].to_numpy() for name in ("size", "tokens", "loss"))
    assert fit.values() == pytest.approx(law.fit(arrays, bootstrap=0).values(), rel=1e-12)
    assert len(table) == len(table.usable) == 20 and not table.notes
    assert set(table.rows["study"]) == {"sweep"} and set(table.rows["flops_rule"]) == {"as given"}


def test_columns_that_bear_our_names_need_no_map(mapped: Any) -> None:
    frame = mapped.foreign().rename(columns={theirs: ours for ours, theirs in mapped.columns.items()})
    table = RunTable.from_frame(frame.assign(colour="red", rate=0.1))
    assert table.values(Y).tolist() == frame[Y].tolist()
    assert len(table.select(colour="red")) == 20 and table.values("rate").tolist() == [0.1] * 20


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
        (
            {"units": {"params_total": "megas"}},
            "params_total: the unit 'megas' is not known",
        ),
        ({"units": {"params_total": -1.0}}, "the unit -1.0 is not known"),
        ({"units": {"params_head": "M"}}, "params_head has a unit and no column"),
        ({"columns": {"params_total": "size", Y: "loss", "study": "size"}, "units": {"study": "M"}}, "study is text"),
        ({"constants": {Y: 3.0}}, "given as a column and as a constant"),
        (
            {"columns": {"params_total": "size", Y: "loss"}, "constants": {"flops_rule": "6nd"}},
            "name columns of a size and",
        ),
    ],
)
def test_a_map_that_cannot_be_used_is_refused(mapped: Any, options: dict[str, dict[str, str]], message: str) -> None:
    with pytest.raises(RunTableError, match=message):
        RunTable.from_frame(mapped.foreign(), **({"columns": mapped.columns} | options))  # type: ignore[arg-type]


def test_pairs_of_a_command_line() -> None:
    assert parse_columns(["params_total=n_params", f"{Y} = loss=x"]) == {"params_total": "n_params", Y: "loss=x"}
    for bad, message in (("params_total", "is no pair"), ("=x", "is no pair"), ("a=", "is no pair")):
        with pytest.raises(RunTableError, match=message):
            parse_columns([bad])
    with pytest.raises(RunTableError, match="seed is given twice"):
        parse_columns(["seed=a", "seed=b"])


@pytest.mark.parametrize("content", [None, "", "a,b\n1,2,3\n4"])
def test_a_missing_or_broken_file_is_named(mapped: Any, tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "sweep.csv").write_text(content)
    with pytest.raises(RunTableError, match=r"sweep\.csv .*one row a run"):
        RunTable.from_csv(tmp_path / "sweep.csv", mapped.columns)


def test_a_header_without_rows_is_named(mapped: Any, tmp_path: Path) -> None:
    (tmp_path / "sweep.csv").write_text("size,tokens,compute,loss\n")
    with pytest.raises(RunTableError, match="there are no rows"):
        RunTable.from_csv(tmp_path / "sweep.csv", mapped.columns)


def test_flops_are_computed_only_when_asked(mapped: Any) -> None:
    frame = mapped.foreign().drop(columns="compute")
    columns = {ours: theirs for ours, theirs in mapped.columns.items() if theirs != "compute"}
    bare = RunTable.from_frame(frame, columns)
    with pytest.raises(RunTableError, match=r"flops_train is empty in 20 rows.*name the column that holds it"):
        PowerLaw(n="flops_train").fit(bare, bootstrap=0)
    table = RunTable.from_frame(frame, columns, constants={"flops_rule": "6nd"})
    assert table.values("flops_train") == pytest.approx(mapped.foreign()["compute"].to_numpy())
    assert table.notes == ("flops_train is computed: 6 params_total tokens_seen (flops_rule 6nd)",)


def test_the_rule_6nd_counts_the_size_that_the_package_counts(mapped: Any) -> None:
    frame = mapped.foreign().assign(params_embed=1e6).drop(columns="compute")
    columns = {"params_total": "size", "tokens_seen": "tokens", Y: "loss"}
    table = RunTable.from_frame(frame, columns, constants={"flops_rule": "6nd"})
    assert table.values("params_nonembed").tolist() == (frame["size"] - 1e6).tolist()
    assert table.values("flops_train") == pytest.approx(6 * (frame["size"] - 1e6) * frame["tokens"])


def test_rates_steps_and_trunks_are_columns(mapped: Any, study: Path) -> None:
    assert len(RunTable.read(study / "runs.csv").select(steps=1200, lr_peak=0.01)) == 14
    frame = mapped.foreign().assign(rate=["0.01"] * 20, trunk=["a", ""] * 10)
    table = RunTable.from_frame(frame, {**mapped.columns, "lr_peak": "rate", "trunk_id": "trunk"})
    assert table.values("lr_peak").tolist() == [0.01] * 20 and table.rows["trunk_id"].tolist() == ["a", ""] * 10


def test_an_absent_column_is_named_with_what_there_is(mapped: Any) -> None:
    table = mapped.read(mapped.foreign())
    with pytest.raises(RunTableError, match=r"params_nonembed is empty .*the sizes of this table are params_total"):
        ChinchillaLaw().fit(table)
    assert table.has("tokens_seen") and not table.has("params_nonembed") and not table.has("colour")


def test_a_law_of_n_needs_no_tokens(mapped: Any) -> None:
    frame = mapped.foreign(sizes=6, budgets=1)
    table = RunTable.from_frame(frame, {"params_total": "size", Y: "loss"})
    fit = SaturatingPowerLaw(n="params_total").fit(table, bootstrap=0)
    assert fit.rows == 6 and fit.at == "at a D that is not given"
    at_d = mapped.read(frame)
    assert SaturatingPowerLaw(n="params_total").fit(at_d, bootstrap=0).at == "at D = 1e+09 tokens"
    with pytest.raises(RunTableError, match="different numbers of tokens"):
        SaturatingPowerLaw(n="params_total").fit(mapped.read(mapped.foreign()))


def test_a_frontier_and_a_comparison_take_a_mapped_table(mapped: Any) -> None:
    rng = np.random.default_rng(1)
    c, ratio = (g.ravel() for g in np.meshgrid(np.geomspace(1e18, 1e21, 4), np.geomspace(0.1, 10, 9)))
    n = 0.1 * c**0.5 * ratio
    d = c / (6 * n)
    loss = 1.7 + 400 * n**-0.34 + 400 * d**-0.34 + 1e-4 * rng.standard_normal(n.size)
    frame = pd.DataFrame({"size": n, "tokens": d, "compute": c, "loss": loss})
    frontier = Frontier.from_isoflop(mapped.read(frame), n="params_total", bootstrap=0)
    assert frontier.n_exponent is not None and frontier.n_exponent.value == pytest.approx(0.5, abs=0.01)
    assert frontier.flops_rule == "as given"
    seeds = mapped.foreign(sizes=6, budgets=1).assign(seed=0)
    table = mapped.read(seeds)
    comparison = compare_families(table, table, bootstrap=20)
    assert comparison.multipliers[0].multiplier.value == pytest.approx(1.0)


def test_text_in_a_column_of_numbers_is_told(mapped: Any) -> None:
    frame = mapped.foreign().astype(object)
    frame.loc[3, "size"] = "12B"
    assert "params_total (from size) is not a number in 1 rows (row 3: '12B')" in mapped.problems_of(frame)


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


def test_a_second_loss_may_be_measured_in_part(mapped: Any) -> None:
    frame = mapped.foreign().astype(object).assign(last=[5.0] * 10 + [None] * 10)
    table = RunTable.from_frame(frame, mapped.columns | {"val_nats_per_token_last": "last"})
    assert len(table.usable) == 20 and not table.notes
    assert ChinchillaLaw(n="params_total").fit(table, bootstrap=0).rows == 20
    with pytest.raises(RunTableError, match="val_nats_per_token_last is empty in 10 rows; measure or exclude them"):
        ChinchillaLaw(n="params_total").fit(table, "val_nats_per_token_last")
