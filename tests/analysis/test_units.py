"""Units of a mapped table: given ones are taken off, two in one column are found, a wide ladder is one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from varscale_analysis import (
    RunTable,
    RunTableError,
)
from varscale_analysis.units import factor_of

Y = "val_nats_per_token_avg"


def test_units_and_constants_are_ones_again(mapped: Any) -> None:
    frame = mapped.foreign()
    scaled = frame.assign(
        size=frame["size"] / 1e6,
        tokens=frame["tokens"] / 1e9,
        compute=frame["compute"] / 1e15,
        loss=frame["loss"] / np.log(2),
    )
    units = {"params_total": "M", "tokens_seen": 1e9, "flops_train": "PFLOP", Y: "bit"}
    table = mapped.read(scaled, units=units, constants={"tokenizer_id": "gpt-neox", "seed": "3"})
    for name, column in zip(mapped.columns, ("size", "tokens", "compute", "loss"), strict=True):
        assert table.values(name) == pytest.approx(frame[column].to_numpy(), rel=1e-12)
    assert set(table.rows["tokenizer_id"]) == {"gpt-neox"} and set(table.values("seed")) == {3.0}
    assert factor_of("PF-day") == 8.64e19 and factor_of("%") == 0.01


def test_an_error_rate_above_one_names_the_unit(mapped: Any) -> None:
    frame = mapped.foreign().assign(err=45.0, seed=range(20))
    columns = {"params_total": "size", "val_error_avg": "err"}
    with pytest.raises(RunTableError, match=r"val_error_avg is above 1\.0 in 20 rows"):
        RunTable.from_frame(frame, columns)
    table = RunTable.from_frame(frame, columns, units={"val_error_avg": "%"})
    assert set(table.values("val_error_avg")) == {0.45}


@pytest.mark.parametrize(("column", "factor"), [("size", 1e-9), ("size", 1e3), ("tokens", 1e-9), ("compute", 1e-15)])
def test_two_units_in_one_column_are_found_by_c_against_n_and_d(mapped: Any, column: str, factor: float) -> None:
    frame = mapped.foreign()
    frame.loc[[2, 7], column] *= factor
    ours = next(name for name, theirs in mapped.columns.items() if theirs == column)
    text = mapped.problems_of(frame)
    assert "(rows 2, 7): one of params_total, tokens_seen, flops_train holds two units" in text
    if factor < 1e-3:
        assert f"most likely {ours}" in text


def test_two_units_of_n_alone_are_found_below_ten_thousand_parameters(mapped: Any) -> None:
    columns = {"params_total": "size", Y: "loss"}
    frame = mapped.foreign()
    frame.loc[[2, 7], "size"] /= 1e6
    with pytest.raises(
        RunTableError, match=r"params_total leaps from .* \(rows 2, 7\) to .* with nothing between: two units"
    ):
        RunTable.from_frame(frame, columns)


def test_two_units_of_the_loss_are_found(mapped: Any) -> None:
    frame = mapped.foreign()
    frame.loc[[2, 7], "loss"] *= 680
    assert "leaps from" in (text := mapped.problems_of(frame)) and "(rows 2, 7)" in text and "nats an image" in text


def test_a_wide_ladder_is_one_unit(mapped: Any) -> None:
    ladder = mapped.foreign()
    ladder["size"] = np.tile([6e3, 2e5, 1e8, 5e10, 1e12], 4)
    assert len(mapped.read(ladder.assign(compute=lambda f: 6 * f["size"] * f["tokens"]))) == 20
    tiny = RunTable.from_frame(
        ladder.assign(size=np.tile([6e3, 1e4, 3e4, 1e5, 2e5], 4)), {"params_total": "size", Y: "loss"}
    )
    assert len(tiny.usable) == 20


def test_a_unit_that_is_missing_throughout_is_noted(mapped: Any) -> None:
    frame = mapped.foreign()
    (note,) = mapped.read(frame.assign(size=frame["size"] / 1e9)).notes
    assert note.startswith("C / (N D) is 6e+09") and "is a unit missing?" in note
