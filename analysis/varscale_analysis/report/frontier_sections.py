"""Sections on the compute frontier: every route, where they disagree, how flat the optimum is, conventions."""

from __future__ import annotations

from varscale_analysis.laws.parameter import Parameter
from varscale_analysis.report import html
from varscale_analysis.study import StudyAnalysis
from varscale_analysis.table import LEVEL, unit_of
from varscale_analysis.trend import Estimate


def frontiers(analysis: StudyAnalysis) -> str:
    """N_opt, D_opt and L_opt by every route."""
    rows, lines = [], []
    for route, frontier in analysis.frontiers.items():
        exponents = (frontier.n_exponent, frontier.d_exponent, frontier.l_exponent)
        span = "-" if frontier.flops_range is None else "{:.3g} to {:.3g}".format(*frontier.flops_range)
        rows.append(
            [route, *(_exponent(exponent) for exponent in exponents), span, str(frontier.draws), frontier.basis]
        )
        if frontier.envelope is not None and frontier.envelope.vertices:
            flags = ", ".join(f"{v.flops:.2e} FLOP ({v.flag})" for v in frontier.envelope.vertices)
            lines.append(f"envelope: the best size changes at {flags}")
        lines += [f"{route}: refused: {profile.flops:.3g} FLOP: {profile.refusal}" for profile in frontier.refused]
        lines += [f"{route}: no {part}: {why}" for part, why in frontier.absent.items()]
    if not rows:
        return ""
    head = ["route", "a of N_opt ~ C^a", "b of D_opt ~ C^b", "c of L_opt = E + s C^c", "C (FLOP)", "draws", "from"]
    return html.table(head, rows) + html.items(lines) + _routes(analysis) + _flatness(analysis)


def conventions(analysis: StudyAnalysis) -> str:
    """Exponents under every count of N and rule of C."""
    result = None if analysis.checks is None else analysis.checks.conventions
    if result is None:
        return ""
    names = ("alpha", "n_exponent", "d_exponent", "l_exponent")
    rows = []
    for row in result.rows:
        coefficient = "-" if row.n_coefficient is None else f"{row.n_coefficient:.3g}"
        rows.append([row.n, row.flops_rule, *(_estimate(getattr(row, name)) for name in names), coefficient])
    moves = [f"{name} by {moved:.3g}" for name in names if (moved := result.spread(name)) is not None]
    words = "The same runs; the convention alone moves " + (", ".join(moves) or "nothing that could be fitted") + "."
    reasons: dict[str, list[str]] = {}
    for row in result.rows:
        for part, why in row.absent.items():
            parts = reasons.setdefault(why, [])
            parts += [part] if part not in parts else []
    lines = [f"{', '.join(parts)}: {why}" for why, parts in reasons.items()]
    head = ["N", "rule of C", "alpha of L(N)", "exponent of N_opt", "of D_opt", "of L_opt", "N_opt at C = 1 FLOP"]
    return html.table(head, rows) + html.note(words) + html.items(lines)


def _routes(analysis: StudyAnalysis) -> str:
    if analysis.routes is None:
        return ""
    rows = []
    for row in (*analysis.routes.rows, *analysis.routes.differences):
        ends = "-" if row.low is None else f"{row.low:.4g} to {row.high:.4g}"
        outside = "" if row.extrapolation is None or row.extrapolation <= 1 else f"{row.extrapolation:.3g} x"
        apart = "disagree" if row in analysis.routes.differences and row.disagrees else ""
        rows.append([row.route, row.quantity, f"{row.value:.4g}", ends, outside, apart])
    head = ["route", "quantity", "value", f"{LEVEL:.0%} interval", "extrapolated", ""]
    return html.text("The routes side by side, then their differences (ratios for sizes and tokens):") + html.table(
        head, rows
    )


def _flatness(analysis: StudyAnalysis) -> str:
    rows = []
    for route, row in analysis.flatness.items():
        ends = [_estimate(end) if end is not None else "not measured" for end in (row.n_low, row.n_high)]
        costs = "; ".join(
            f"{c.factor:g} N_opt: +{c.excess.value:.3g}"
            + ("" if c.compute_multiplier is None else f" (x {c.compute_multiplier.value:.2f} compute)")
            for c in row.costs
        )
        rows.append([route, f"{row.flops:.3g}", f"{row.n_opt:.4g}", f"{row.loss:.4f}", *ends, costs or "-"])
    if not rows:
        return ""
    share = f"{next(iter(analysis.flatness.values())).within:.0%}"
    head = ["route", "C (FLOP)", "N_opt", f"{analysis.y} ({unit_of(analysis.y)})", f"smallest N within {share}"]
    head += [f"largest N within {share}", "cost of another size"]
    return html.text("How flat the optimum is at the largest compute of each route:") + html.table(head, rows)


def _exponent(parameter: Parameter | None) -> str:
    return "-" if parameter is None else _estimate(Estimate(parameter.value, parameter.low, parameter.high))


def _estimate(estimate: Estimate | None) -> str:
    return "-" if estimate is None else str(estimate)
