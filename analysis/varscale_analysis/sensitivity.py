"""Sensitivity: the same law under every choice that could have been made otherwise, in one table.

A published exponent moves with choices that a paper seldom varies. Besiroglu et al. (arXiv:2404.10102) move a from
.513 to .530 with the Huber corner alone, and beta from .366 to .452 when five outliers stay in. VAR (arXiv:2404.02905)
fixes E. Each row refits the law with one choice changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from varscale_analysis.fit import FitError, Problem
from varscale_analysis.laws.law import Law
from varscale_analysis.objective import Floats, Objective, huber, least_absolute_deviations, squares
from varscale_analysis.points import Data, Points

DELTAS = (1e-2, 1e-3, 1e-4)
OUTLIERS = 5


@dataclass(frozen=True)
class SensitivityRow:
    """One choice.

    Attributes:
        kind: "base", "objective", "size", "outlier" or "offset".
        change: the choice in words, such as "huber(0.001) of log residuals" or "without n = 1.8e+07".
        objective: the label of the objective.
        points: points left.
        values: reported and derived parameters, empty where the fit was refused.
        refused: why; None if it was fitted.
    """

    kind: str
    change: str
    objective: str
    points: int
    values: dict[str, float]
    refused: str | None = None


@dataclass(frozen=True)
class Sensitivity:
    """The table of a ``law``, by name, fitted to ``y``. The first of the ``rows`` is the law as it was given."""

    law: str
    y: str
    rows: tuple[SensitivityRow, ...]

    def span(self, name: str, kind: str | None = None) -> tuple[float, float]:
        """Smallest and largest value of a parameter over the rows (of one kind). Raises ``FitError`` if none has it."""
        found = [row.values[name] for row in self.rows if name in row.values and kind in (None, row.kind)]
        if not found:
            raise FitError(f"no row of the table has {name!r}" + (f" among those of kind {kind}" if kind else ""))
        return min(found), max(found)

    def to_frame(self) -> pd.DataFrame:
        """One row a choice: kind, change, objective, points, each parameter, refused."""
        rows = [{**{k: v for k, v in vars(row).items() if k != "values"}, **row.values} for row in self.rows]
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"law": self.law, "y": self.y, "rows": [vars(row) for row in self.rows]}

    def summary(self) -> str:
        """The table as text, with each parameter's span."""
        names = list(self.rows[0].values)
        width = max(len(row.change) for row in self.rows)
        head = f"{self.y}, {self.law}: one choice changed at a time"
        lines = [head, f"{'':{width}}  points  " + "  ".join(f"{name:>9}" for name in names)]
        for row in self.rows:
            cells = (
                "  ".join(f"{row.values[name]:>9.4g}" for name in names) if row.values else f"refused: {row.refused}"
            )
            lines.append(f"{row.change:{width}}  {row.points:>6}  {cells}")
        spans = ", ".join(f"{name} {low:.4g} to {high:.4g}" for name in names for low, high in (self.span(name),))
        return "\n".join([*lines, f"span: {spans}"])


def sensitivity_of(
    law: Law,
    data: Data,
    y: str = "val_nats_per_token_avg",
    *,
    deltas: Sequence[float] = DELTAS,
    offsets: Iterable[float] | None = None,
    outliers: int = OUTLIERS,
    sizes: bool = True,
) -> Sensitivity:
    """Refit ``law`` under other objectives, without each size and each outlier, and with E given.

    Args:
        law, data, y: as for ``Law.fit``.
        deltas: corners of Huber losses of log residuals; least absolute deviations and squares (of log and of raw
            residuals) are always there.
        offsets: values of E to fix, for laws with an E; by default 0 and 50, 80, 90, 95 and 98 % of the smallest y.
        outliers: so many of the largest residuals of the base fit are left out, one by one and together.
        sizes: leave each value of the first column out.

    A choice that cannot be fitted is a row with its reason. Raises ``FitError`` if the base cannot.
    """
    points = law.read(data, y)
    weights = law.criterion.weights
    rows = [_row("base", "as given", law, points, strict=True)]
    objectives: list[Objective] = [squares("log", weights), squares("raw", weights)]
    objectives += [huber(delta, "log", weights) for delta in deltas]
    objectives += [least_absolute_deviations("log", weights), least_absolute_deviations("raw", weights)]
    for objective in objectives:
        if objective != law.criterion:
            rows.append(_row("objective", objective.label, replace(law, objective=objective), points))
    role, column = next(iter(law.roles.items()))
    if sizes:
        for value in np.unique(points.x[role]):
            rows.append(_row("size", f"without {column} = {value:.4g}", law, points.where(points.x[role] != value)))
    theta = Problem(law, points).optimum()[0]
    size = np.abs(Problem(law, points).residuals(theta))
    furthest = np.argsort(-size)[: min(outliers, len(points) - 1)]
    for i in furthest:
        keep = np.arange(len(points)) != i
        where = ", ".join(f"{law.roles[r]} = {x[i]:.4g}" for r, x in points.x.items())
        rows.append(_row("outlier", f"without the point at {where}", law, points.where(keep)))
    if len(furthest) > 1:
        keep = ~np.isin(np.arange(len(points)), furthest)
        rows.append(_row("outlier", f"without the {len(furthest)} furthest points", law, points.where(keep)))
    if "E" in law.names:
        rows += _at_offsets(law, points, offsets)
    return Sensitivity(law.name, points.y_name, tuple(rows))


def _at_offsets(law: Law, points: Points, offsets: Iterable[float] | None) -> list[SensitivityRow]:
    least = float(points.y.min())
    values = [0.0, *(share * least for share in (0.5, 0.8, 0.9, 0.95, 0.98))] if offsets is None else list(offsets)
    rows = [_row("offset", f"E given as {e:.4g}", replace(law, fixed={**law.fixed, "E": e}), points) for e in values]
    if "E" in law.fixed:
        free = {name: value for name, value in law.fixed.items() if name != "E"}
        rows.append(_row("offset", "E fitted", replace(law, fixed=free), points))
    return rows


def _row(kind: str, change: str, law: Law, points: Points, strict: bool = False) -> SensitivityRow:
    label = law.criterion.label
    try:
        problem = Problem(law, points)
        theta, _, certificate = problem.optimum()
    except FitError as error:
        if strict:
            raise
        return SensitivityRow(kind, change, label, len(points), {}, str(error))
    if not certificate.certified:
        if strict:
            raise FitError(f"the law as given is not certified: {'; '.join(certificate.faults)}")
        return SensitivityRow(kind, change, label, len(points), {}, "; ".join(certificate.faults))
    reported: dict[str, Floats] = law.report(theta[None], problem.centre)
    everything = {**reported, **law.derived(reported)}
    return SensitivityRow(kind, change, label, len(points), {k: float(v[0]) for k, v in everything.items()})
