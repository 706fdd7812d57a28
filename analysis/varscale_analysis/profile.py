"""Profile likelihood: how much worse the fit becomes when one parameter is held away from its best value.

The interval of level p holds the values v with S(v) <= S_min + c F_p(1, nu), nu = n - P. For squares c = S_min / nu:
the exact F interval of a linear law (Bates and Watts, 1988, ch. 6). For Huber's loss 2 c is the scale of the robust F
test, sum psi^2 / nu over mean psi' (Schrader and Hettmansperger, 1980). A loss with a kink has no psi'.

A value is not forced: a spring pulls the parameter to it, and wherever the minimum ends lies on the profile.
Prefactors, exponents and derived numbers are profiled alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import fdtri

from varscale_analysis.fit import FitError, Floats, Problem
from varscale_analysis.solver import Pull

_PLACES = np.concatenate([np.linspace(0.25, 4.0, 16), [6.0, 9.0, 14.0]])  # in standard errors, on either side
_STIFF = 1e4
_ROUNDS = 4
_WIDEST = 0.999  # the level out to which a profile is traced


@dataclass(frozen=True, eq=False)
class Profile:
    """The profile of one quantity.

    Attributes:
        name: parameter or derived number.
        values, objective: the profile, ascending in value; the objective as the fit minimises it.
        best, least: value and objective of the fit.
        ends: where an interval ends that the profile never leaves: a bound, or infinity.
        unit_of_f: rise of the objective per unit of F.
        degrees_of_freedom: nu.
    """

    name: str
    values: Floats
    objective: Floats
    best: float
    least: float
    ends: tuple[float, float]
    unit_of_f: float
    degrees_of_freedom: int

    def threshold(self, level: float) -> float:
        """The objective at the ends of the interval."""
        return self.least + self.unit_of_f * float(fdtri(1, self.degrees_of_freedom, level))

    def interval(self, level: float) -> tuple[float, float]:
        """The interval; an end is a bound, or infinite, where the profile never rises to the threshold.

        Raises ``ValueError`` for a level of 0 or less, or beyond .999, out to which it is traced.
        """
        if not 0 < level <= _WIDEST:
            raise ValueError(f"a level lies between 0 and {_WIDEST}, got {level:g}")
        return self._end(level, self.values <= self.best, 0), self._end(level, self.values >= self.best, 1)

    def _end(self, level: float, side: np.ndarray[tuple[int], np.dtype[np.bool_]], which: int) -> float:
        limit, values, objective = self.threshold(level), self.values[side], self.objective[side]
        order = np.argsort(np.abs(values - self.best))
        v, s = np.append(self.best, values[order]), np.append(self.least, objective[order])
        above = np.flatnonzero(s > limit)
        if not len(above):
            return self.ends[which]
        i = int(above[0])
        low, high, wanted = (np.sqrt(max(x - self.least, 0.0)) for x in (s[i - 1], s[i], limit))
        return float(v[i - 1] + (wanted - low) / (high - low) * (v[i] - v[i - 1]))  # the root rises nearly linearly


def profile_of(problem: Problem, theta: Floats, name: str) -> Profile:
    """Trace the profile of the reported or derived quantity ``name`` of a ``problem`` from its optimum ``theta`` (P,).

    Raises ``FitError`` for an unknown or given quantity, a loss with a kink, or no degree of freedom.
    """
    form, limits = problem.form, problem.limits
    if problem.objective.kinked:
        raise FitError(f"no profile under {problem.objective.label}: it has no curvature; use pairs or the jackknife")
    free = limits[0] < limits[1]
    freedom = len(problem.points) - form.num_params
    if freedom < 1:
        raise FitError("a profile needs a degree of freedom: more points than free parameters")
    quantity = _quantity(problem, name)
    logarithmic = name in {n for n, log in zip(form.names, form.log_linear, strict=False) if log}

    def g(theta_BP: Floats) -> Floats:
        values = quantity(theta_BP)
        return np.log(values) if logarithmic else values

    def sloped(theta_BP: Floats) -> tuple[Floats, Floats]:
        step = 1e-6 * np.maximum(1.0, np.abs(theta_BP))
        columns = []
        for p in range(theta_BP.shape[1]):
            shift = np.zeros_like(theta_BP)
            shift[:, p] = step[:, p]
            columns.append((g(theta_BP + shift) - g(theta_BP - shift)) / (2 * step[:, p]))
        return g(theta_BP), np.stack(columns, axis=-1) * free

    residual = problem.residuals(theta)
    w_n, delta = problem.points.w, problem.objective.delta
    psi = residual if delta is None else np.clip(residual, -delta, delta)
    inside = float((w_n * (psi == residual)).sum() / w_n.sum())
    if inside == 0:
        raise FitError(f"no residual lies inside the corner {delta:g}: no profile; use pairs, or a larger delta")
    variance = float((w_n * psi**2).sum() / freedom / inside)
    jacobian = problem.jacobian(theta) * np.sqrt(w_n) * free[:, None]
    length = np.sqrt((jacobian**2).sum(-1))
    length = np.where(length > 0, length, 1.0)
    scaled = jacobian / length[:, None]
    inverse = np.linalg.pinv(scaled @ scaled.T, rcond=1e-12) / (length[:, None] * length)
    (best,), (slope,) = sloped(theta[None])
    direction = inverse @ slope
    squared = float(slope @ direction)
    if not squared > 0:
        raise FitError(f"{name} is given, not fitted: it has no profile")
    error = np.sqrt(variance * squared / inside)
    least = float(problem.solve(theta[None]).objective[0])
    unit = variance if delta is None else variance / 2
    values, objectives, ends = [best], [least], []
    limit = least + unit * float(fdtri(1, freedom, _WIDEST))
    for sign in (-1.0, 1.0):
        end = sign * np.inf
        offsets = sign * error * _PLACES
        for _ in range(_ROUNDS):
            start = np.clip(theta + np.outer(offsets, direction / squared), *limits)
            both = np.concatenate([start, np.broadcast_to(theta, start.shape)])
            targets = np.tile(best + offsets, 2)
            pull = Pull(sloped, targets, np.full(len(targets), _STIFF * variance / error**2))
            solved = problem.solve(both, pull=pull)
            reached = g(solved.theta)
            values += reached.tolist()
            objectives += solved.objective.tolist()
            if solved.objective[: len(offsets)].max() > limit:
                break
            furthest = reached[np.argmax(sign * reached)]
            if sign * (targets[len(offsets) - 1] - furthest) > 0.5 * abs(offsets[-1]):
                end = float(furthest)
                break
            offsets = offsets * 8.0
        ends.append(end)
    value_n, objective_n = np.array(values), np.array(objectives)
    order = np.argsort(value_n)
    restore: Callable[[Floats], Floats] = np.exp if logarithmic else np.asarray
    return Profile(
        name=name,
        values=restore(value_n[order]),
        objective=objective_n[order],
        best=float(restore(np.array(best))),
        least=least,
        ends=(float(restore(np.array(ends[0]))), float(restore(np.array(ends[1])))),
        unit_of_f=unit,
        degrees_of_freedom=freedom,
    )


def _quantity(problem: Problem, name: str) -> Callable[[Floats], Floats]:
    def value(theta_BP: Floats) -> Floats:
        reported = problem.form.report(theta_BP, problem.centre)
        everything = {**reported, **problem.form.derived(reported)}
        if name not in everything:
            raise FitError(f"{problem.form.name} has no {name!r}; profile one of {', '.join(everything)}")
        return everything[name]

    return value
