"""LearningRateScan: the best peak rate of each size, whether worse ones lie on both sides, and how it moves with size.

A law of N takes for granted that no size was held back by its rate. The optimum of a size is the minimum of the
parabola in log rate through the best trained rate and its two neighbours; a best rate without a worse one on a side
is at an edge: the optimum is there or beyond. A diverged run is worse than any loss.

Shapes: R rates of a size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from varscale_analysis.fit import FitError, Floats
from varscale_analysis.laws.parameter import Parameter
from varscale_analysis.optima import Optimum, fit_optima
from varscale_analysis.table import TOKENS_TOLERANCE, RunTable
from varscale_analysis.trend import Estimate, line

RATE = "lr_peak"
_DIGITS = 9  # rates that agree to so many are one

Edge = Literal["lowest", "highest", "only"]


@dataclass(frozen=True, eq=False)
class RateProfile:
    """The losses of one size at its rates.

    Attributes:
        n: the size.
        rate_R, loss_R, runs_R: the peak rates, ascending; their mean loss over seeds, infinite where every run
            diverged; the runs of each.
        best: the optimum; the best trained rate where it is at an edge or has a diverged neighbour.
        loss: loss of the best trained rate.
        edge: "lowest" or "highest" where the best trained rate is that, "only" with one rate; None where interior.
        doubled: what half or twice the best rate costs, by the parabola, in the unit of the loss; None without one.
    """

    n: float
    rate_R: Floats
    loss_R: Floats
    runs_R: Floats
    best: float
    loss: float
    edge: Edge | None
    doubled: float | None

    @classmethod
    def of(cls, n: float, rate_R: Floats, loss_R: Floats, runs_R: Floats) -> RateProfile:
        """Find the optimum."""
        i = int(np.argmin(loss_R))
        edge: Edge | None = None
        if len(rate_R) == 1:
            edge = "only"
        elif i in (0, len(rate_R) - 1):
            edge = "lowest" if i == 0 else "highest"
        best, curvature = float(rate_R[i]), None
        if edge is None:
            log_best, curvature = vertex(np.log(rate_R), loss_R)
            best = best if curvature is None else float(np.exp(log_best))
        doubled = None if curvature is None else curvature * float(np.log(2)) ** 2
        return cls(n, rate_R, loss_R, runs_R, best, float(loss_R[i]), edge, doubled)

    @property
    def best_trained(self) -> float:
        """The trained rate with the lowest loss."""
        return float(self.rate_R[np.argmin(self.loss_R)])

    @property
    def spacing(self) -> float:
        """Half the distance between the neighbours of an interior best rate, in log rate."""
        i = int(np.argmin(self.loss_R))
        return float(np.log(self.rate_R[i + 1] / self.rate_R[i - 1])) / 2

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the loss of a rate that diverged is None."""
        loss = [float(value) if np.isfinite(value) else None for value in self.loss_R]
        return {**vars(self), "rate_R": self.rate_R.tolist(), "loss_R": loss, "runs_R": self.runs_R.tolist()}


@dataclass(frozen=True, eq=False)
class LearningRateScan:
    """The rates of several sizes at one number of tokens.

    Attributes:
        n, y: convention of N and the loss. ``at``: the number of tokens in words.
        profiles: one a size, ascending.
        lost: the sizes of which every run diverged.
        noise: standard deviation of the loss of one run, from seeds; None without repeated seeds.
        exponent: of the best rate against N, by the interior sizes; None with fewer than two of them. Its interval is
            from their scatter about the line, which holds the seeds' noise: Student's t, from three sizes on.
        coefficient: the best rate at N = 1 of that line; None without one.
    """

    n: str
    y: str
    at: str
    profiles: tuple[RateProfile, ...]
    lost: tuple[float, ...]
    noise: float | None
    exponent: Parameter | None
    coefficient: float | None

    @classmethod
    def from_table(
        cls,
        table: RunTable,
        *,
        n: str = "params_nonembed",
        y: str = "val_nats_per_token_avg",
        bootstrap: int = 1000,
        seed: int = 0,
    ) -> LearningRateScan:
        """Read the scan of a table: finished runs of one number of tokens, and the diverged ones that belong to them.

        Args:
            bootstrap: redraws of the best rates behind the interval of their exponent.

        Raises ``FitError`` without rates, or where no size was trained at two of them; ``RunTableError`` for runs that
        are not comparable or of several numbers of tokens.
        """
        runs = table.comparable(fixed_tokens=True)
        rate_n, n_n, y_n = rates(runs), runs.values(n), runs.values(y)
        diverged = _diverged_beside(table, runs)
        lost_rate, lost_n = rates(diverged), diverged.values(n)
        profiles, squares, freedom = [], 0.0, 0
        for size in np.unique(n_n):
            mine = n_n == size
            rate_R, place = np.unique(rate_n[mine], return_inverse=True)
            runs_R = np.bincount(place).astype(np.float64)
            loss_R = np.bincount(place, y_n[mine]) / runs_R
            squares += float(((y_n[mine] - loss_R[place]) ** 2).sum())
            freedom += int(mine.sum()) - len(rate_R)
            lost_R = np.setdiff1d(lost_rate[lost_n == size], rate_R)
            order = np.argsort(np.concatenate([rate_R, lost_R]))
            rate_R = np.concatenate([rate_R, lost_R])[order]
            loss_R = np.concatenate([loss_R, np.full(len(lost_R), np.inf)])[order]
            runs_R = np.concatenate([runs_R, np.ones(len(lost_R))])[order]
            profiles.append(RateProfile.of(float(size), rate_R, loss_R, runs_R))
        if max(len(profile.rate_R) for profile in profiles) < 2:
            raise FitError(
                "every size was trained at one peak rate; train it at others, such as sweeps/lr_by_size.yaml"
            )
        noise = float(np.sqrt(squares / freedom)) if freedom else None
        lost = tuple(map(float, np.setdiff1d(lost_n, n_n)))
        exponent, coefficient = _line(profiles, bootstrap, seed)
        return cls(n, y, runs.at_tokens, tuple(profiles), lost, noise, exponent, coefficient)

    @property
    def at_edge(self) -> tuple[RateProfile, ...]:
        """The sizes whose best rate has no worse one on one side."""
        return tuple(profile for profile in self.profiles if profile.edge is not None)

    @property
    def chosen(self) -> tuple[dict[float, float], str]:
        """The rate of each size whose runs enter fits, and why it is that.

        The best trained one where every size was trained at several. Where some were trained at one only, their best is
        not known, and a size tuned better than the others would bend a law: the one rate that all sizes have. Raises
        ``FitError`` where there is no such rate.
        """
        only = [profile for profile in self.profiles if profile.edge == "only"]
        if not only:
            return {profile.n: profile.best_trained for profile in self.profiles}, "the best of its size"
        shared = set.intersection(*(set(profile.rate_R[np.isfinite(profile.loss_R)]) for profile in self.profiles))
        if not shared:
            raise FitError(
                f"{len(only)} of {len(self.profiles)} sizes were trained at one {RATE} only and the others at several, "
                f"none of which all have ({self.at}); train every size at several, or select the runs of one rate a "
                "size, such as design=..."
            )
        return {profile.n: float(min(shared)) for profile in self.profiles}, "the one that all sizes have"

    def predict(self, n: float) -> float:
        """The best rate at size ``n`` by the line. Raises ``FitError`` without one."""
        if self.exponent is None or self.coefficient is None:
            raise FitError("no line of the best rate: fewer than two sizes have an interior optimum; widen the rates")
        return float(self.coefficient * n**self.exponent.value)

    def summary(self) -> str:
        """One line a size, sizes at an edge or without a run left marked, and the line through the interior optima."""
        lines = [
            f"learning rates of {len(self.profiles)} sizes {self.at}, {len(self.at_edge)} with the best rate at an edge"
        ]
        for p in self.profiles:
            text = (
                f"{p.n:>16,.0f}  best {p.best:.3g}, {len(p.rate_R)} rates from {p.rate_R[0]:.3g} to {p.rate_R[-1]:.3g}"
            )
            if p.edge is not None:
                text += f"  AT THE EDGE ({p.edge} rate)"
            elif p.doubled is not None:
                text += f"  half or twice costs {p.doubled:.3g}"
            lines.append(text)
        lines += [f"{size:>16,.0f}  EVERY RATE DIVERGED" for size in self.lost]
        if self.exponent is not None:
            lines.append(f"best rate ~ N^a, {self.exponent}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        exponent = None if self.exponent is None else vars(self.exponent)
        return {**vars(self), "profiles": [profile.to_dict() for profile in self.profiles], "exponent": exponent}


def one_rate_a_size(
    table: RunTable,
    *,
    n: str = "params_nonembed",
    y: str = "val_nats_per_token_avg",
    bootstrap: int = 0,
    seed: int = 0,
) -> tuple[RunTable, tuple[LearningRateScan, ...]]:
    """The table with the usable runs of all but one rate of each size and number of tokens left out of fits.

    Each number of tokens at which a size has several rates is scanned by itself, because the best rate moves with it;
    the scans come in ascending order of it, none where every size has one rate. ``bootstrap`` and ``seed`` are of
    ``LearningRateScan.from_table``. Raises as it does, and as ``LearningRateScan.chosen``.
    """
    if not several_rates(table, n):
        return table, ()
    horizon = _horizons(table)
    rate_n, size_n = np.full(len(table), np.nan), table.rows[n].to_numpy(np.float64)
    rate_n[horizon >= 0] = rates(RunTable(table.usable))
    reason = table.rows["exclude_reason"].to_numpy(dtype=object).copy()
    scans = []
    for members in (horizon == i for i in range(int(horizon.max()) + 1)):
        # Diverged runs stopped at other numbers of tokens: the scan tells which of them belong to its runs.
        part = table.where(members | (horizon < 0))
        if not several_rates(part, n):
            continue
        scan = LearningRateScan.from_table(part, n=n, y=y, bootstrap=bootstrap, seed=seed)
        best, why = scan.chosen
        for i in np.flatnonzero(members):
            if rate_n[i] != best[size_n[i]]:
                reason[i] = f"{RATE} {rate_n[i]:.4g}, {why} is {best[size_n[i]]:.4g}"
        scans.append(scan)
    return replace(table, rows=table.rows.assign(exclude_reason=reason)), tuple(scans)


def vertex(x_R: Floats, y_R: Floats) -> tuple[float, float | None]:
    """The minimum of the parabola through the lowest of ``y_R`` and its neighbours, and y = min + c (x - min)^2's c.

    The lowest must be interior. Where a neighbour is infinite the lowest stands, without c.
    """
    i = int(np.argmin(y_R))
    x, y = x_R[i - 1 : i + 2], y_R[i - 1 : i + 2]
    if not np.isfinite(y).all():
        return float(x[1]), None
    before, after = np.diff(y) / np.diff(x)
    curvature = (after - before) / (x[2] - x[0])
    if curvature <= 0:  # three equal losses
        return float(x[1]), None
    return float((x[0] + x[1]) / 2 - before / (2 * curvature)), float(curvature)


def rates(table: RunTable) -> Floats:
    """The peak rate of each row, those that differ by rounding made equal. Raises ``FitError`` where one is missing."""
    if RATE not in table.rows:
        raise FitError(f"the table has no column {RATE}; name it in the map of columns")
    rate_n = table.rows[RATE].to_numpy(np.float64)
    if not (rate_n > 0).all():
        raise FitError(f"{RATE} is not a positive number in {int((~(rate_n > 0)).sum())} rows; leave these rows out")
    return np.array([float(f"{rate:.{_DIGITS}g}") for rate in rate_n], dtype=np.float64)


def several_rates(table: RunTable, n: str) -> bool:
    """Whether some size of the usable runs of one number of tokens was trained at several rates."""
    try:
        rate_n = rates(RunTable(table.usable))
    except FitError:
        return False
    horizon = _horizons(table)
    keys = [horizon[horizon >= 0], table.usable[n].to_numpy()]
    return bool((pd.Series(rate_n).groupby(keys).nunique() > 1).any())


def _horizons(table: RunTable) -> NDArray[np.int64]:
    """Index (rows,) of the number of tokens of each usable run, ascending; -1 for the others."""
    usable = table.rows.index.isin(table.usable.index)
    tokens = np.full(len(table), np.nan)
    if table.has("tokens_seen"):
        tokens = table.rows["tokens_seen"].to_numpy(np.float64)
    tokens = np.where(usable, np.nan_to_num(tokens, nan=1.0), np.inf)
    order = np.argsort(tokens, kind="stable")
    steps = tokens[order][1:] > tokens[order][:-1] * (1 + TOKENS_TOLERANCE)
    index = np.empty(len(table), dtype=np.int64)
    index[order] = np.concatenate([[0], np.cumsum(steps)])
    return np.where(usable, index, -1)


def _diverged_beside(table: RunTable, runs: RunTable) -> RunTable:
    """The diverged rows that are runs of the same scan: with a rate, not excluded, on the same data, as many steps."""
    keep = (table.rows["status"] == "diverged") & (table.rows["exclude_reason"] == "") & (table.rows[RATE] > 0)
    names = ["tokenizer_id", "dataset_id", *(["steps"] if runs.has("steps") else [])]
    for name in names:
        keep &= table.rows[name].isin(runs.rows[name])
    return table.where(keep.to_numpy(dtype=bool))


def _line(profiles: Sequence[RateProfile], bootstrap: int, seed: int) -> tuple[Parameter | None, float | None]:
    """Exponent and coefficient of the best rate against N; None with fewer than two interior optima.

    The noise of an optimum is taken from the scatter about the line, which holds more than the noise of the losses. One
    without a parabola is known to the spacing of the rates only, and is drawn over it, evenly.
    """
    interior = [profile for profile in profiles if profile.edge is None]
    optima = [Optimum(profile.n, profile.best, None, None) for profile in interior]
    if len(optima) < 2:
        return None, None
    rng = np.random.default_rng([seed, 5])
    trend = fit_optima(optima, np.empty((0, len(optima), 3)), bootstrap=bootstrap, rng=rng).n_opt
    if trend is None:
        return None, None
    width_S = np.array([0.0 if profile.doubled is not None else profile.spacing for profile in interior])
    moved_BS = width_S * rng.uniform(-0.5, 0.5, (len(trend.draws), len(optima)))
    x_BS = np.broadcast_to(np.log([profile.n for profile in interior]), moved_BS.shape)
    ends = Estimate.of(trend.exponent, trend.draws[:, 2] + line(x_BS, moved_BS, np.ones_like(moved_BS))[1])
    return Parameter("exponent of the best rate", ends.value, "1", ends.low, ends.high), trend.coefficient
