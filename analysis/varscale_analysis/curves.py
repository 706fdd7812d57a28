"""Curves: the measurements along every run, from ``curves.csv`` in long form.

Columns: run_id, step, images_seen, tokens_seen, flops, split, metric, scale, value. ``scale`` is empty for metrics over
all tokens and k = 0 .. K-1 for ``nats_per_token`` of one scale. A run that varscale did not write may lack one of the
axes images_seen, tokens_seen and flops altogether.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from varscale_analysis.objective import Floats

CURVE_COLUMNS = ("run_id", "step", "images_seen", "tokens_seen", "flops", "split", "metric", "scale", "value")
_TEXT = ("run_id", "split", "metric")


class CurvesError(ValueError):
    """A file of curves that cannot be read: names the file, what is wrong and the remedy."""


@dataclass(frozen=True, eq=False)
class Curves:
    """All curves of a study: ``rows``, in long form with the columns above."""

    rows: pd.DataFrame

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read ``curves.csv``. Raises ``CurvesError`` for missing columns or cells that are not finite numbers."""
        try:
            raw = pd.read_csv(path, dtype=dict.fromkeys(_TEXT, str))
        except (OSError, ValueError) as error:
            raise CurvesError(f"cannot read {path}: {error}; write it with `varscale collect`") from None
        missing = [name for name in CURVE_COLUMNS if name not in raw]
        if missing:
            raise CurvesError(f"{path} lacks the columns {', '.join(missing)}; write it with `varscale collect`")
        for name in ("step", "images_seen", "tokens_seen", "flops", "value"):
            numbers = pd.to_numeric(raw[name], errors="coerce").to_numpy(dtype=np.float64)
            empty = raw[name].isna().groupby(raw["run_id"]).transform("all").to_numpy(dtype=bool)
            absent = empty & (name in ("images_seen", "tokens_seen", "flops"))
            bad = int((~np.isfinite(numbers) & ~absent).sum())
            if bad:
                raise CurvesError(f"{path}: {name} is not a finite number in {bad} rows; collect the runs again")
            raw[name] = numbers
        raw["scale"] = pd.to_numeric(raw["scale"], errors="coerce").to_numpy(dtype=np.float64)
        return cls(raw)

    def of(self, run_id: str, metric: str, *, split: str = "val", x: str = "flops") -> tuple[Floats, Floats]:
        """x and value along one run, in the order of x, one point for each x (the last one written)."""
        rows = self.rows
        keep = (rows["run_id"] == run_id) & (rows["metric"] == metric) & (rows["split"] == split) & rows["scale"].isna()
        part = rows[keep]
        x_n, first = np.unique(part[x].to_numpy(np.float64)[::-1], return_index=True)
        return x_n, part["value"].to_numpy(np.float64)[::-1][first]

    def per_scale(self, run_ids: Iterable[str], *, split: str = "val") -> dict[str, Floats]:
        """Nats per token of scales 0 .. K-1 at the last measurement of each run; runs without it are left out."""
        rows = self.rows
        part = rows[(rows["metric"] == "nats_per_token") & (rows["split"] == split) & rows["scale"].notna()]
        out: dict[str, Floats] = {}
        for run_id in run_ids:
            run = part[part["run_id"] == run_id]
            if len(run):
                last = run[run["step"] == run["step"].max()].drop_duplicates("scale", keep="last").sort_values("scale")
                out[run_id] = last["value"].to_numpy(np.float64)
        return out
