"""CurveSet: training curves of several sizes, from a run table or from any long table of measurements.

Shapes: R runs, n measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from varscale_analysis.fit import FitError, Floats
from varscale_analysis.parametric import check_units
from varscale_analysis.table import RunTable

DROPPED = 0.1  # of each curve, by compute: warm-up is no frontier
CURVE_METRICS = {
    "val_nats_per_token_avg": "nats_per_token_avg",
    "val_nats_per_token_last": "nats_per_token_last",
    "val_error_avg": "error_avg",
    "val_error_last": "error_last",
}


@dataclass(frozen=True, eq=False)
class CurveSet:
    """Training curves of several sizes.

    Attributes:
        size_R: N of each run.
        flops_R, loss_R: compute (ascending, FLOP) and loss along each run, what was dropped left out.
        tokens_per_flop_R: training tokens a FLOP of each run; None where tokens are not given.
        smoothing: factor of compute over which the losses were smoothed; None: they are as measured.
    """

    size_R: Floats
    flops_R: tuple[Floats, ...]
    loss_R: tuple[Floats, ...]
    tokens_per_flop_R: Floats | None
    smoothing: float | None = None

    @classmethod
    def from_table(cls, table: RunTable, n: str, y: str) -> CurveSet:
        """The curves of the runs of a table. Raises ``FitError`` without curves of ``y``."""
        curves = [run_curve(table, str(run), y) for run in table.rows["run_id"]]
        per_flop = table.values("tokens_seen") / table.values("flops_train") if table.has("tokens_seen") else None
        return cls._checked(table.values(n), curves, per_flop)

    @classmethod
    def from_frame(
        cls, frame: pd.DataFrame, *, run: str, flops: str, n: str, y: str, d: str | None = None, drop: float = DROPPED
    ) -> CurveSet:
        """From a long table, one row a measurement: columns of the run, its compute so far, N, loss and tokens so far.

        The first ``drop`` of each run's compute is left out. Raises ``FitError`` for missing columns, values that are
        not positive numbers, and a run with two sizes.
        """
        names = [name for name in (run, flops, n, y, d) if name is not None]
        missing = [name for name in names if name not in frame]
        if missing:
            raise FitError(f"the curves lack the columns {', '.join(missing)}; they have {', '.join(map(str, frame))}")
        numbers = frame[names[1:]].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
        bad = ~(np.isfinite(numbers) & (numbers > 0))
        if bad.any():
            name = names[1:][int(np.flatnonzero(bad.any(0))[0])]
            raise FitError(
                f"{name} is not a positive number in {int(bad.any(1).sum())} rows of the curves; leave these rows out, "
                "and a diverged run altogether"
            )
        curves, sizes, per_flop = [], [], []
        runs = frame[run].to_numpy()
        for name in pd.unique(runs):
            rows = numbers[runs == name]
            if np.ptp(rows[:, 1]) > 0:
                raise FitError(f"run {name} has sizes {rows[:, 1].min():g} and {rows[:, 1].max():g}; give a run one N")
            c_n, first = np.unique(rows[::-1, 0], return_index=True)
            keep = c_n >= drop * c_n[-1]
            curves.append((c_n[keep], rows[::-1, 2][first][keep]))
            sizes.append(rows[0, 1])
            per_flop.append(rows[np.argmax(rows[:, 0]), 3] / rows[:, 0].max() if d is not None else np.nan)
        return cls._checked(np.array(sizes), curves, None if d is None else np.array(per_flop))

    def smoothed(self, factor: float) -> CurveSet:
        """The curves with every loss replaced by a local line through its neighbours, against log compute.

        Args:
            factor: width of the window: measurements from C / sqrt(factor) to C sqrt(factor) count alike.

        A line, not a mean, because a mean lags at the ends of a falling curve, where the envelope is read. Windows with
        fewer than 3 measurements stay as measured. Raises ``FitError`` for a factor that is not above 1, and for curves
        that are smoothed already.
        """
        if not (np.isfinite(factor) and factor > 1):
            raise FitError(f"the window of smoothing is a factor of compute above 1, such as 1.2; got {factor:g}")
        if self.smoothing is not None:
            raise FitError(
                f"the curves are smoothed already, over a factor {self.smoothing:g}; smooth the measured ones"
            )
        pairs = zip(self.flops_R, self.loss_R, strict=True)
        loss_R = tuple(_local_lines(np.log(c_n), y_n, float(np.log(factor)) / 2) for c_n, y_n in pairs)
        return replace(self, loss_R=loss_R, smoothing=factor)

    @classmethod
    def _checked(cls, size_R: Floats, curves: Sequence[tuple[Floats, Floats]], per_flop_R: Floats | None) -> CurveSet:
        enough = np.array([len(c_n) >= 2 and c_n[0] > 0 for c_n, _ in curves], dtype=bool)
        sizes = len(np.unique(size_R[enough]))
        if sizes < 2:
            raise FitError(
                f"a frontier needs curves of 2 sizes, there are {sizes}; validate more often than once a run"
            )
        if per_flop_R is not None:
            c_R = np.array([c_n[-1] for (c_n, _), good in zip(curves, enough, strict=True) if good])
            check_units(c_R, size_R[enough], c_R * per_flop_R[enough])
        kept = [pair for pair, good in zip(curves, enough, strict=True) if good]
        return cls(
            size_R[enough],
            tuple(c_n for c_n, _ in kept),
            tuple(y_n for _, y_n in kept),
            None if per_flop_R is None else per_flop_R[enough],
        )


def run_curve(table: RunTable, run_id: str, y: str) -> tuple[Floats, Floats]:
    """Compute (FLOP) and loss along one run, without the first 10 % of its compute."""
    if table.curves is None:
        raise FitError("there are no curves: put curves.csv beside runs.csv (`varscale collect` writes both)")
    if y not in CURVE_METRICS:
        raise FitError(f"{y} has no curve; choose one of {', '.join(CURVE_METRICS)}")
    c_n, y_n = table.curves.of(run_id, CURVE_METRICS[y])
    if np.isnan(c_n).any():
        raise FitError(
            f"the curve of run {run_id} has no flops; collect them, or give the curves by CurveSet.from_frame"
        )
    keep = c_n >= DROPPED * c_n.max() if len(c_n) else np.zeros(0, dtype=bool)
    return c_n[keep], y_n[keep]


def _local_lines(x_n: Floats, y_n: Floats, half: float) -> Floats:
    """The value at each x of the least-squares line through the points within ``half`` of it; x ascends."""
    low, high = np.searchsorted(x_n, x_n - half, "left"), np.searchsorted(x_n, x_n + half, "right")
    out = y_n.copy()
    for i in np.flatnonzero(high - low >= 3):
        x, y = x_n[low[i] : high[i]] - x_n[i], y_n[low[i] : high[i]]
        slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
        out[i] = y.mean() - slope * x.mean()
    return out
