"""Where the routes to a frontier disagree: exponents and N_opt at stated computes side by side, with differences.

The envelope, the IsoFLOP profiles and the parametric law weigh the same runs differently (Hoffmann et al.,
arXiv:2203.15556, find .50, .49 and .46); a study that shows one of them hides its largest error. Differences treat the
draws of two routes as independent: routes that share runs err together, so the intervals of differences are wide.

Shapes: F frontiers, B draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from varscale_analysis.fit import FitError, Floats
from varscale_analysis.frontier import Frontier
from varscale_analysis.table import LEVEL
from varscale_analysis.trend import Estimate, Trend

_QUANTITIES = {"n_opt": "N_opt", "d_opt": "D_opt", "l_opt": "L_opt"}


@dataclass(frozen=True)
class RouteRow:
    """One quantity by one route, or its difference between two.

    Attributes:
        route: "envelope", or "law - envelope" for a difference.
        quantity: "exponent of N_opt", "N_opt at 1e+18 FLOP"; for a difference of N_opt, the ratio of the two.
        value, low, high: with its 90 % interval, None without draws.
        extrapolation: factor outside the optima of the route, for a quantity at a compute; None where not known.
    """

    route: str
    quantity: str
    value: float
    low: float | None
    high: float | None
    extrapolation: float | None

    @property
    def disagrees(self) -> bool:
        """For a difference or ratio: whether its interval excludes 0 (a ratio: 1)."""
        none = 0.0 if self.quantity.startswith("exponent") else 1.0
        return self.low is not None and self.high is not None and not self.low <= none <= self.high


@dataclass(frozen=True)
class RouteComparison:
    """``rows``: exponents and optima by every route; ``differences`` of every pair (ratios for N_opt, D_opt)."""

    rows: tuple[RouteRow, ...]
    differences: tuple[RouteRow, ...]

    def to_frame(self) -> pd.DataFrame:
        """All rows as a table, one column a field."""
        return pd.DataFrame([asdict(row) for row in (*self.rows, *self.differences)])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: [asdict(row) for row in getattr(self, name)] for name in ("rows", "differences")}

    def summary(self) -> str:
        """The comparison as text; a difference whose interval excludes none is marked."""
        width = max(len(row.route) for row in (*self.rows, *self.differences))
        lines = [f"{LEVEL:.0%} intervals; ratio or difference marked * where its interval excludes agreement"]
        for row in (*self.rows, *self.differences):
            text = f"{row.route:<{width}}  {row.quantity:<24} {row.value:>11.4g}"
            if row.low is not None and row.high is not None:
                text += f" [{row.low:.4g}, {row.high:.4g}]"
            if row.extrapolation is not None and row.extrapolation > 1:
                text += f"  extrapolated {row.extrapolation:.3g}x"
            lines.append(text + (" *" if row in self.differences and row.disagrees else ""))
        return "\n".join(lines)


def compare_frontiers(
    frontiers: Sequence[Frontier], flops: Sequence[float] | None = None, *, names: Sequence[str] | None = None
) -> RouteComparison:
    """Put frontiers of the same runs side by side.

    Args:
        frontiers: two or more, of the same N and loss; ``names`` of them, by default their routes.
        flops: computes (FLOP) at which N_opt and D_opt are compared; by default the ends and middle of the compute
            that the frontiers share (of all their compute, where they share none).

    Raises ``FitError`` for fewer than two frontiers, different N or loss, names that repeat, and where no compute is
    known.
    """
    if len(frontiers) < 2:
        raise FitError(f"a comparison needs two frontiers, there is {len(frontiers)}; give another route")
    for what, found in (("N", {f.n for f in frontiers}), ("loss", {f.y for f in frontiers})):
        if len(found) > 1:
            raise FitError(f"the frontiers have different {what} ({', '.join(sorted(found))}); compare like with like")
    labels = [f.route for f in frontiers] if names is None else list(names)
    if len(labels) != len(frontiers) or len(set(labels)) < len(labels):
        raise FitError(f"{len(frontiers)} frontiers need as many different names, got {', '.join(labels)}")
    computes = _shared(frontiers) if flops is None else [float(c) for c in flops]
    rows: list[RouteRow] = []
    differences: list[RouteRow] = []
    for attribute, name in _QUANTITIES.items():
        trends = [(label, f, t) for label, f in zip(labels, frontiers, strict=True) if (t := getattr(f, attribute))]
        quantity = f"exponent of {name}"
        for label, _, trend in trends:
            rows.append(_row(label, quantity, trend.exponent, trend.draws[:, 2], None))
        for (a, _, x), (b, _, z) in combinations(trends, 2):
            drawn = _pairs(x.draws[:, 2], z.draws[:, 2])
            differences.append(_row(f"{b} - {a}", quantity, z.exponent - x.exponent, drawn[1] - drawn[0], None))
        for c in computes if attribute != "l_opt" else []:
            quantity = f"{name} at {c:.3g} FLOP"
            for label, frontier, trend in trends:
                outside = frontier.allocate(c).extrapolation if frontier.n_opt is not None else None
                rows.append(_row(label, quantity, float(trend.predict(c)), _at(trend, c), outside))
            for (a, _, x), (b, _, z) in combinations(trends, 2):
                drawn = _pairs(_at(x, c), _at(z, c))
                ratio = float(z.predict(c) / x.predict(c))
                differences.append(_row(f"{b} / {a}", quantity, ratio, drawn[1] / drawn[0], None))
    return RouteComparison(tuple(rows), tuple(differences))


def _shared(frontiers: Sequence[Frontier]) -> list[float]:
    ranges = [f.flops_range for f in frontiers if f.flops_range is not None]
    if not ranges:
        raise FitError("none of the frontiers knows the compute of its runs; name the computes to compare at")
    low, high = max(r[0] for r in ranges), min(r[1] for r in ranges)
    if low >= high:
        low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    return [low, float(np.sqrt(low * high)), high]


def _at(trend: Trend, flops: float) -> Floats:
    return trend.drawn(flops)[:, 0] if len(trend.draws) else np.empty(0)


def _pairs(a_B: Floats, b_B: Floats) -> tuple[Floats, Floats]:
    """As many draws of each as the shorter has, paired at random, because the draws of a route may be ordered."""
    count = min(len(a_B), len(b_B))
    rng = np.random.default_rng(0)
    return rng.permutation(a_B)[:count], rng.permutation(b_B)[:count]


def _row(route: str, quantity: str, value: float, drawn_B: Floats, outside: float | None) -> RouteRow:
    estimate = Estimate.of(value, drawn_B)
    return RouteRow(route, quantity, estimate.value, estimate.low, estimate.high, outside)
