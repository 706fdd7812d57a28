"""Scores of rolling hold-outs: rows, totals, and several laws side by side. See ``rolling`` for what is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from scipy.special import betaincinv

from varscale_analysis.fit import FitError, Floats
from varscale_analysis.table import LEVEL


@dataclass(frozen=True)
class RollingRow:
    """One prediction and what came of it; the predicted numbers are None where ``refused`` says why.

    Attributes:
        sizes, runs: what the law saw: so many sizes, so many rows of the data.
        ahead: how many sizes further the target lies, from 1.
        target: the target's value of the ordering column; ``at`` its columns of the law.
        seeds, measured: runs at the target and their mean loss. The interval is for that mean.
        predicted, low, high, inside, error_percent: error is 100 (predicted / measured - 1).
        log_score: log density of log loss at the measurement, higher is better.
        naive_error_percent, naive_log_score: of the loss of the last size seen, repeated.
        refused: why the law could not be fitted or certified.
    """

    sizes: int
    runs: int
    ahead: int
    target: float
    at: Mapping[str, float]
    seeds: int
    measured: float
    predicted: float | None
    low: float | None
    high: float | None
    inside: bool | None
    error_percent: float | None
    log_score: float | None
    naive_error_percent: float
    naive_log_score: float
    refused: str | None = None

    @property
    def question(self) -> tuple[int, int, float, float]:
        """What two laws have to share for their rows to be compared."""
        return self.sizes, self.ahead, self.target, self.measured


@dataclass(frozen=True)
class Coverage:
    """How many intervals held what was measured.

    Attributes:
        inside: rows whose measurement lies in its interval, of ``rows``.
        low, high: Clopper-Pearson interval of that share at 90 %. Rows count as independent: with a horizon above 1, or
            several targets a size, it is too narrow.
    """

    inside: int
    rows: int
    low: float
    high: float

    @classmethod
    def of(cls, inside: int, rows: int) -> Self:
        """From counts; without rows it is the whole of [0, 1]."""
        low = float(betaincinv(inside, rows - inside + 1, (1 - LEVEL) / 2)) if inside else 0.0
        high = float(betaincinv(inside + 1, rows - inside, (1 + LEVEL) / 2)) if inside < rows else 1.0
        return cls(inside, rows, low, high)

    def __str__(self) -> str:
        return (
            f"{self.inside} of {self.rows} inside ({LEVEL:.0%} interval of the share {self.low:.2f} to {self.high:.2f})"
        )


@dataclass(frozen=True)
class RollingHoldout:
    """The rolling hold-out of one law.

    Attributes:
        law, formula: its name and form. ``y``, ``y_unit``: the loss and its unit.
        by: the column that orders the sizes.
        level: of the prediction intervals.
        rows: one a target and number of sizes seen.
    """

    law: str
    formula: str
    y: str
    y_unit: str
    by: str
    level: float
    rows: tuple[RollingRow, ...]

    @property
    def scored(self) -> tuple[RollingRow, ...]:
        """The rows with a prediction."""
        return tuple(row for row in self.rows if row.refused is None)

    @property
    def coverage(self) -> Coverage:
        """Of the intervals at ``level``."""
        return Coverage.of(sum(bool(row.inside) for row in self.scored), len(self.scored))

    @property
    def log_score(self) -> float | None:
        """Mean log score, None without a row."""
        return _mean([row.log_score for row in self.scored])

    @property
    def naive_log_score(self) -> float | None:
        """The naive rule's on the same rows."""
        return _mean([row.naive_log_score for row in self.scored])

    @property
    def error_percent(self) -> float | None:
        """Root mean square error in per cent."""
        return _rms([row.error_percent for row in self.scored])

    @property
    def naive_error_percent(self) -> float | None:
        """The naive rule's on the same rows."""
        return _rms([row.naive_error_percent for row in self.scored])

    def summary(self) -> str:
        """The rows and the totals as text."""
        lines = [
            f"rolling hold-out of {self.y}, {self.formula}, sizes by {self.by}, {self.level:.0%} intervals",
            f"{'seen':>5}  {self.by:>16}  {'measured':>9}  {'predicted':>9}  {'interval':>19}  {'error %':>8}  "
            f"{'naive %':>8}  {'log score':>9}  {'naive':>6}",
        ]
        for row in self.rows:
            head = f"{row.sizes:>5}  {row.target:>16.5g}  {row.measured:>9.4f}  "
            if row.refused is not None:
                lines.append(f"{head}refused: {row.refused}")
                continue
            interval = f"[{row.low:.4f}, {row.high:.4f}]" + (" " if row.inside else "*")
            lines.append(
                f"{head}{row.predicted:>9.4f}  {interval:>19}  {row.error_percent:>+8.3f}  "
                f"{row.naive_error_percent:>+8.3f}  {row.log_score:>9.2f}  {row.naive_log_score:>6.2f}"
            )
        if self.scored:
            lines.append(
                f"{self.coverage}; rms error {self.error_percent:.3g} %, naive {self.naive_error_percent:.3g} %; mean "
                f"log score {self.log_score:.2f}, naive {self.naive_log_score:.2f}"
            )
        return "\n".join(lines)

    def to_frame(self) -> pd.DataFrame:
        """One row a prediction; the columns of the law stand by their names."""
        return pd.DataFrame([{**{k: v for k, v in vars(r).items() if k != "at"}, **r.at} for r in self.rows])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``. Raises ``FitError`` for a mapping that is something else."""
        try:
            return cls(**{**values, "rows": tuple(RollingRow(**row) for row in values["rows"])})
        except (KeyError, TypeError) as error:
            raise FitError(f"not a rolling hold-out ({error!r}); write one with RollingHoldout.to_dict") from error


@dataclass(frozen=True)
class RollingComparison:
    """Several laws' rolling hold-outs on the targets that all of them predict.

    Attributes:
        results: by name, each with all its rows.
        common: the number of targets that every law predicts, which are those compared.
    """

    results: Mapping[str, RollingHoldout]
    common: int

    @property
    def order(self) -> tuple[str, ...]:
        """Names by mean log score on the common targets."""
        scores = {name: float(self._scores(name).mean()) for name in self.results}
        return tuple(sorted(scores, key=lambda name: -scores[name]))

    def difference(self, name: str, other: str) -> tuple[float, float]:
        """Mean log score of ``name`` minus that of ``other``, and its standard error over targets."""
        gap = self._scores(name) - self._scores(other)
        return float(gap.mean()), float(gap.std(ddof=1) / np.sqrt(len(gap))) if len(gap) > 1 else float("inf")

    def summary(self) -> str:
        """One line a law, and the naive rule."""
        best = self.order[0]
        lines = [f"rolling hold-out, {self.common} targets that every law predicts; log score, higher is better"]
        width = max(len(name) for name in (*self.results, "naive"))
        for name in self.order:
            rows = self._common(name)
            inside = Coverage.of(sum(bool(row.inside) for row in rows), len(rows))
            text = f"  {name:<{width}}  {self._scores(name).mean():>8.2f}"
            if name != best:
                gap, error = self.difference(name, best)
                text += f"  ({gap:+.2f} +- {error:.2f})"
            lines.append(f"{text}  rms error {_rms([row.error_percent for row in rows]):.3g} %, {inside}")
        rows = self._common(best)
        naive = np.mean([row.naive_log_score for row in rows])
        lines.append(
            f"  {'naive':<{width}}  {naive:>8.2f}  rms error {_rms([row.naive_error_percent for row in rows]):.3g} %"
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"results": {name: result.to_dict() for name, result in self.results.items()}, "common": self.common}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        return cls({n: RollingHoldout.from_dict(result) for n, result in values["results"].items()}, values["common"])

    def _common(self, name: str) -> list[RollingRow]:
        shared = set.intersection(*({row.question for row in result.scored} for result in self.results.values()))
        return sorted((row for row in self.results[name].scored if row.question in shared), key=lambda r: r.question)

    def _scores(self, name: str) -> Floats:
        return np.array([row.log_score for row in self._common(name)], dtype=np.float64)


def _mean(values: Sequence[float | None]) -> float | None:
    return float(np.mean([value for value in values if value is not None])) if values else None


def _rms(values: Sequence[float | None]) -> float | None:
    return float(np.sqrt(np.mean([value**2 for value in values if value is not None]))) if values else None
