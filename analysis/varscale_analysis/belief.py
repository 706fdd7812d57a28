"""Belief: what is known about a law before the next sweep, and what runs at given points would tell.

A design can only be chosen for a law that is known already: its parameters come from a fit (with its draws, its noise
and the runs in hand) or from a guess with a spread. A run at x tells J J' / s^2 about the parameters, J being the
slopes of the law there and s the noise of a run on the scale of the objective (log loss: relative); m runs at one x
share their deviation of sd tau from the law, so they tell m / (s^2 + m tau^2).

Source: Chernoff (1953) for designs that are optimal at a guess; Chaloner and Verdinelli (1995) for the average over
what is believed. Shapes: B draws, P inner parameters, F free ones, n points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from varscale_analysis.fit import FitError, Floats, Problem
from varscale_analysis.laws.law import Law
from varscale_analysis.laws.result import LawFit
from varscale_analysis.points import Points

DRAWS = 32  # of a fit or a guess that a design is averaged over
_SEED = 11


@dataclass(frozen=True)
class Guess:
    """A law that was never fitted.

    Attributes:
        law: its form.
        values: every parameter of ``law`` by its reported name, such as E, A, B, alpha, beta.
        spread: how far each may be off, as a share: of exponents and of E, and of the terms in the middle of the
            candidates (a prefactor alone would move by powers of ten).
    """

    law: Law
    values: Mapping[str, float]
    spread: float = field(default=0.2, kw_only=True)

    def __post_init__(self) -> None:
        missing = [name for name in self.law.names if name not in {*self.values, *self.law.fixed}]
        if missing:
            raise ValueError(
                f"a guess of {self.law.formula} needs every parameter; {', '.join(missing)} have no value: copy them "
                "from a published law or fit a small sweep first"
            )
        if not 0 <= self.spread < 1:
            raise ValueError(f"the spread of a guess is a share from 0 to below 1, got {self.spread:g}")


@dataclass(frozen=True, eq=False)
class Belief:
    """The law as it is known.

    Attributes:
        theta, centre: inner parameters (P,) and centre of the coordinates.
        draws: (B, P), what theta may be as well; at least one row.
        seed_sd, size_sd: noise of a run, and deviation from the law that runs of one design share, on the scale of the
            objective.
        points: the runs in hand; None for a guess.
    """

    law: Law
    theta: Floats
    centre: Floats
    draws: Floats
    seed_sd: float
    size_sd: float
    points: Points | None

    @classmethod
    def of(
        cls,
        prior: LawFit | Guess,
        x: Mapping[str, Floats],
        *,
        noise: float | None = None,
        size_noise: float | None = None,
    ) -> Self:
        """From a fit or a guess, for candidates ``x`` by role.

        ``noise`` and ``size_noise`` replace the fit's own. Raises ``ValueError`` for noise that is missing or not
        positive, and for a law of several targets a run.
        """
        law = prior.form if isinstance(prior, LawFit) else prior.law
        assert isinstance(law, Law)
        if law.correlated:
            raise ValueError(f"{law.formula} has several targets a run; design the sweep for the law of one of them")
        if isinstance(prior, LawFit):
            noise = prior.diagnostics.seed_sd if noise is None else noise
            size_noise = prior.diagnostics.size_sd if size_noise is None else size_noise
        size_noise = 0.0 if size_noise is None else size_noise
        if noise is None or not noise > 0 or not size_noise >= 0:
            raise ValueError(
                f"the noise of a run is {noise} and what runs of one size share {size_noise:g}; give the spread of log "
                "loss between seeds, such as noise=0.003, and at least 0 for the other"
            )
        if isinstance(prior, LawFit):
            theta, centre = np.array(prior.theta), np.array(prior.centre)
            draws = prior.draws[:: max(1, len(prior.draws) // DRAWS)][:DRAWS]
            draws = draws if len(draws) and not prior.intervals.startswith("jackknife") else theta[None]
            return cls(law, theta, centre, draws, float(noise), float(size_noise), prior.points)
        theta, centre = _at(prior, x)
        z_BP = np.random.default_rng(_SEED).standard_normal((DRAWS, len(theta)))
        logs = np.zeros(len(theta), dtype=bool)
        logs[: len(law.log_linear)] = law.log_linear
        moved = theta + prior.spread * z_BP * np.where(logs, 1.0, theta)
        free = free_parameters(law)
        draws = np.clip(np.where(free, moved, theta), *law.bounds()) if prior.spread else theta[None]
        return cls(law, theta, centre, draws, float(noise), float(size_noise), None)

    def loss(self, theta_BP: Floats, x: Mapping[str, Floats]) -> Floats:
        """The law (B, n)."""
        return self.law.evaluate(theta_BP, self._u(x))[0]

    def jacobian(self, theta_BP: Floats, x: Mapping[str, Floats]) -> Floats:
        """Slopes (B, F, n) of log loss, or of loss for an objective of raw residuals, in the free parameters."""
        f, jacobian = self.law.evaluate(theta_BP, self._u(x))
        scaled = jacobian / f[:, None] if self.law.criterion.residual == "log" else jacobian
        return np.asarray(scaled[:, free_parameters(self.law)])

    def _u(self, x: Mapping[str, Floats]) -> Floats:
        return self.law.raw_coordinates(x) - self.centre[:, None]


def free_parameters(law: Law) -> NDArray[np.bool_]:
    """Which inner parameters (P,) are fitted."""
    free = np.ones(len(law.bounds()[0]), dtype=bool)
    free[list(law.pins()[0])] = False
    return free


def columns(law: Law, x: Mapping[str, ArrayLike]) -> dict[str, Floats]:
    """The columns of a law, flat. Raises ``ValueError`` as ``Form.columns``."""
    return {role: values.ravel() for role, values in law.columns(None, x).items()}


def _at(guess: Guess, x: Mapping[str, Floats]) -> tuple[Floats, Floats]:
    """theta and centre of a guess in the middle of the candidates, by a fit of the law to its own values there."""
    law = guess.law
    given = replace(law, fixed={**guess.values, **law.fixed})
    held, pinned = given.pins()
    lower, upper = given.bounds()
    theta = np.array([held[i] for i in range(len(lower))])
    if not ((theta >= lower) & (theta <= upper)).all():
        raise ValueError(f"{dict(guess.values)} lies outside what {law.formula} allows; check signs and units")
    raw = given.raw_coordinates(x)
    centre = np.array([pinned.get(v, 0.0) for v in range(len(raw))])
    y = given.evaluate(theta[None], raw - centre[:, None])[0][0]
    try:
        problem = Problem(law, Points(x, y, np.ones(len(y)), "y", "1"))
        found, _, certificate = problem.optimum()
    except FitError as error:
        raise ValueError(f"the guess cannot be placed among the candidates: {error}") from None
    reported = law.report(found[None], problem.centre)
    off = {n: abs(float(reported[n][0]) / v - 1) for n, v in guess.values.items() if v and n in reported}
    if not certificate.certified or max(off.values(), default=0.0) > 1e-2:
        raise ValueError(
            "the candidates do not tell the parameters of the guess apart, so no sweep among them can; offer a wider "
            "range of sizes, or (for a law of N and D) several D for each N"
        )
    return found, problem.centre
