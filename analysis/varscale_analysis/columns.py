"""The columns of the run table: names, units and limits, and the check that ``runs.csv`` keeps to them.

The same contract stands, from the side that writes it, in `varscale.records`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from varscale_analysis.objective import Floats

STATUSES = ("running", "finished", "diverged", "failed", "stopped")


class RunTableError(ValueError):
    """A run table that cannot be used: lists every problem at once, each with its remedy."""

    def __init__(self, problems: Sequence[str]):
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class Column:
    """A column this package reads. ``fitted``: must be present and positive in every row that enters a fit."""

    name: str
    unit: str
    kind: Literal["text", "count", "real"]
    fitted: bool = False
    high: float | None = None


COLUMNS = (
    Column("run_id", "-", "text"),
    Column("created_utc", "-", "text"),
    Column("study", "-", "text"),
    Column("status", "-", "text"),
    Column("exclude_reason", "-", "text"),
    Column("family", "-", "text"),
    Column("tokenizer_id", "-", "text"),
    Column("dataset_id", "-", "text"),
    Column("seed", "1", "count"),
    Column("flops_train", "FLOP", "real", fitted=True),
    Column("flops_rule", "-", "text"),
    Column("resolution_px", "px", "count"),
    Column("schedule", "-", "text"),
    Column("num_tokens", "token/image", "count", fitted=True),
    Column("code", "-", "text"),
    Column("depth", "1", "count"),
    Column("width", "1", "count"),
    Column("params_token", "1", "count", fitted=True),
    Column("params_image", "1", "count"),
    Column("params_blocks", "1", "count", fitted=True),
    Column("params_embed", "1", "count"),
    Column("params_head", "1", "count"),
    Column("params_total", "1", "count", fitted=True),
    Column("steps", "step", "count"),  # planned
    Column("lr_peak", "1", "real"),
    Column("images_seen", "image", "real", fitted=True),
    Column("unique_images", "image", "real"),
    Column("tokens_seen", "token", "real", fitted=True),
    Column("val_nats_per_token_avg", "nat", "real", fitted=True),
    Column("val_nats_per_token_last", "nat", "real", fitted=True),
    Column("val_error_avg", "1", "real", high=1.0),
    Column("val_error_last", "1", "real", high=1.0),
    Column("val_images", "image", "real"),
    Column("wall_s", "s", "real"),
    Column("device", "-", "text"),
    Column("precision", "-", "text"),
)
NATS = ("val_nats_per_token_avg", "val_nats_per_token_last")
LOSSES = (*NATS, "val_error_avg", "val_error_last")
SIZES = ("params_nonembed", "params_token", "params_blocks", "params_total")
_UNITS = {column.name: column.unit for column in COLUMNS}
_UNITS |= dict.fromkeys(SIZES, "parameter") | {"val_nats_per_token_avg": "nat/token"}
_UNITS |= {"val_nats_per_token_last": "nat/token"}


def unit_of(name: str) -> str:
    """The unit as printed: parameter for the conventions of N, nat/token for losses, else the column's own, else 1."""
    return _UNITS.get(name, "1")


def row_numbers(index: Sequence[int] | NDArray[np.int64]) -> str:
    """Rows as they are told: ``row 3``, or ``rows 3, 5, 8, 9, 12 and 40 more``."""
    shown = ", ".join(str(i) for i in index[:5])
    more = f" and {len(index) - 5} more" if len(index) > 5 else ""
    return f"row {shown}" if len(index) == 1 else f"rows {shown}{more}"


def validated(raw: pd.DataFrame, path: str) -> pd.DataFrame:
    """Typed columns with the derived ones. Raises ``RunTableError`` with every problem found."""
    missing = [column.name for column in COLUMNS if column.name not in raw]
    if missing:
        raise RunTableError([f"{path} lacks the columns {', '.join(missing)}; write it with `varscale collect`"])
    problems: list[str] = []
    ids = raw["run_id"].to_numpy(dtype=str)
    repeated = sorted({str(name) for name, count in zip(*np.unique(ids, return_counts=True), strict=True) if count > 1})
    if repeated:
        problems.append(f"run_id {', '.join(repeated)} stands in more than one row; keep one row a run")
    status = raw["status"].to_numpy(dtype=str)
    for value in sorted(set(map(str, status)) - set(STATUSES)):
        problems.append(f"status {value!r} in run {ids[status == value][0]}; it is one of {', '.join(STATUSES)}")
    fitted = (status == "finished") & (raw["exclude_reason"].to_numpy(dtype=str) == "")
    rows = raw.copy()
    for column in COLUMNS:
        if column.kind != "text":
            numbers, found = _numbers(column, raw[column.name].to_numpy(dtype=str), ids, fitted)
            rows[column.name] = numbers
            problems += found
    if not problems:
        parts = [rows[f"params_{role}"].to_numpy(np.float64) for role in ("token", "image", "blocks", "embed", "head")]
        token, image, blocks, embed, head = parts
        total = rows["params_total"].to_numpy(np.float64)
        for run in ids[fitted & ((token + image != blocks) | (blocks + embed + head != total))]:
            problems.append(f"run {run}: the parameters by role do not add up to params_blocks and params_total")
        rows["params_nonembed"] = total - embed
    if problems:
        raise RunTableError([f"{path}: {problem}" for problem in problems])
    return rows


def _numbers(
    column: Column, cells: NDArray[np.str_], ids: NDArray[np.str_], fitted: NDArray[np.bool_]
) -> tuple[Floats, list[str]]:
    """A column as float64, NaN where empty, and what is wrong with it."""
    numbers, problems = np.full(len(cells), np.nan), []
    for i, cell in enumerate(cells):
        if cell == "":
            if column.fitted and fitted[i]:
                problems.append(f"run {ids[i]}: {column.name} is empty though the run is finished")
            continue
        try:
            value = float(cell)
        except ValueError:
            problems.append(f"run {ids[i]}: {column.name} is {str(cell)!r}, not a number ({column.unit})")
            continue
        if not np.isfinite(value):
            if fitted[i]:
                problems.append(
                    f"run {ids[i]}: {column.name} is {cell} though the run is finished; set its status to diverged, or "
                    "give it an exclude_reason"
                )
            continue
        numbers[i] = value
        if fitted[i] and value <= 0 and column.fitted:
            problems.append(f"run {ids[i]}: {column.name} is {cell} {column.unit}; it must be above 0")
        elif value < 0 or (column.high is not None and value > column.high):
            top = "" if column.high is None else f" and at most {column.high:g}"
            problems.append(f"run {ids[i]}: {column.name} is {cell} {column.unit}; it must be at least 0{top}")
        elif column.kind == "count" and value != round(value):
            problems.append(f"run {ids[i]}: {column.name} is {cell}; it must be a whole number")
    return numbers, problems
