"""LearningRateScan: the best peak rate of each size, whether worse ones lie on both sides, and how it moves with size.

A law of N takes for granted that no size was held back by its rate. The optimum of a size is the minimum of the
parabola in log rate through the best trained rate and its two neighbours; a best rate without a worse one on a side
is at an edge: the optimum is there or beyond. A diverged run is worse than any loss.

Shapes: R rates of a size, S sizes, B draws.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from varscale_analysis.fit import FitError, Floats
from varscale_analysis.laws.parameter import Parameter
from varscale_analysis.table import RunTable
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the loss of a rate that diverged is None."""
        loss = [float(value) if np.isfinite(value) else None for value in self.loss_R]
        return {**vars(self), "rate_R": self.rate_R.tolist(), "loss_R": loss, "runs_R": self.runs_R.tolist()}


@dataclass(frozen=True, eq=False)
class LearningRateScan:
    """The rates of several sizes at one number of tokens.

    Attributes:
        n, y: convention of N and the loss.
        profiles: one a size, ascending.
        noise: standard deviation of the loss of one run, from seeds; None without repeated seeds.
        exponent: of the best rate against N, by the interior sizes; None with fewer than two of them. Its interval
            needs repeated seeds.
        coefficient: the best rate at N = 1 of that line; None without one.
    """

    n: str
    y: str
    profiles: tuple[RateProfile, ...]
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
        """Read the scan of a table: finished runs of one number of tokens, and the diverged ones.

        Args:
            bootstrap: redraws of every loss with the noise of the seeds, each with new optima and a new line.

        Raises ``FitError`` without rates, or where no size was trained at two of them; ``RunTableError`` for runs that
        are not comparable or of several numbers of tokens.
        """
        runs = table.comparable(fixed_tokens=True)
        rate_n, n_n, y_n = rates(runs), runs.values(n), runs.values(y)
        diverged = table.where(_diverged(table))
        lost_rate, lost_n = rates(diverged), diverged.values(n) if len(diverged) else np.empty(0)
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
        scan = cls(n, y, tuple(profiles), noise, None, None)
        return scan._with_line(bootstrap, np.random.default_rng([seed, 5]))

    @property
    def at_edge(self) -> tuple[RateProfile, ...]:
        """The sizes whose best rate has no worse one on one side."""
        return tuple(profile for profile in self.profiles if profile.edge is not None)

    def predict(self, n: float) -> float:
        """The best rate at size ``n`` by the line. Raises ``FitError`` without one."""
        if self.exponent is None or self.coefficient is None:
            raise FitError("no line of the best rate: fewer than two sizes have an interior optimum; widen the rates")
        return float(self.coefficient * n**self.exponent.value)

    def at_best(self, table: RunTable) -> RunTable:
        """The table with the usable runs of other rates than the best trained one of their size left out of fits."""
        best = {profile.n: profile.best_trained for profile in self.profiles}
        reason = table.rows["exclude_reason"].to_numpy(dtype=object).copy()
        usable = table.rows.index.isin(table.usable.index)
        columns = table.rows[self.n].to_numpy(np.float64), rates(table)
        for i, (size, rate) in enumerate(zip(*columns, strict=True)):
            if usable[i] and best.get(size, rate) != rate:
                reason[i] = f"{RATE} {rate:.4g}, the best of its size is {best[size]:.4g}"
        return replace(table, rows=table.rows.assign(exclude_reason=reason))

    def summary(self) -> str:
        """One line a size, sizes at an edge marked, and the line through the interior optima."""
        lines = [f"learning rates of {len(self.profiles)} sizes, {len(self.at_edge)} with the best rate at an edge"]
        for p in self.profiles:
            text = (
                f"{p.n:>16,.0f}  best {p.best:.3g}, {len(p.rate_R)} rates from {p.rate_R[0]:.3g} to {p.rate_R[-1]:.3g}"
            )
            if p.edge is not None:
                text += f"  AT THE EDGE ({p.edge} rate)"
            elif p.doubled is not None:
                text += f"  half or twice costs {p.doubled:.3g}"
            lines.append(text)
        if self.exponent is not None:
            lines.append(f"best rate ~ N^a, {self.exponent}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        exponent = None if self.exponent is None else vars(self.exponent)
        return {**vars(self), "profiles": [profile.to_dict() for profile in self.profiles], "exponent": exponent}

    def _with_line(self, bootstrap: int, rng: np.random.Generator) -> LearningRateScan:
        interior = [profile for profile in self.profiles if profile.edge is None]
        if len(interior) < 2:
            return self
        x_S = np.log([profile.n for profile in interior])
        z_S = np.log([profile.best for profile in interior])
        centre = float(x_S.mean())
        value, slope, good = line((x_S - centre)[None], z_S[None], np.ones((1, len(x_S))))
        if not good[0]:
            return self
        drawn_B = np.empty(0)
        if self.noise is not None:
            z_BS = np.stack([_drawn(profile, self.noise, bootstrap, rng) for profile in interior], axis=1)
            there = np.isfinite(z_BS)
            x_BS = np.broadcast_to(x_S - centre, z_BS.shape)
            _, slope_B, good_B = line(x_BS, np.where(there, z_BS, 0.0), there.astype(np.float64))
            drawn_B = slope_B[good_B]
        ends = Estimate.of(float(slope[0]), drawn_B)
        exponent = Parameter("exponent of the best rate", float(slope[0]), "1", ends.low, ends.high)
        return replace(self, exponent=exponent, coefficient=float(np.exp(value[0] - slope[0] * centre)))


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
    rate_n = pd.to_numeric(table.rows[RATE], errors="coerce").to_numpy(np.float64)
    if not (rate_n > 0).all():
        raise FitError(f"{RATE} is not a positive number in {int((~(rate_n > 0)).sum())} rows; leave these rows out")
    return np.array([float(f"{rate:.{_DIGITS}g}") for rate in rate_n], dtype=np.float64)


def several_rates(table: RunTable, n: str) -> bool:
    """Whether some size of the usable runs was trained at several rates."""
    try:
        rate_n = rates(RunTable(table.usable))
    except FitError:
        return False
    return bool((pd.Series(rate_n).groupby(table.usable[n].to_numpy()).nunique() > 1).any())


def _diverged(table: RunTable) -> NDArray[np.bool_]:
    return np.asarray(table.rows["status"].to_numpy(dtype=str) == "diverged")


def _drawn(profile: RateProfile, noise: float, draws: int, rng: np.random.Generator) -> Floats:
    """log of the best rate (B,) with every loss redrawn; NaN where the best is at an edge."""
    x_R = np.log(profile.rate_R)
    loss_BR = profile.loss_R + noise / np.sqrt(profile.runs_R) * rng.standard_normal((draws, len(x_R)))
    out = np.full(draws, np.nan)
    for b, loss_R in enumerate(loss_BR):
        if 0 < np.argmin(loss_R) < len(x_R) - 1:
            out[b], _ = vertex(x_R, loss_R)
    return out
