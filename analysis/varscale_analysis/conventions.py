"""The same runs under every count of parameters and every rule of FLOPs, side by side.

Which parameters count as N and how C is counted are choices, and exponents move with them: one public table goes from
.37 to .54 to .70 by the convention alone (Porian et al., arXiv:2406.19146, explain Kaplan against Chinchilla by it). A
constant factor between two rules (forward multiply-adds against all FLOPs) moves prefactors only; a factor that changes
with the size moves exponents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from varscale_analysis.curves import Curves
from varscale_analysis.fit import FitError, Floats
from varscale_analysis.frontier import Frontier
from varscale_analysis.laws import PowerLaw
from varscale_analysis.table import LEVEL, SIZES, RunTable, RunTableError
from varscale_analysis.trend import Estimate, Trend

SAME_FLOPS = 1e-6  # counts that agree to this factor - 1 are one rule
FORWARD_MACS = 1 / 6  # of forward and backward: a third is forward, and a multiply-add is two FLOPs


@dataclass(frozen=True)
class ConventionRow:
    """The exponents under one convention.

    Attributes:
        n: which parameters are N.
        flops_rule: how C is counted.
        alpha: of L = (beta N)^alpha at one number of tokens; the same for every FLOP rule.
        n_exponent, d_exponent, l_exponent: of N_opt ~ C^a, D_opt ~ C^b, L_opt = E + s C^c.
        n_coefficient: of N_opt = coefficient C^a, C in FLOP of the rule.
        absent: what could not be fitted, and why.
    """

    n: str
    flops_rule: str
    alpha: Estimate | None
    n_exponent: Estimate | None
    d_exponent: Estimate | None
    l_exponent: Estimate | None
    n_coefficient: float | None
    absent: Mapping[str, str]


@dataclass(frozen=True)
class ConventionTable:
    """The table: ``rows``, one for every pair of conventions."""

    rows: tuple[ConventionRow, ...]

    def to_frame(self) -> pd.DataFrame:
        """The rows as a table; each estimate as three columns, NaN where absent."""
        out = []
        for row in self.rows:
            cells: dict[str, Any] = {"n": row.n, "flops_rule": row.flops_rule}
            for name in ("alpha", "n_exponent", "d_exponent", "l_exponent"):
                estimate = getattr(row, name)
                for part, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
                    cells[name + suffix] = np.nan if estimate is None else getattr(estimate, part)
            cells["n_coefficient"] = np.nan if row.n_coefficient is None else row.n_coefficient
            out.append(cells)
        return pd.DataFrame(out)

    def spread(self, name: str) -> float | None:
        """Largest minus smallest value of an exponent over the conventions; None where there are fewer than two."""
        values = [estimate.value for row in self.rows if (estimate := getattr(row, name)) is not None]
        return max(values) - min(values) if len(values) > 1 else None

    def summary(self) -> str:
        """The table as text, then the spread of each exponent over the conventions, then what is absent and why."""
        names = ("alpha", "n_exponent", "d_exponent", "l_exponent")
        lines = [f"{LEVEL:.0%} intervals", f"{'N':<18} {'FLOP rule':<22} " + " ".join(f"{name:<26}" for name in names)]
        for row in self.rows:
            cells = " ".join(f"{'-' if (v := getattr(row, name)) is None else v!s:<26}" for name in names)
            lines.append(f"{row.n:<18} {row.flops_rule:<22} {cells}".rstrip())
        spreads = [f"{name} {value:.3g}" for name in names if (value := self.spread(name)) is not None]
        lines.append("moves by convention alone: " + (", ".join(spreads) if spreads else "nothing to compare"))
        whys = dict.fromkeys(f"absent: {part}: {why}" for row in self.rows for part, why in row.absent.items())
        return "\n".join([*lines, *whys])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"rows": [asdict(row) for row in self.rows]}


def analyse_conventions(
    table: RunTable,
    *,
    y: str = "val_nats_per_token_avg",
    sizes: Sequence[str] | None = None,
    macs_factor: float | None = None,
    route: Callable[[RunTable, str], Frontier] | None = None,
    bootstrap: int = 300,
    seed: int = 0,
) -> ConventionTable:
    """Analyse a table under every count of parameters and every FLOP rule.

    Args:
        y: the loss.
        sizes: columns of N; None takes those of ``table.SIZES`` that the table has.
        macs_factor: forward multiply-adds a FLOP as recorded; by default 1/6, or 1 where these were recorded.
        route: makes a frontier from a table and a column of N; by default the envelope of its curves.
        bootstrap, seed: draws of the default route and of the law of N, and their seed.

    The rules are: as recorded (column flops_train), forward multiply-adds, and 6 N D with the N of the row; what was
    recorded is no second row. Raises what ``RunTable.comparable`` raises; a convention that
    cannot be fitted is a row that says why.
    """
    table = table.comparable(fixed_tokens=False)
    recorded = str(table.rows["flops_rule"].iloc[0])
    if macs_factor is None:
        macs_factor = 1.0 if recorded == "forward_macs" else FORWARD_MACS
    sizes = [name for name in SIZES if table.has(name)] if sizes is None else sizes

    def envelope(recounted: RunTable, n: str) -> Frontier:
        return Frontier.from_envelope(recounted, n=n, y=y, bootstrap=bootstrap, seed=seed)

    route = envelope if route is None else route
    rows: list[ConventionRow] = []
    recorded_flops = table.values("flops_train")
    for n in sizes:
        alpha, why = _alpha(table, n, y, bootstrap, seed)
        absent = {} if why is None else {f"alpha of {n}": why}
        by_rule = {f"{recorded} (recorded)": recorded_flops}
        by_6nd = 6 * table.values(n) * table.values("tokens_seen")
        if recorded != "6nd" or not np.allclose(by_6nd, recorded_flops, rtol=SAME_FLOPS):
            by_rule["6nd"] = by_6nd
        first = len(rows)
        for rule, flops in by_rule.items():
            try:
                frontier = route(recounted(table, flops, rule), n)
            except (FitError, RunTableError) as error:
                missing = absent | {f"frontier by {n}, {rule}": str(error)}
                rows.append(ConventionRow(n, rule, alpha, None, None, None, None, missing))
                continue
            missing = absent | {f"{part} by {n}, {rule}": reason for part, reason in frontier.absent.items()}
            n_opt, d_opt, l_opt = (_exponent(trend) for trend in (frontier.n_opt, frontier.d_opt, frontier.l_opt))
            coefficient = None if frontier.n_opt is None else frontier.n_opt.coefficient
            rows.append(ConventionRow(n, rule, alpha, n_opt, d_opt, l_opt, coefficient, missing))
        if macs_factor == 1:
            continue
        # A constant factor on C leaves every extraction and exponent as it is.
        as_recorded, scale = rows[first], None
        if as_recorded.n_coefficient is not None and as_recorded.n_exponent is not None:
            scale = as_recorded.n_coefficient * macs_factor**-as_recorded.n_exponent.value
        macs = replace(as_recorded, flops_rule=f"forward_macs ({macs_factor:.4g} x)", n_coefficient=scale)
        rows.insert(first + 1, macs)
    return ConventionTable(tuple(rows))


def recounted(table: RunTable, flops_n: Floats, rule: str) -> RunTable:
    """The table with the compute ``flops_n`` (n runs), and the compute along its curves in proportion."""
    ratio = flops_n / table.values("flops_train")
    rows = table.rows.assign(flops_train=flops_n, flops_rule=rule)
    curves = table.curves
    if curves is not None:
        by_run = dict(zip(map(str, table.rows["run_id"]), ratio, strict=True))
        factor = curves.rows["run_id"].map(by_run)
        there = factor.notna()
        curves = Curves(curves.rows[there].assign(flops=(curves.rows["flops"] * factor)[there]))
    return replace(table, rows=rows, curves=curves)


def _alpha(table: RunTable, n: str, y: str, bootstrap: int, seed: int) -> tuple[Estimate | None, str | None]:
    try:
        parameter = PowerLaw(n=n).fit(table, y, bootstrap=bootstrap, seed=seed).params["alpha"]
    except (FitError, RunTableError) as error:
        return None, str(error)
    return Estimate(parameter.value, parameter.low, parameter.high), None


def _exponent(trend: Trend | None) -> Estimate | None:
    return None if trend is None else Estimate.of(trend.exponent, trend.draws[:, 2])
