"""The ladder of a study: what was measured at each size, over its seeds, and scale by scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from varscale_analysis.table import SIZES, TOKENS_TOLERANCE, RunTable

LOSSES = ("val_nats_per_token_avg", "val_nats_per_token_last")
_MEASURES = ("flops_train", "wall_s", *LOSSES, "val_error_avg", "val_error_last")


@dataclass(frozen=True)
class SizeRow:
    """One size of the ladder, at one number of tokens: seed means, and the seeds' spread (None for a single seed).

    Attributes:
        n: the size, in the convention of the study; ``params`` in every convention that the table has.
        tokens: training tokens, the seeds' mean; None where they are not given.
        depth, width: of the model; None where they are not given.
        seeds: runs.
        means, spreads: by column name, in the column's unit; None where the column is empty in some run. A spread is
            the sample standard deviation over seeds.
    """

    n: float
    tokens: float | None
    params: Mapping[str, float]
    depth: float | None
    width: float | None
    seeds: int
    means: Mapping[str, float | None]
    spreads: Mapping[str, float | None]


def ladder_of(table: RunTable, n: str, y: str) -> tuple[SizeRow, ...]:
    """The sizes of a table, ascending, and each by its tokens where runs of one study differ in them; ``y`` a loss."""
    size_n, out = table.values(n), []
    tokens_n = table.values("tokens_seen") if table.has("tokens_seen") else np.full(len(table), np.nan)
    one_d = not tokens_n.max() > tokens_n.min() * (1 + TOKENS_TOLERANCE)
    for size in np.unique(size_n):
        of_size = size_n == size
        for tokens in [np.nan] if one_d else np.unique(tokens_n[of_size]):
            keep = of_size if one_d else of_size & (tokens_n == tokens)
            rows = table.rows[keep]

            def mean(name: str, part: Any = rows) -> float | None:
                values = part[name].to_numpy(np.float64)
                return None if np.isnan(values).any() else float(values.mean())

            names = [name for name in dict.fromkeys((*_MEASURES, y)) if name in rows]
            means = {name: mean(name) for name in names}
            spreads = {
                name: float(rows[name].to_numpy(np.float64).std(ddof=1))
                if len(rows) > 1 and means[name] is not None
                else None
                for name in names
            }
            params = {name: value for name in SIZES if name in rows and (value := mean(name)) is not None}
            out.append(
                SizeRow(
                    n=float(size),
                    tokens=mean("tokens_seen"),
                    params=params,
                    depth=mean("depth"),
                    width=mean("width"),
                    seeds=len(rows),
                    means=means,
                    spreads=spreads,
                )
            )
    return tuple(out)


def per_scale_of(table: RunTable, n: str) -> dict[float, tuple[float, ...]]:
    """Seed mean of the nats per token of each scale, by size; a size without them in every run is left out."""
    if table.curves is None:
        return {}
    of_run = table.curves.per_scale(map(str, table.rows["run_id"]))
    by_size: dict[float, list[np.ndarray[Any, Any]]] = {}
    for run, size in zip(table.rows["run_id"], table.values(n), strict=True):
        if str(run) in of_run:
            by_size.setdefault(float(size), []).append(of_run[str(run)])
    return {size: tuple(np.mean(by_size[size], axis=0).tolist()) for size in sorted(by_size)}


def ladder_table(sizes: tuple[SizeRow, ...], n: str, y: str, most: int = 24) -> list[str]:
    """The ladder as lines of text, at most ``most`` sizes of it; columns that no size has are left out."""
    losses = [name for name in LOSSES if any(row.means.get(name) is not None for row in sizes)]
    losses = losses if y in (*losses, "val_error_avg") else [y, *losses]
    heads = dict(zip(LOSSES, ("L_avg nat/token", "L_last nat/token"), strict=True))
    several_d = of_several_tokens(sizes)
    errors = any(row.means.get("val_error_avg") is not None for row in sizes)
    head = f"{n:>16}  " + (f"{'tokens':>9}  " if several_d else "") + f"{'FLOP':>9}  seeds  "
    lines = [head + "  ".join(f"{heads.get(name, name):>17}" for name in losses) + ("   error" if errors else "")]
    for row in sizes[:most]:
        flops, error = row.means["flops_train"], row.means["val_error_avg"]
        cells = [f"{row.n:>16,.0f}"] + ([_number(row.tokens, "9.3g")] if several_d else [])
        cells += [_number(flops, "9.3g"), f"{row.seeds:>5}"]
        for name in losses:
            mean, spread = row.means[name], row.spreads[name]
            text = "-" if mean is None else f"{mean:.4f}" + (f" +- {spread:.4f}" if spread is not None else " " * 10)
            cells.append(f"{text:>17}")
        lines.append("  ".join([*cells, *([_number(error, "6.4f")] if errors else [])]).rstrip())
    if len(sizes) > most:
        lines.append(f"{'...':>16}  {len(sizes) - most} more rows")
    return lines


def of_several_tokens(sizes: tuple[SizeRow, ...]) -> bool:
    """Whether the rows differ in their training tokens."""
    tokens = [row.tokens for row in sizes if row.tokens is not None]
    return bool(tokens) and max(tokens) > min(tokens) * (1 + TOKENS_TOLERANCE)


def _number(value: float | None, form: str) -> str:
    return f"{'-':>{form.split('.')[0]}}" if value is None else f"{value:>{form}}"
