"""From a study folder or a table to its ``StudyAnalysis``: which laws, frontiers and checks its runs can carry.

Laws of N hold at one D, so they are fitted to the runs of one D; laws of N and D and IsoFLOP profiles need several.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from varscale_analysis.checks import Attempts, StudyChecks, checks_of
from varscale_analysis.fit import FitError
from varscale_analysis.flatness import flatness_of
from varscale_analysis.frontier import Frontier
from varscale_analysis.holdout import HoldoutScore, Prediction, PredictionError, leave_largest_out
from varscale_analysis.ladder import LOSSES, ladder_of, per_scale_of
from varscale_analysis.laws import (
    BrokenPowerLaw,
    ChinchillaLaw,
    ErrorPowerLaw,
    ErrorSaturatingLaw,
    Law,
    LawFit,
    PowerLaw,
    SaturatingPowerLaw,
)
from varscale_analysis.lr import one_rate_a_size
from varscale_analysis.objective import Objective, squares
from varscale_analysis.offset import ExponentAtOffset, exponent_against_offset
from varscale_analysis.parametric import ComputeCost
from varscale_analysis.routes import compare_frontiers
from varscale_analysis.study import PREDICTION_FILE, StudyAnalysis
from varscale_analysis.table import SIZES, TOKENS_TOLERANCE, RunTable, RunTableError

LAWS: Mapping[str, Callable[..., Law]] = {
    "saturating": SaturatingPowerLaw,
    "power": PowerLaw,
    "broken": BrokenPowerLaw,
    "chinchilla": ChinchillaLaw,
    "chinchilla-tied": partial(ChinchillaLaw, tied=True),
    "error-power": ErrorPowerLaw,
    "error-saturating": ErrorSaturatingLaw,
}


def analyse(
    source: Path | str | RunTable,
    *,
    n: str | None = None,
    y: str = "val_nats_per_token_avg",
    laws: Sequence[str] | None = None,
    objective: Objective | None = None,
    holdout: Prediction | None = None,
    tokens: float | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> StudyAnalysis:
    """Analyse a table, or a study folder that holds ``runs.csv`` and, for the envelope, ``curves.csv``.

    Args:
        source: the table or the folder.
        n: convention of N, one of ``table.SIZES``; by default params_nonembed, else the first that the table has.
        y: the loss of laws, hold-out, frontiers and exponents.
        laws: which to fit to y, of ``LAWS``; the first is checked. By default saturating and power, to y and to both
            losses in nats, where all runs (or those of ``tokens``) have one D, and chinchilla where there are several.
        objective: of every law; least squares of log residuals by default.
        holdout: a registered prediction; by default ``prediction.json`` of the folder, else leave-the-largest-out.
        tokens: take only runs trained on this many tokens (within 1 %) for the laws of N; all others use all runs.
        bootstrap, seed: draws of each interval and their seed.

    What the runs cannot carry is in ``absent`` with its reason. Raises ``RunTableError`` for a table that cannot be
    used, ``ValueError`` for an unknown law or convention of N.
    """
    folder = None if isinstance(source, RunTable) else Path(source)
    table = source if isinstance(source, RunTable) else RunTable.read(Path(source) / "runs.csv")
    if laws is not None and (unknown := [name for name in laws if name not in LAWS]):
        raise ValueError(f"there is no law {', '.join(unknown)}; the laws are {', '.join(LAWS)}")
    n, attempt = _convention(table, n), Attempts()
    scanned = attempt("learning rates", one_rate_a_size, table, n=n, y=y, bootstrap=bootstrap, seed=seed)
    table, scans = (table, ()) if scanned is None else scanned
    study = _Study(table, n, y, tokens, objective or squares(), bootstrap, seed, attempt)
    used = study.used
    if scanned is None:
        attempt.absent["laws, frontiers, hold-out"] = "which rates' runs they may have is not known: see learning rates"
    fits = {} if scanned is None else study.fits(laws)
    frontiers = {} if scanned is None else study.frontiers(fits)
    flatness = {
        route: rows[-1]
        for route, frontier in frontiers.items()
        if (rows := attempt(f"flatness by {route}", flatness_of, frontier, _largest(frontier), seed=seed)) is not None
    }
    settled = study.at_one_d and scanned is not None
    prediction, score = study.holdout(fits, holdout, folder) if settled else (None, None)
    exponents = attempt("exponent against E", study.exponents) if settled else None
    per_scale = per_scale_of(used, study.n) if study.at_one_d else {}
    if study.at_one_d and not per_scale:
        attempt.absent["nats per scale"] = "the curves hold no nats_per_token with a scale; collect them with the runs"
    main = next((fit for fit in fits.values() if fit.y == y), None)
    return StudyAnalysis(
        folder=folder,
        table=table,
        used=used,
        everything=study.everything,
        n=study.n,
        y=y,
        at=study.at,
        tokens=tokens,
        sizes=ladder_of(used, study.n, y),
        fits=fits,
        frontiers=frontiers,
        routes=attempt("routes", compare_frontiers, list(frontiers.values())) if len(frontiers) > 1 else None,
        flatness=flatness,
        exponents=exponents or (),
        per_scale=per_scale,
        prediction=prediction,
        score=score,
        checks=None if main is None else study.checks(main, frontiers),
        absent=attempt.absent,
        rates=scans,
    )


@dataclass(frozen=True)
class _Study:
    """The runs of a study, which of them a law may have, and the parts of the analysis that need both."""

    table: RunTable
    n: str
    y: str
    tokens: float | None
    objective: Objective
    bootstrap: int
    seed: int
    attempt: Attempts = field(default_factory=Attempts)

    @cached_property
    def everything(self) -> RunTable:
        """Every run that may enter a fit."""
        return self.table.comparable(fixed_tokens=False)

    @cached_property
    def several(self) -> bool:
        """Whether the runs have several D."""
        if not self.everything.has("tokens_seen"):
            return False
        tokens = self.everything.values("tokens_seen")
        return bool(tokens.max() > tokens.min() * (1 + TOKENS_TOLERANCE))

    @property
    def at_one_d(self) -> bool:
        """Whether there are runs of one D for laws of N."""
        return self.tokens is not None or not self.several

    @cached_property
    def used(self) -> RunTable:
        """The runs of the D that was asked for, else every run."""
        if self.tokens is None:
            return self.everything
        return self.table.select(tokens_seen=self.tokens).comparable(fixed_tokens=True)

    @property
    def at(self) -> str:
        """The D of the runs in words."""
        if self.at_one_d:
            return self.used.at_tokens
        tokens = self.everything.values("tokens_seen")
        return f"D from {tokens.min():.4g} to {tokens.max():.4g} tokens"

    def fits(self, laws: Sequence[str] | None) -> dict[str, LawFit]:
        """Every law that is wanted and can be fitted, by "law/loss"."""
        wanted = [(name, self.y) for name in laws or ()]
        if laws is None and self.at_one_d:
            losses = dict.fromkeys((self.y, *(loss for loss in LOSSES if self.table.has(loss))))
            wanted += [(name, loss) for loss in losses for name in ("saturating", "power")]
        elif laws is None:
            why = "the runs have several D, and E and alpha depend on it; name one with tokens= (--tokens)"
            self.attempt.absent["laws of N"] = why
        if laws is None and self.several:
            wanted.append(("chinchilla", self.y))
        elif laws is None:
            self.attempt.absent["laws of N and D"] = "every run has one D; train sizes on several numbers of tokens"
        out = {}
        for name, loss in wanted:
            law = LAWS[name](n=self.n, objective=self.objective)
            rows = self.used if law.fixed_tokens else self.everything
            fit = self.attempt(f"{name}/{loss}", law.fit, rows, loss, bootstrap=self.bootstrap, seed=self.seed)
            if fit is not None:
                out[f"{name}/{loss}"] = fit
        return out

    def frontiers(self, fits: Mapping[str, LawFit]) -> dict[str, Frontier]:
        """The compute frontier by every route that the runs allow."""
        found: dict[str, Frontier | None] = {}
        options: dict[str, Any] = {"n": self.n, "y": self.y, "bootstrap": self.bootstrap, "seed": self.seed}
        found["envelope"] = self.attempt("frontier by envelope", Frontier.from_envelope, self.table, **options)
        if self.several:
            found["isoflop"] = self.attempt("frontier by isoflop", Frontier.from_isoflop, self.table, **options)
        else:
            self.attempt.absent["frontier by isoflop"] = "one D for all sizes: no two sizes share a budget"
        law = fits.get(f"chinchilla/{self.y}")
        if law is not None:
            found["law"] = self.attempt("frontier by law", self._by_law, law)
        return {route: frontier for route, frontier in found.items() if frontier is not None}

    def _by_law(self, law: LawFit) -> Frontier:
        c, n, d = (self.everything.values(name) for name in ("flops_train", self.n, "tokens_seen"))
        cost = ComputeCost.from_columns(c, n, d)
        return Frontier.from_law(law, cost=cost, flops_range=(float(c.min()), float(c.max())))

    def holdout(
        self, fits: Mapping[str, LawFit], given: Prediction | None, folder: Path | None
    ) -> tuple[Prediction | None, HoldoutScore | None]:
        """The registered prediction (given, or in the folder) or leave-the-largest-out, and its score."""
        laws = [fit.form for fit in fits.values() if isinstance(fit.form, (PowerLaw, SaturatingPowerLaw))]
        law = laws[0] if laws else SaturatingPowerLaw(n=self.n, objective=self.objective)
        prediction = given
        try:
            if prediction is None and folder is not None and (folder / PREDICTION_FILE).exists():
                prediction = Prediction.read(folder / PREDICTION_FILE)
            if prediction is None:
                return leave_largest_out(self.used, law, y=self.y, bootstrap=self.bootstrap, seed=self.seed)
            rows = self.table if self.tokens is None else self.table.select(tokens_seen=self.tokens)
            return prediction, prediction.compare(rows)
        except (FitError, PredictionError, RunTableError) as error:
            self.attempt.absent["hold-out"] = str(error)
            return prediction, None

    def exponents(self) -> tuple[ExponentAtOffset, ...]:
        """alpha for each fixed E."""
        return exponent_against_offset(self.used.values(self.n), self.used.values(self.y))

    def checks(self, main: LawFit, frontiers: Mapping[str, Frontier]) -> StudyChecks:
        """The checks of the main law; conventions by the first route that has an N_opt(C), by a law if it is that."""
        by_law = isinstance(main.form, ChinchillaLaw)
        usable = (f for f in frontiers.values() if f.n_opt is not None and (f.route != "law" or by_law))
        route = next(usable, None)
        rows = self.used if main.form.fixed_tokens else self.everything
        options: dict[str, Any] = {"bootstrap": self.bootstrap, "seed": self.seed}
        return checks_of(rows, main, route, self.attempt, everything=self.everything, **options)


def _convention(table: RunTable, n: str | None) -> str:
    """The column of N. Raises ``ValueError`` for an unknown convention, ``RunTableError`` for a table without one."""
    if n is not None and n not in SIZES:
        raise ValueError(f"n is {n!r}; the conventions of N are {', '.join(SIZES)}")
    there = [name for name in SIZES if table.has(name)]
    if not there:
        raise RunTableError([f"the table has no sizes; name the column that holds one of {', '.join(SIZES)}"])
    return there[0] if n is None else n


def _largest(frontier: Frontier) -> list[float] | None:
    """The largest compute at which the frontier has an optimum; None where it has none."""
    if frontier.law is not None and frontier.flops_range is not None:
        return [frontier.flops_range[1]]
    return [max(optimum.flops for optimum in frontier.optima)] if frontier.optima else None
