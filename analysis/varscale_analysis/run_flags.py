"""Flags of runs that must not enter a fit: diverged, partial, repeated. A row is flagged and told, never deleted.

Rules: a run whose loss is not finite has diverged; one that fell short of what it promised by more than 1 % was
stopped; of several rows with one run_id the newest finished one stays; of rows equal in every column that was mapped
the first one stays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from varscale_analysis.columns import LOSSES, row_numbers

# What a run reached, and the column that promises it.
PROMISES = (("flops_train", "budget_flops"), ("tokens_seen", "budget_tokens"), ("steps_done", "steps"))
SHORTFALL = 0.01
# The states of W&B, and words that people write, as the statuses of the run table.
STATUS_WORDS = {
    "completed": "finished",
    "done": "finished",
    "success": "finished",
    "crashed": "failed",
    "killed": "stopped",
    "preempted": "stopped",
    "preempting": "running",
    "pending": "running",
}


def flagged(
    rows: pd.DataFrame, mapped: Sequence[str], not_finite_n: NDArray[np.bool_]
) -> tuple[pd.DataFrame, list[str]]:
    """The rows with ``status`` and ``exclude_reason`` filled in, and a note on each kind of flag.

    Args:
        rows: typed rows, with run_id, status and exclude_reason.
        mapped: the columns that were given; rows alike in all of them are one run told twice.
        not_finite_n: rows whose loss is NaN or infinity (an empty cell is neither).
    """
    status, reason = (rows[name].to_numpy(dtype=object).copy() for name in ("status", "exclude_reason"))
    notes: list[str] = []

    def usable() -> NDArray[np.bool_]:
        return np.asarray((status == "finished") & (reason == ""))

    def note(which_n: NDArray[np.bool_], text: str) -> None:
        if count := int(which_n.sum()):
            rows_told = "1 row" if count == 1 else f"{count} rows"
            notes.append(f"{rows_told} {text}: {row_numbers(np.flatnonzero(which_n))}")

    diverged_n = usable() & not_finite_n
    status[diverged_n] = "diverged"
    note(diverged_n, "with a loss that is not finite, set to diverged")
    losses = [name for name in LOSSES if name in mapped]
    unmeasured_n = usable() & rows[losses].isna().to_numpy().all(axis=1)
    reason[unmeasured_n] = "no loss"
    note(unmeasured_n, "without a loss, left out")
    for reached, promised in PROMISES:
        if reached in mapped and promised in mapped:
            short_n = usable() & (
                rows[reached].to_numpy(np.float64) < (1 - SHORTFALL) * rows[promised].to_numpy(np.float64)
            )
            status[short_n] = "stopped"
            note(short_n, f"whose {reached} falls short of {promised} by more than {SHORTFALL:.0%}, set to stopped")
    replaced_n = np.zeros(len(rows), dtype=bool)
    for same in _repeated(rows["run_id"].to_numpy(dtype=object)):
        newest = _newest(rows, same, usable())
        for i in same:
            if i != newest:
                reason[i] = reason[i] or f"the same run_id as row {newest}, which is finished or newer"
                replaced_n[i] = True
    note(replaced_n, "with the run_id of another row, left out for the newest finished one")
    twin_n = np.zeros(len(rows), dtype=bool)
    first: dict[tuple[object, ...], int] = {}
    given = rows[list(mapped)].astype(object)
    cells = list(given.where(given.notna(), None).itertuples(index=False, name=None))  # NaN is not equal to itself
    for i in map(int, np.flatnonzero(usable())):
        twin = first.setdefault(cells[i], i)
        if twin != i:
            reason[i] = f"duplicate of row {twin}"
            twin_n[i] = True
    if twin_n.any():
        note(twin_n, "equal to an earlier one in every mapped column, left out as duplicates")
        notes[-1] += "; where they are different runs, map a column that tells them apart, such as seed or run_id"
    return rows.assign(status=status, exclude_reason=reason), notes


def _repeated(ids_n: NDArray[np.object_]) -> list[list[int]]:
    """The rows of each id that stands in several."""
    by_id: dict[object, list[int]] = {}
    for i, name in enumerate(ids_n):
        by_id.setdefault(name, []).append(i)
    return [same for same in by_id.values() if len(same) > 1]


def _newest(rows: pd.DataFrame, same: Sequence[int], usable_n: NDArray[np.bool_]) -> int:
    """Of some rows the finished one that began last; where that is not given, the one furthest on, then the last."""
    created = rows["created_utc"].to_numpy(dtype=str)
    reached = [rows[name].fillna(-np.inf).to_numpy(np.float64) for name in ("steps_done", "tokens_seen", "flops_train")]
    return max(same, key=lambda i: (bool(usable_n[i]), str(created[i]), *(float(column[i]) for column in reached), i))
