"""The section on learning rates: the best rate of each size, those at an edge marked."""

from __future__ import annotations

from varscale_analysis.lr import LearningRateScan
from varscale_analysis.report import html
from varscale_analysis.study import StudyAnalysis
from varscale_analysis.table import unit_of


def rates(analysis: StudyAnalysis) -> str:
    """A table for each number of tokens; empty where every size was trained at one rate."""
    return "".join(_scan(scan) for scan in analysis.rates)


def _scan(scan: LearningRateScan) -> str:
    """A row a size."""
    unit = unit_of(scan.y)
    head = [scan.n, "rates", "from", "to", "best rate", f"loss ({unit})", f"half or twice the rate costs ({unit})", ""]
    rows = []
    for p in scan.profiles:
        ends = [f"{rate:.3g}" for rate in (p.rate_R[0], p.rate_R[-1], p.best)]
        costs = "-" if p.doubled is None else f"{p.doubled:.4f}"
        mark = "" if p.edge is None else f"AT THE EDGE: the {p.edge} rate"
        rows.append([f"{p.n:,.0f}", str(len(p.rate_R)), *ends, f"{p.loss:.4f}", costs, mark])
    rows += [[f"{size:,.0f}", *["-"] * 6, "EVERY RATE DIVERGED"] for size in scan.lost]
    words = f"Runs {scan.at}. The best rate of every size lies between worse ones."
    if scan.at_edge:
        words = (
            f"Runs {scan.at}. {len(scan.at_edge)} of {len(scan.profiles)} sizes have their best rate at an edge: it "
            "may be beyond, and "
        )
        words += "their loss too high. Widen the rates before fitting a law to these sizes."
    if scan.exponent is not None:
        words += f" Best rate ~ N^a over the sizes with an interior optimum: {scan.exponent}."
    tried = html.note(f"Laws and frontiers take the runs of one rate of each size: {scan.chosen[1]}.")
    return html.text(words) + html.table(head, rows) + tried
