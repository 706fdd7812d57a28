"""Rolling hold-out: a law is fitted to the smallest sizes, predicts the next ones, and its intervals are scored.

For k = first, first + 1, ... the law sees the k smallest sizes only. Scored are the error, whether the measurement lies
in the prediction interval, and the log score: the log of the predictive density at what was measured. That density is
the one behind the interval, the mean over the fit's draws b of N(log f_b(x), s_b^2) with the noise s_b of each draw
(where a fit has no noise model, the residuals' spread inflated by sqrt(n / (n - P))). It is always a density of log
loss, so that laws fitted to loss and to log loss are on one scale. A law can be right and too wide, or sharp and wrong;
the log score charges for both (Gneiting and Raftery, 2007).

Beside it stands the naive rule, that the next size has the loss of the one before. Its density is Student's t, as wide
as the steps of log loss seen so far: a random walk without drift.

Shapes: n points, B draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import gammaln

from varscale_analysis.fit import FitError, Floats
from varscale_analysis.holdout_scores import RollingComparison, RollingHoldout, RollingRow
from varscale_analysis.laws.law import Intervals, Law
from varscale_analysis.laws.result import LawFit
from varscale_analysis.points import Data, Points
from varscale_analysis.solver import ROUNDING
from varscale_analysis.table import LEVEL, RunTable

ALIKE = 0.01  # values of the ordering column this close are one size


def rolling_holdout(
    data: Data,
    law: Law,
    y: str = "val_nats_per_token_avg",
    *,
    by: str | None = None,
    first: int = 4,
    horizon: int = 1,
    level: float = LEVEL,
    intervals: Intervals | None = None,
    groups: str | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> RollingHoldout:
    """Fit ``law`` to the k smallest sizes and predict the next ``horizon`` ones, for every k from ``first``.

    Args:
        data: as for ``Law.fit``; ``y`` the fitted column.
        by: what orders the sizes: a role of the law such as "n" or "d", or a column such as "flops_train"; by default
            the law's first column. Values within 1 % are one size.
        first: sizes in the first fit. ``level``: of the prediction intervals.
        intervals, groups, bootstrap, seed: as for ``Law.fit``.

    A fit that is refused is a row with its reason. Raises ``FitError`` for fewer than ``first`` + 1 sizes or a column
    that is not there, ``RunTableError`` for rows that must not be mixed, ``ValueError`` for a ``first`` below 2.
    """
    if first < 2 or horizon < 1:
        raise ValueError(f"first={first} must be at least 2 sizes, and horizon={horizon} at least 1")
    rows = _Rows.of(data, law, y)
    name = law.roles.get(by, by) if by is not None else next(iter(law.roles.values()))
    level_n, value = _sizes(rows.column(name))
    if len(value) <= first:
        raise FitError(
            f"{name} has {len(value)} sizes; a rolling hold-out from {first} needs at least {first + 1}: measure more, "
            "or lower first"
        )
    # What was measured at each size: one target a design, the mean of its seeds.
    targets = [_designs(law.read(rows.where(level_n == i), y)) for i in range(len(value))]
    out = []
    for k in range(first, len(value)):
        fit, refused = None, None
        used = rows.where(level_n < k)
        try:
            fit = law.fit(used, y, bootstrap=bootstrap, intervals=intervals, groups=groups, seed=seed)
        except FitError as error:
            refused = str(error)
        naive = _Naive.of(targets[:k])
        for ahead in range(1, min(horizon, len(value) - k) + 1):
            for target in targets[k + ahead - 1]:
                row = naive.row(law, k, len(used), ahead, float(value[k + ahead - 1]), target, refused)
                out.append(row if fit is None else _scored(row, fit, target, level))
    unit = law.read(rows.where(level_n == 0), y).y_unit
    return RollingHoldout(law.name, law.formula, y, unit, name, level, tuple(out))


def compare_rolling(
    data: Data,
    laws: Mapping[str, Law],
    y: str = "val_nats_per_token_avg",
    *,
    by: str | None = None,
    first: int = 4,
    horizon: int = 1,
    bootstrap: int = 1000,
    seed: int = 0,
) -> RollingComparison:
    """The rolling hold-out of several ``laws`` of the same columns, compared on the targets that all of them predict.

    ``data``, ``y``, ``by``, ``first``, ``horizon``, ``bootstrap`` and ``seed`` are as for ``rolling_holdout``. Raises
    ``FitError`` when there is no such target, otherwise as ``rolling_holdout``.
    """
    results = {
        name: rolling_holdout(data, law, y, by=by, first=first, horizon=horizon, bootstrap=bootstrap, seed=seed)
        for name, law in laws.items()
    }
    shared = set.intersection(*({row.question for row in result.scored} for result in results.values()))
    if not shared:
        counts = ", ".join(f"{name} {len(result.scored)}" for name, result in results.items())
        raise FitError(
            f"no target is predicted by every law (targets predicted: {counts}); give laws of the same columns, or "
            "raise first so that the largest law can be fitted"
        )
    return RollingComparison(results, len(shared))


@dataclass(frozen=True, eq=False)
class _Rows:
    """The data by row, whichever way it was given."""

    rows: RunTable | pd.DataFrame

    @classmethod
    def of(cls, data: Data, law: Law, y: str) -> Self:
        if isinstance(data, RunTable):
            return cls(data.comparable(fixed_tokens=law.fixed_tokens))
        if isinstance(data, tuple):
            names = [*law.roles.values(), y, *([law.criterion.weights] if law.criterion.weights else [])]
            if len(data) != len(names):
                raise FitError(f"{len(data)} arrays given, {len(names)} needed: {', '.join(names)}, in this order")
            data = {**dict(zip(names, data, strict=True)), "row": np.arange(len(np.ravel(data[0])))}
        frame = data if isinstance(data, pd.DataFrame) else pd.DataFrame(dict(data))
        law.read(frame, y)  # whatever is wrong with the whole is said once, before anything is fitted
        return cls(frame)

    def column(self, name: str) -> Floats:
        if isinstance(self.rows, RunTable):
            values = self.rows.values(name)
        elif name not in self.rows:
            there = ", ".join(map(str, self.rows))
            raise FitError(f"there is no column {name!r} to order the sizes by; name one of {there}")
        else:
            try:
                values = np.asarray(self.rows[name], dtype=np.float64)
            except (TypeError, ValueError):
                raise FitError(f"column {name} does not hold numbers; order by one that does") from None
        if not (np.isfinite(values) & (values > 0)).all():
            raise FitError(f"{name} has values that are not positive numbers; leave them out, or order by another")
        return values

    def where(self, keep: NDArray[np.bool_]) -> RunTable | pd.DataFrame:
        return self.rows.where(keep) if isinstance(self.rows, RunTable) else self.rows[keep]


@dataclass(frozen=True)
class _Target:
    """A design of the held-out size: x by role, seeds, mean loss."""

    x: Mapping[str, float]
    seeds: int
    measured: float

    def distance(self, other: _Target) -> float:
        return float(sum(np.log(self.x[role] / other.x[role]) ** 2 for role in self.x))


def _sizes(value_n: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Index (n,) of each row's size, ascending, and the value of each size."""
    ordered, inverse = np.unique(value_n, return_inverse=True)
    index, start = np.zeros(len(ordered), dtype=np.int64), [ordered[0]]
    for i, value in enumerate(ordered):
        if value > start[-1] * (1 + ALIKE):
            start.append(value)
        index[i] = len(start) - 1
    return index[inverse], np.array(start)


def _designs(points: Points) -> list[_Target]:
    out = []
    for design in range(int(points.design.max()) + 1):
        rows = np.flatnonzero(points.design == design)
        x = {role: float(values[rows[0]]) for role, values in points.x.items()}
        out.append(_Target(x, len(rows), float(points.y[rows].mean())))
    return out


@dataclass(frozen=True)
class _Naive:
    """The loss of the last size again: its targets, and the steps of log loss between sizes so far."""

    last: Sequence[_Target]
    steps_n: Floats

    @classmethod
    def of(cls, targets: Sequence[Sequence[_Target]]) -> Self:
        return cls(targets[-1], np.array(list(_steps(targets))))

    def row(
        self, law: Law, sizes: int, runs: int, ahead: int, value: float, target: _Target, refused: str | None
    ) -> RollingRow:
        """The row with the naive rule's part; nothing is predicted yet."""
        previous = min(self.last, key=target.distance).measured
        freedom = len(self.steps_n)
        spread = max(float(np.sqrt((self.steps_n**2).mean() * ahead)), ROUNDING)
        t = np.log(target.measured / previous) / spread
        score = gammaln((freedom + 1) / 2) - gammaln(freedom / 2) - 0.5 * np.log(freedom * np.pi) - np.log(spread)
        score -= (freedom + 1) / 2 * np.log1p(t**2 / freedom)
        at = {law.roles[role]: x for role, x in target.x.items()}
        return RollingRow(
            sizes, runs, ahead, value, at, target.seeds, target.measured, None, None, None, None, None, None,
            100 * (previous / target.measured - 1), float(score), refused,
        )  # fmt: skip


def _steps(targets: Sequence[Sequence[_Target]]) -> Iterator[float]:
    for before, after in pairwise(targets):
        for target in after:
            yield float(np.log(target.measured / min(before, key=target.distance).measured))


def _scored(row: RollingRow, fit: LawFit, target: _Target, level: float) -> RollingRow:
    """The row with the law's part."""
    values = asdict(row) | {"at": row.at}
    try:
        low, high = (float(end) for end in fit.predict_interval(level=level, seeds=target.seeds, **target.x))
    except FitError as error:
        return RollingRow(**values | {"refused": str(error)})
    predicted = float(fit.predict(**target.x))
    values |= {"predicted": predicted, "low": low, "high": high, "inside": low <= target.measured <= high}
    values |= {"error_percent": 100 * (predicted / target.measured - 1)}
    return RollingRow(**values | {"log_score": log_density(fit, target.x, target.measured, target.seeds)})


def log_density(fit: LawFit, x: Mapping[str, float], measured: float, seeds: int) -> float:
    """Log of the predictive density of log loss at ``measured``, the mean of ``seeds`` runs at ``x`` (by role).

    It belongs to ``LawFit.predict_interval``. Needs a fit with draws.
    """
    columns = fit.form.columns(None, x)
    u = fit.form.raw_coordinates({role: values.ravel() for role, values in columns.items()})
    f_B = fit.form.evaluate(fit.draws, u - np.array(fit.centre)[:, None])[0][:, 0]
    if len(fit.noise):
        s_B = np.sqrt(fit.noise[:, 0] ** 2 / seeds + fit.noise[:, 1] ** 2)
    else:
        residual = fit.residuals
        freedom = max(fit.diagnostics.degrees_of_freedom, 1)
        s_B = np.full(len(f_B), np.sqrt((residual**2).sum() / freedom / seeds))
    if fit.residual == "log":
        gap_B, jacobian = np.log(measured / f_B), 0.0
    else:
        gap_B, jacobian = measured - f_B, np.log(measured)
    s_B = np.maximum(s_B, ROUNDING * (1.0 if fit.residual == "log" else measured))
    log_density_B = -0.5 * (gap_B / s_B) ** 2 - np.log(s_B) - 0.5 * np.log(2 * np.pi) + jacobian
    return float(np.logaddexp.reduce(log_density_B) - np.log(len(log_density_B)))
