"""StudyChecks: what else the main law of a study could have said, had something been chosen otherwise or left out.

What it misses beside the noise of seeds, profiles of its parameters beside their bootstrap, the sensitivity table,
other laws on the same points, the conventions of N and C, rolling hold-out. A part that the data cannot carry is absent
with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ParamSpec, TypeVar

import numpy as np

from varscale_analysis.conventions import ConventionTable, analyse_conventions
from varscale_analysis.fit import FitError
from varscale_analysis.frontier import Frontier
from varscale_analysis.holdout_scores import RollingHoldout
from varscale_analysis.lack_of_fit import LackOfFit, lack_of_fit
from varscale_analysis.laws import BrokenPowerLaw, ChinchillaLaw, Law, LawFit, PowerLaw, SaturatingPowerLaw
from varscale_analysis.parametric import ComputeCost
from varscale_analysis.profile import Profile
from varscale_analysis.rolling import rolling_holdout
from varscale_analysis.selection import LawScore, LikelihoodRatio, compare_laws, likelihood_ratio
from varscale_analysis.sensitivity import Sensitivity, sensitivity_of
from varscale_analysis.table import LEVEL, SIZES, RunTable, RunTableError

PROFILED = ("E", "alpha", "beta")  # prefactors are left out
CONVENTION_DRAWS = 200  # at most: eight frontiers are extracted again in each
MOST_SIZES = 24  # left out or predicted one by one: a table of hundreds of different sizes has no ladder

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Attempts:
    """Parts of an analysis, each made or absent with its reason in ``absent``."""

    def __init__(self) -> None:
        self.absent: dict[str, str] = {}

    def __call__(self, part: str, make: Callable[_P, _T], *args: _P.args, **options: _P.kwargs) -> _T | None:
        """What ``make`` returns; None where it raises because the data cannot carry it."""
        try:
            return make(*args, **options)
        except (FitError, RunTableError) as error:
            self.absent[part] = str(error)
            return None


@dataclass(frozen=True, eq=False)
class StudyChecks:
    """The checks of one law.

    Attributes:
        law: the law's name.
        profiles: of E and the exponents, by name.
        sensitivity: the law under every choice; None if absent.
        selection: laws on the same points, best first. ``ratio``: of the two nested ones; None if absent.
        conventions: exponents under every count of N and rule of C; None if absent.
        rolling: each size predicted from the smaller ones; None if absent.
        lack_of_fit: what the law misses beside what seeds differ by; None if absent.
        branched: whether runs share trunks: then there are no profiles, and selection takes the runs as independent.
    """

    law: str
    profiles: Mapping[str, Profile]
    sensitivity: Sensitivity | None
    selection: tuple[LawScore, ...]
    ratio: LikelihoodRatio | None
    conventions: ConventionTable | None
    rolling: RollingHoldout | None
    lack_of_fit: LackOfFit | None = None
    branched: bool = False

    def summary(self) -> str:
        """A line or two for each check; empty where all are absent."""
        lines = [] if self.lack_of_fit is None else [self.lack_of_fit.summary()]
        if self.profiles:
            ends = (
                f"{name} [{low:.4g}, {high:.4g}]"
                for name, p in self.profiles.items()
                for low, high in (p.interval(LEVEL),)
            )
            lines.append(f"{LEVEL:.0%} intervals by profile: {', '.join(ends)}")
        if self.sensitivity is not None:
            lines.append(_sensitivity_line(self.sensitivity))
        if self.selection:
            weights = ", ".join(f"{row.law} {row.weight:.3f}" for row in self.selection)
            text = f"selection, Akaike weights on the same points{', taken as independent' * self.branched}: {weights}"
            lines.append(text + ("" if self.ratio is None else f"; likelihood ratio p = {self.ratio.p:.2g}"))
        if self.rolling is not None:
            lines.append(_rolling_line(self.rolling))
        if self.conventions is not None:
            names = ("alpha", "n_exponent", "d_exponent", "l_exponent")
            moves = [f"{name} {moved:.3g}" for name in names if (moved := self.conventions.spread(name)) is not None]
            lines.append(f"conventions of N and C alone move: {', '.join(moves) or 'nothing that could be fitted'}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an interval end that a profile never reaches is None."""
        intervals = {}
        for name, profile in self.profiles.items():
            ends = [end if np.isfinite(end) else None for end in profile.interval(LEVEL)]
            intervals[name] = {"low": ends[0], "high": ends[1]}
        parts = ("sensitivity", "conventions", "rolling")
        return {
            "law": self.law,
            "profiles": intervals,
            "selection": [asdict(row) for row in self.selection],
            "ratio": None if self.ratio is None else asdict(self.ratio),
            "lack_of_fit": None if self.lack_of_fit is None else asdict(self.lack_of_fit),
            **{name: None if (part := getattr(self, name)) is None else part.to_dict() for name in parts},
        }


def checks_of(
    table: RunTable,
    fit: LawFit,
    frontier: Frontier | None,
    attempt: Attempts,
    *,
    everything: RunTable,
    bootstrap: int = 1000,
    seed: int = 0,
) -> StudyChecks:
    """The checks of a fitted law; ``attempt`` keeps what is absent and why.

    Args:
        table: the runs behind the fit.
        fit: the law.
        frontier: the route that conventions are compared by; None: only the law of N is.
        everything: the runs behind the frontier.
        bootstrap, seed: draws of each interval and their seed.
    """
    law, y = fit.form, fit.y
    assert isinstance(law, Law)
    profiles, fits = {}, {}
    branched = fit.points.trunk is not None
    if branched:
        attempt.absent["profiles"] = "runs branched from shared trunks, and a profile takes all runs as independent"
    logs = {name for name, log in zip(law.names, law.log_linear, strict=False) if log}
    for name in PROFILED:
        parameter = fit.params.get(name)
        if branched or parameter is None or parameter.given or parameter.at_bound or name in logs:
            continue
        profile = attempt(f"profile of {name}", fit.profile, name)
        if profile is not None:
            profiles[name] = profile
    for name, other in _candidates(law).items():
        found = attempt(f"selection/{name}", other.fit, table, y, bootstrap=0)
        if found is not None:
            fits[name] = found
    nested = ("chinchilla-tied", "chinchilla") if isinstance(law, ChinchillaLaw) else ("power", "saturating")
    draws = min(bootstrap, CONVENTION_DRAWS)
    return StudyChecks(
        law=fit.law,
        profiles=profiles,
        sensitivity=attempt("sensitivity", sensitivity_of, law, table, y, sizes=fit.sizes <= MOST_SIZES),
        selection=compare_laws(fits) if len(fits) > 1 else (),
        ratio=likelihood_ratio(*(fits[name] for name in nested)) if set(nested) <= fits.keys() else None,
        conventions=attempt("conventions", _conventions, everything, fit, frontier, draws, seed),
        rolling=attempt("rolling hold-out", _rolling, table, law, y, bootstrap, seed),
        lack_of_fit=attempt("lack of fit", lack_of_fit, fit),
        branched=branched,
    )


def _candidates(law: Law) -> dict[str, Law]:
    """Laws of the same columns under the same objective."""
    if isinstance(law, ChinchillaLaw):
        free = replace(law, tied=False, fixed={})
        return {"chinchilla": free, "chinchilla-tied": replace(free, tied=True)}
    if isinstance(law, (PowerLaw, SaturatingPowerLaw, BrokenPowerLaw)) and not law.rate:
        options: dict[str, Any] = {"n": law.n, "per": law.per, "objective": law.objective}
        return {kind.name: kind(**options) for kind in (PowerLaw, SaturatingPowerLaw, BrokenPowerLaw)}
    return {}


def _rolling(table: RunTable, law: Law, y: str, bootstrap: int, seed: int) -> RollingHoldout:
    """Along N, for a law of N and D along compute."""
    by = "flops_train" if len(law.roles) > 1 and table.has("flops_train") else next(iter(law.roles.values()))
    steps = len(np.unique(table.values(by)))
    if steps > MOST_SIZES:
        raise FitError(
            f"{by} has {steps} values, more than {MOST_SIZES}: no ladder; call rolling_holdout on the runs of one"
        )
    return rolling_holdout(table, law, y, by=by, bootstrap=bootstrap, seed=seed)


def _conventions(table: RunTable, fit: LawFit, frontier: Frontier | None, draws: int, seed: int) -> ConventionTable:
    sizes = [name for name in SIZES if table.has(name)]
    if len(sizes) < 2 and frontier is None:
        raise FitError(f"the table counts N in one way ({', '.join(sizes)}) and has no frontier: nothing to compare")
    route = None if frontier is None or frontier.route == "envelope" else _route(frontier, fit, draws, seed)
    return analyse_conventions(table, y=fit.y, sizes=sizes, route=route, bootstrap=draws, seed=seed)


def _route(frontier: Frontier, fit: LawFit, draws: int, seed: int) -> Callable[[RunTable, str], Frontier]:
    """The frontier's own route, for a table with N and C counted otherwise."""

    def by_isoflop(table: RunTable, n: str) -> Frontier:
        minimum = frontier.profiles[0].minimum
        return Frontier.from_isoflop(table, n=n, y=fit.y, minimum=minimum, bootstrap=draws, seed=seed)

    def by_law(table: RunTable, n: str) -> Frontier:
        form = fit.form
        assert isinstance(form, ChinchillaLaw)
        of_n = replace(form, n=n).fit(table, fit.y, bootstrap=draws, seed=seed)
        columns = (table.values(name) for name in ("flops_train", n, "tokens_seen"))
        return Frontier.from_law(of_n, cost=ComputeCost.from_columns(*columns))

    return by_isoflop if frontier.route == "isoflop" else by_law


def _sensitivity_line(table: Sensitivity) -> str:
    """Over the choices that leave E as it is, and over values of E that are given."""
    rows = [row for row in table.rows if row.values]

    def span(name: str, given: bool) -> str:
        values = [row.values[name] for row in rows if (row.kind == "offset") == given and name in row.values]
        return f"{name} {min(values):.4g} to {max(values):.4g}" if values else ""

    names = [name for name in ("E", "alpha", "beta", "a") if name in rows[0].values]
    others = sum(row.kind != "offset" for row in table.rows)
    text = f"sensitivity, {others} choices one at a time: {', '.join(span(name, False) for name in names)}"
    by_offset = [found for name in names if name != "E" and (found := span(name, True))]
    text += f"; with E given from 0 to just below the least loss: {', '.join(by_offset)}" if by_offset else ""
    refused = len(table.rows) - len(rows)
    return text + (f"; {refused} refused" if refused else "")


def _rolling_line(rolling: RollingHoldout) -> str:
    """One line; the table stands in the report."""
    text = f"rolling hold-out, {rolling.law}: {rolling.coverage}"
    score, naive = rolling.log_score, rolling.naive_log_score
    if score is not None and naive is not None:
        text += f", mean log score {score:.2f}, of repeating the previous size {naive:.2f}"
    refused = len(rolling.rows) - len(rolling.scored)
    return text + (f"; {refused} refused" if refused else "")
