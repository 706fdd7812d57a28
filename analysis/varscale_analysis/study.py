"""StudyAnalysis: everything this package says about one study, from its run table and curves.

A part that the data cannot carry (two sizes have no saturating law, one D has no law of N and D) is absent with its
reason; the rest stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from varscale_analysis.atomic import write_json
from varscale_analysis.checks import StudyChecks
from varscale_analysis.flatness import Flatness
from varscale_analysis.frontier import Frontier
from varscale_analysis.holdout import HoldoutScore, Prediction
from varscale_analysis.ladder import SizeRow, ladder_table
from varscale_analysis.laws import LawFit
from varscale_analysis.lr import LearningRateScan
from varscale_analysis.offset import ExponentAtOffset
from varscale_analysis.routes import RouteComparison
from varscale_analysis.table import RunTable, unit_of

PREDICTION_FILE = "prediction.json"
FIT_FILE = "fit.json"


@dataclass(frozen=True, eq=False)
class StudyAnalysis:
    """The analysis of one study.

    Attributes:
        folder: of the study; None for a table that was handed in.
        table: all rows; ``used`` those behind the laws of N, ``everything`` those behind the others.
        n, y: convention of N and the loss.
        at: the D of the laws of N, or the range of D.
        tokens: the D that was asked for, None for all.
        sizes: one row a size, ascending; one a size and D where the D differ.
        fits: by "law/loss", such as "saturating/val_nats_per_token_avg".
        frontiers: by route: "envelope", "isoflop", "law".
        routes: the frontiers side by side; None with fewer than two.
        flatness: at the largest compute of each route.
        exponents: alpha for each fixed E.
        per_scale: size -> mean nats per token of scales 0 .. K-1.
        prediction, score: the hold-out; the score is None until the size is measured.
        checks: of the main law; None without one.
        absent: part -> why it is not there.
        rates: the scans of learning rates, one a number of tokens; none where every size was trained at one rate.
    """

    folder: Path | None
    table: RunTable
    used: RunTable
    everything: RunTable
    n: str
    y: str
    at: str
    tokens: float | None
    sizes: tuple[SizeRow, ...]
    fits: Mapping[str, LawFit]
    frontiers: Mapping[str, Frontier]
    routes: RouteComparison | None
    flatness: Mapping[str, Flatness]
    exponents: tuple[ExponentAtOffset, ...]
    per_scale: Mapping[float, tuple[float, ...]]
    prediction: Prediction | None
    score: HoldoutScore | None
    checks: StudyChecks | None
    absent: Mapping[str, str]
    rates: tuple[LearningRateScan, ...] = ()

    @property
    def main(self) -> LawFit | None:
        """The first law of ``y``: what the checks are made of."""
        return next((fit for name, fit in self.fits.items() if name.endswith(f"/{self.y}")), None)

    @property
    def frontier(self) -> Frontier | None:
        """By the envelope; None if absent."""
        return self.frontiers.get("envelope")

    def summary(self) -> str:
        """What a person pastes: sizes, laws with intervals, hold-out, frontiers, checks, what is absent and why."""
        runs, ladder = sum(row.seeds for row in self.sizes), len({row.n for row in self.sizes})
        rule = ", ".join(sorted(set(map(str, self.table.usable["flops_rule"])) - {""})) or "not given"
        head = f"{len(self.table)} runs, {runs} in the fits, {ladder} sizes, {self.at}, FLOP rule {rule}"
        parts = ["\n".join([head, *(f"note: {note}" for note in self.table.notes)])]
        parts.append("\n".join(ladder_table(self.sizes, self.n, self.y)))
        parts += [scan.summary() for scan in self.rates]
        parts += [fit.summary() for fit in self.fits.values()]
        if self.prediction is not None:
            parts.append(self.prediction.summary(self.score))
        parts += [frontier.summary() for frontier in self.frontiers.values()]
        if self.routes is not None:
            parts.append("\n".join(_exponents(self.routes)))
        if self.flatness:
            unit = unit_of(self.y)
            parts.append("\n".join(_flatness_line(route, row, unit) for route, row in self.flatness.items()))
        if self.checks is not None:
            parts.append(self.checks.summary())
        if self.absent:
            parts.append("\n".join(f"absent: {part}: {why}" for part, why in self.absent.items()))
        return "\n\n".join(part for part in parts if part)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "n": self.n,
            "y": self.y,
            "at": self.at,
            "notes": list(self.table.notes),
            "sizes": [
                {**vars(row), "params": dict(row.params), "means": dict(row.means), "spreads": dict(row.spreads)}
                for row in self.sizes
            ],
            "fits": {name: fit.to_dict() for name, fit in self.fits.items()},
            "frontiers": {route: frontier.to_dict() for route, frontier in self.frontiers.items()},
            "routes": None if self.routes is None else self.routes.to_dict(),
            "flatness": {route: row.to_dict() for route, row in self.flatness.items()},
            "exponents": [vars(row) for row in self.exponents],
            "per_scale": [{"n": n, "nats_per_token": list(values)} for n, values in self.per_scale.items()],
            "prediction": None if self.prediction is None else self.prediction.to_dict(),
            "score": None if self.score is None else vars(self.score),
            "checks": None if self.checks is None else self.checks.to_dict(),
            "absent": dict(self.absent),
            "rates": [scan.to_dict() for scan in self.rates],
        }

    def write(self, path: Path | str | None = None) -> Path:
        """Write ``to_dict`` as JSON, by default to ``fit.json`` in the study folder, and return the path.

        Raises ``ValueError`` where neither a path nor a folder is known.
        """
        if path is None and self.folder is None:
            raise ValueError("the table was handed in without a study folder; name the path to write to")
        path = Path(path) if path is not None else Path(str(self.folder)) / FIT_FILE
        write_json(path, self.to_dict())
        return path


def _exponents(routes: RouteComparison) -> list[str]:
    """The exponent of N_opt by every route, and where routes disagree about anything."""
    shown = [row for row in (*routes.rows, *routes.differences) if row.quantity == "exponent of N_opt"]
    cells = []
    for row in shown:
        ends = "" if row.low is None else f" [{row.low:.4g}, {row.high:.4g}]"
        cells.append(f"{row.route} {row.value:.4g}{ends}")
    apart = [f"{row.quantity} ({row.route})" for row in routes.differences if row.disagrees]
    lines = [f"exponent of N_opt by route: {', '.join(cells)}"] if cells else []
    return [*lines, f"the routes disagree about: {', '.join(apart) or 'nothing, within their intervals'}"]


def _flatness_line(route: str, row: Flatness, unit: str) -> str:
    low, high = (f"{end.value:.3g}" if end is not None else "not measured" for end in (row.n_low, row.n_high))
    costs = "; ".join(
        f"{cost.factor:g} N_opt costs {cost.excess.value:.3g} {unit}"
        for cost in row.costs
        if np.isclose(abs(np.log2(cost.factor)), 1.0)
    )
    text = f"flatness by {route} at {row.flops:.3g} FLOP: N_opt {row.n_opt:.3g}, within {row.within:.0%} of the best "
    return text + f"loss from {low} to {high}" + (f"; {costs}" if costs else "")
