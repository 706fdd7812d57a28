"""The contract between training and analysis: every column the analysis reads exists in the record, unit for unit."""

from __future__ import annotations

import dataclasses
from typing import get_args

from varscale import records
from varscale_analysis.curves import CURVE_COLUMNS
from varscale_analysis.table import COLUMNS, STATUSES


def test_columns_and_units_agree() -> None:
    fields = {field.name: field.metadata["unit"] for field in dataclasses.fields(records.Run)}
    assert {column.name: column.unit for column in COLUMNS} == {c.name: fields.get(c.name) for c in COLUMNS}


def test_statuses_and_curve_columns_agree() -> None:
    assert set(STATUSES) == set(get_args(records.Status))
    assert CURVE_COLUMNS == records.CURVE_COLUMNS
