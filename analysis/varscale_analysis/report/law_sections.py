"""Sections on the laws: parameters, certificates, intervals, sensitivity, the exponent against E, other laws."""

from __future__ import annotations

from varscale_analysis.laws.result import LawFit
from varscale_analysis.report import html
from varscale_analysis.study import StudyAnalysis
from varscale_analysis.table import LEVEL


def laws(analysis: StudyAnalysis) -> str:
    """Every law with its parameters and what it leaves."""
    rows = []
    for fit in _fits(analysis):
        d = fit.diagnostics
        rms = f"{d.rms:.3%}" if fit.residual == "log" else f"{d.rms:.4g} {fit.y_unit}"
        numbers = ", ".join(str(p) for p in (*fit.params.values(), *fit.derived.values()))
        r = "-" if d.pearson_r is None else f"{d.pearson_r:.4f}"
        rows.append([fit.y, fit.formula, numbers, fit.basis, rms, r])
    head = ["loss", "law", f"parameters, {LEVEL:.0%} intervals", "fitted to", "rms", "Pearson r*"]
    words = (
        f"Laws of N hold {analysis.at}: E and alpha move with D. "
        if any(fit.form.fixed_tokens for fit in analysis.fits.values())
        else ""
    )
    words += "* Pearson's r of log loss and log size is printed, not evidence: it stays near -1 for wrong offsets."
    return html.table(head, rows, words=True) + html.note(words) if rows else ""


def certificates(analysis: StudyAnalysis) -> str:
    """Why each fit is the optimum of its objective, and how its draws went."""
    rows = []
    for fit in _fits(analysis):
        c, d = fit.certificate, fit.diagnostics
        draws = f"{d.draws} of {d.draws_asked}" if d.draws_asked else "-"
        again = f"{d.draws_agreeing} of {d.draws_checked}" if d.draws_checked else "-"
        basin = "-" if c.next_basin is None else f"+{c.next_basin:.2%}"
        cells = [_named(fit), fit.objective.label, f"{c.starts_agreeing} of {c.starts_tried}", basin]
        cells += [f"{c.gradient:.0e}", f"{c.identifiability:.1e}", ", ".join(c.at_bounds) or "none", draws, again]
        rows.append([*cells, "; ".join(c.faults) or "certified"])
    head = ["law", "objective", "starts agreeing", "next basin", "gradient", "identifiability", "at a bound"]
    head += ["draws certified", "draws agreeing with other starts", "verdict"]
    words = (
        "Gradient: scale-free, 0 at an optimum. Identifiability: the smallest singular value of the Jacobian with "
        "columns of unit length; near 0, parameters cannot be told apart. Draws: refits behind the intervals, and "
        "those of a random 5 % that many other starts do not improve on."
    )
    return html.table(head, rows) + html.note(words) if rows else ""


def intervals(analysis: StudyAnalysis) -> str:
    """Every parameter with its interval by draws, and by profile for the checked law."""
    profiles = {} if analysis.checks is None else analysis.checks.profiles
    rows = []
    for fit in analysis.fits.values():
        for p in (*fit.params.values(), *fit.derived.values()):
            drawn = "-" if p.low is None else f"{p.low:.4g} to {p.high:.4g}"
            profile = profiles.get(p.name) if fit is analysis.main else None
            traced = "-" if profile is None else "{:.4g} to {:.4g}".format(*profile.interval(LEVEL))
            state = "given" if p.given else "at its bound" if p.at_bound else ""
            rows.append([_named(fit), p.name, f"{p.value:.4g}", p.unit, drawn, traced, fit.intervals, state])
    head = ["law", "parameter", "value", "unit", f"{LEVEL:.0%} by draws", f"{LEVEL:.0%} by profile", "draws of", ""]
    return html.table(head, rows)


def sensitivity(analysis: StudyAnalysis) -> str:
    """The main law under every choice."""
    result = None if analysis.checks is None else analysis.checks.sensitivity
    if result is None:
        return ""
    names = list(result.rows[0].values)
    rows = []
    for row in result.rows:
        cells = [f"{row.values[name]:.4g}" if name in row.values else "-" for name in names]
        rows.append([row.change, str(row.points), *cells, row.refused or ""])
    head = ["choice", "points", *names, "refused"]
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    words = f"{result.y}, {result.law}: one choice changed at a time. "
    words += ", ".join(
        f"{name} runs from {low:.4g} to {high:.4g}" for name in names for low, high in (result.span(name),)
    )
    return html.table(head, rows) + html.note(words + ".")


def exponents(analysis: StudyAnalysis) -> str:
    """The exponent for each fixed E."""
    rows = [[f"{row.offset:.3f}", f"{row.alpha:.4f}", f"{row.pearson_r:.5f}"] for row in analysis.exponents[::2]]
    head = ["fixed E (nat/token)", "alpha (1)", "Pearson r (not evidence)"]
    return html.text("The exponent as a function of E:") + html.table(head, rows) if rows else ""


def selection(analysis: StudyAnalysis) -> str:
    """Other laws on the same points."""
    checks = analysis.checks
    if checks is None or not checks.selection:
        return ""
    rows = []
    for row in checks.selection:
        aicc = "-" if row.aicc is None else f"{row.aicc:.2f}"
        cells = [row.law, str(row.params), f"{row.log_likelihood:.2f}", f"{row.aic:.2f}", aicc, f"{row.bic:.2f}"]
        rows.append([*cells, f"{row.weight:.3f}"])
    words = "The same points, best first; lower criteria are better. "
    words += (
        "Branches of one trunk are taken as independent runs, so differences look surer than they are. "
        * checks.branched
    )
    if checks.ratio is not None:
        p = checks.ratio
        words += f"Likelihood ratio of the two nested laws: {p.statistic:.2f}, {p.extra} more parameters, p = {p.p:.2g}"
        words += " (conservative: the smaller law lies on a bound of the larger)." if p.at_bound else "."
    head = ["law", "parameters", "log-likelihood", "AIC", "AICc", "BIC", "Akaike weight"]
    return html.table(head, rows) + html.note(words)


def _fits(analysis: StudyAnalysis) -> list[LawFit]:
    """The laws of the study, then those of L_opt(C)."""
    fits = list(analysis.fits.values())
    for frontier in analysis.frontiers.values():
        fits += [fit for fit in (frontier.saturating, frontier.power) if fit is not None]
    return fits


def _named(fit: LawFit) -> str:
    return f"{fit.law}, {fit.y} of {', '.join(fit.form.roles.values())}"
