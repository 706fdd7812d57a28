"""Rehearsal: the sweep is simulated many times before it is run, and the intervals it would give are looked at.

Each table is drawn from the law as it is known, with the noise as it is known, for the new runs and those in hand
together. It is fitted, and gets the interval of kind "noise" (see ``bootstrap``) that ``Law.fit`` would report, without
the certificate: fits start from the truth. All tables and their draws are one batch.
Shapes: T tables, B draws of each, n runs, P inner parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from varscale_analysis.belief import Belief, free_parameters
from varscale_analysis.bootstrap import NoiseModel, draw_noise, interval
from varscale_analysis.fit import Floats, Problem
from varscale_analysis.goal import Goal
from varscale_analysis.points import Points
from varscale_analysis.table import LEVEL


@dataclass(frozen=True)
class ExpectedInterval:
    """The interval that a sweep is expected to give.

    Attributes:
        half_width: median over simulated tables, on the goal's scale (of its logarithm for sizes and losses).
        delta_half_width: by the delta method, t_nu sqrt(c' M^-1 c).
        low, high: the interval of this half-width around the value as it is known.
        coverage: share of simulated intervals that hold the truth.
        tables: simulated sweeps that could be fitted, of ``asked``.
    """

    half_width: float
    delta_half_width: float
    low: float
    high: float
    coverage: float
    tables: int
    asked: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def rehearse(
    belief: Belief, goal: Goal, x: Mapping[str, Floats], *, tables: int, draws: int, seed: int
) -> ExpectedInterval | None:
    """Simulate runs at ``x`` (by role, one entry a run) with those in hand; None if no table could be fitted."""
    law, rng = belief.law, np.random.default_rng([seed, 7])
    x_n, w_n = dict(x), np.ones(len(next(iter(x.values()))))
    if belief.points is not None:
        x_n = {role: np.concatenate([belief.points.x[role], values]) for role, values in x_n.items()}
        w_n = np.concatenate([belief.points.w / belief.points.w.mean(), w_n])
    f_n = belief.loss(belief.theta[None], x_n)[0]
    problem = Problem(law, Points(x_n, f_n, w_n, "y", "1"))
    theta, _, _ = problem.optimum()
    truth = float(goal.of(law, theta[None], problem.centre)[0])
    design, params = problem.points.design, law.num_params
    sd_T2 = np.tile([belief.seed_sd, belief.size_sd], (tables, 1))
    y_Tn = _measured(problem, f_n[None], draw_noise(sd_T2, design, rng))
    found = problem.solve(np.repeat(theta[None], tables, axis=0), y_Tn)
    fitted = np.flatnonzero(found.converged)
    noise = [NoiseModel.estimate(r, design, params) for r in _residuals(problem, found.theta, y_Tn)[fitted]]
    low, high, kept = [], [], []
    sd_TB2 = [model.draw_sd(draws, rng) for model in noise if model is not None]
    if not sd_TB2:
        return None
    theta_TP = found.theta[fitted]
    f_Tn = problem.values(theta_TP)
    y_RN = np.concatenate(
        [_measured(problem, f[None], draw_noise(sd, design, rng)) for f, sd in zip(f_Tn, sd_TB2, strict=True)]
    )
    again = problem.solve(np.repeat(theta_TP, draws, axis=0), y_RN)
    value_TB = goal.of(law, again.theta, problem.centre).reshape(-1, draws)
    good_TB = (again.converged & np.isfinite(again.objective)).reshape(-1, draws) & ~np.isnan(value_TB)
    for value_B, good_B in zip(value_TB, good_TB, strict=True):
        if good_B.mean() >= 0.95:  # as Law.fit demands
            one_low, one_high = interval(value_B[good_B], LEVEL)
            low.append(one_low)
            high.append(one_high)
            kept.append(one_low <= truth <= one_high)
    if not kept:
        return None
    half = float(np.median((np.array(high) - np.array(low)) / 2))
    ends = np.array([truth - half, truth + half])
    restore = np.exp if goal.logarithmic(law) else np.asarray
    return ExpectedInterval(
        half_width=half,
        delta_half_width=_delta(belief, goal, problem, theta),
        low=float(restore(ends)[0]),
        high=float(restore(ends)[1]),
        coverage=float(np.mean(kept)),
        tables=len(kept),
        asked=tables,
    )


def _measured(problem: Problem, f_Rn: Floats, noise_Rn: Floats) -> Floats:
    """The law with noise on the scale of the objective, less of it where the weight is larger."""
    noise_Rn = noise_Rn / np.sqrt(problem.points.w)
    if problem.objective.residual == "log":
        return np.asarray(f_Rn * np.exp(noise_Rn))
    return np.maximum(f_Rn + noise_Rn, 1e-3 * f_Rn)


def _residuals(problem: Problem, theta_TP: Floats, y_Tn: Floats) -> Floats:
    """Residuals (T, n) at mean weight."""
    f_Tn = problem.values(theta_TP)
    residual_Tn = np.log(y_Tn / f_Tn) if problem.objective.residual == "log" else y_Tn - f_Tn
    return np.asarray(residual_Tn * np.sqrt(problem.points.w))


def _delta(belief: Belief, goal: Goal, problem: Problem, theta: Floats) -> float:
    """Half-width by the delta method at the law as it is known."""
    law, design = belief.law, problem.points.design
    free = free_parameters(law)
    jacobian_Fn = problem.jacobian(theta)[free]
    covariance_nn = np.diag(belief.seed_sd**2 / problem.points.w)
    covariance_nn += belief.size_sd**2 * (design[:, None] == design)
    information = jacobian_Fn @ np.linalg.solve(covariance_nn, jacobian_Fn.T)
    length = np.sqrt(np.diag(information))
    c = goal.slope(law, theta[None], problem.centre)[0, free] / length
    variance = float(c @ np.linalg.solve(information / np.outer(length, length), c))
    count = int(design.max()) + 1 if belief.size_sd > 0 else len(design)
    return float(stdtrit(count - int(free.sum()), (1 + LEVEL) / 2) * np.sqrt(variance))
