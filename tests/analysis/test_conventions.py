"""Every count of parameters and rule of FLOPs side by side: what moves by convention, and what does not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from varscale_analysis import Frontier, RunTable, analyse_conventions
from varscale_analysis.table import SIZES


@pytest.fixture
def table(make_study: Callable[..., Path], truth) -> RunTable:  # type: ignore[no-untyped-def]
    """Sizes whose curves cross; C = 6 N D with the non-embedding count."""
    wide = dataclasses.replace(truth, token_scale=1.0e6, images=250_000.0)
    return RunTable.read(make_study(truth=wide, noise=0.001, seeds=1) / "runs.csv")


def test_every_convention_stands_side_by_side(table: RunTable) -> None:
    found = analyse_conventions(table, bootstrap=0)
    assert [(row.n, row.flops_rule.split()[0]) for row in found.rows] == [
        (n, rule) for n in SIZES for rule in ("dense", "forward_macs", "6nd")
    ]
    rows = {(row.n, row.flops_rule.split()[0]): row for row in found.rows}
    dense, macs, nonembed_6nd = (rows["params_nonembed", rule] for rule in ("dense", "forward_macs", "6nd"))
    assert dense.n_exponent is not None and macs.n_exponent is not None and nonembed_6nd.n_exponent is not None
    # A constant factor moves the prefactor only, and the study's own C is 6 N D of the non-embedding count.
    assert macs.n_exponent == dense.n_exponent
    assert dense.n_coefficient is not None and macs.n_coefficient is not None
    assert macs.n_coefficient == pytest.approx(dense.n_coefficient * 6**dense.n_exponent.value)
    assert nonembed_6nd.n_exponent.value == pytest.approx(dense.n_exponent.value, abs=1e-6)
    # The head grows as the width, the blocks as its square: leaving it out steepens N_opt(C).
    total, blocks = rows["params_total", "dense"], rows["params_blocks", "dense"]
    assert total.n_exponent is not None and blocks.n_exponent is not None
    assert blocks.n_exponent.value > dense.n_exponent.value > total.n_exponent.value
    assert found.spread("n_exponent") > 0.1
    frame = found.to_frame()
    assert len(frame) == 12
    assert frame["alpha"].notna().all()
    assert "moves by convention alone" in found.summary()
    assert json.dumps(found.to_dict())


def test_the_macs_row_is_what_an_analysis_of_that_count_gives(table: RunTable) -> None:
    recounted = dataclasses.replace(
        table,
        rows=table.rows.assign(flops_train=table.rows["flops_train"] / 6),
        curves=dataclasses.replace(table.curves, rows=table.curves.rows.assign(flops=table.curves.rows["flops"] / 6)),  # type: ignore[union-attr,arg-type,type-var]
    )
    direct = Frontier.from_envelope(recounted, bootstrap=0).n_opt
    row = next(
        row
        for row in analyse_conventions(table, sizes=["params_nonembed"], bootstrap=0).rows
        if "macs" in row.flops_rule
    )
    assert direct is not None and row.n_exponent is not None
    assert direct.exponent == pytest.approx(row.n_exponent.value, abs=1e-9)
    assert direct.coefficient == pytest.approx(row.n_coefficient, rel=1e-6)


@pytest.mark.parametrize(
    ("rule", "factor", "others"), [("forward_macs", 1 / 6, ["6nd"]), ("6nd", 1.0, ["forward_macs"])]
)
def test_a_rule_stands_once_whichever_was_recorded(
    isoflop_table: RunTable, rule: str, factor: float, others: list[str]
) -> None:
    rows = isoflop_table.rows.assign(flops_train=factor * isoflop_table.values("flops_train"), flops_rule=rule)

    def route(table: RunTable, n: str) -> Frontier:
        return Frontier.from_isoflop(table, n=n, bootstrap=0)

    recorded, other = analyse_conventions(RunTable(rows), route=route, bootstrap=0).rows
    assert recorded.flops_rule == f"{rule} (recorded)" and [other.flops_rule.split()[0]] == others
    assert recorded.n_exponent is not None and recorded.n_coefficient is not None and other.n_coefficient is not None
    ratio = 6.0**-recorded.n_exponent.value  # N_opt is of the same runs whatever C counts
    wanted = ratio if rule == "forward_macs" else 1 / ratio
    assert other.n_coefficient / recorded.n_coefficient == pytest.approx(wanted, rel=1e-6)


def test_what_cannot_be_fitted_is_a_row_that_says_why(table: RunTable) -> None:
    bare = dataclasses.replace(table, curves=None)
    found = analyse_conventions(bare, sizes=["params_total"], bootstrap=0)
    assert all(row.n_exponent is None and row.alpha is not None for row in found.rows)
    assert "there are no curves" in found.summary()
    assert found.spread("n_exponent") is None
