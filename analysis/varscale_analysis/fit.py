"""Problem: a law on its points, and the way to its certified optimum.

Variable projection over a grid of exponents gives the starts, batched damped Newton takes the best of them to their
optima, and a certificate says whether they agree. Log x is centred and prefactors are logarithms, so the numbers the
solver sees are of order one whatever the units.

Measured (CPU time of one core of a busy machine): 7.5 ms for Chinchilla's law, Huber 1e-3, 240 points, all 16 starts
agreeing; .6 s for 4,000 resamples of it, 200 of them also from four starts (``benchmarks/bench_fit.py``).
Shapes: B data sets, n points, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from varscale_analysis.certificate import Certificate, examine
from varscale_analysis.form import Form
from varscale_analysis.objective import FitError, Floats, Objective
from varscale_analysis.points import Points
from varscale_analysis.solver import ROUNDING, Pull, Solutions, solve
from varscale_analysis.starts import best, project

__all__ = ["FitError", "Floats", "Problem"]


@dataclass(frozen=True, eq=False)
class Problem:
    """A law on its points."""

    form: Form
    points: Points

    def __post_init__(self) -> None:
        points, form = self.points, self.form
        designs, needed = int(points.design.max()) + 1, form.num_params
        what = "sizes" if len(points.x) == 1 else f"different points ({', '.join(points.x)})"
        if designs < needed:
            remedy = f", or fit {form.simpler}" if form.simpler else ""
            raise FitError(
                f"{form.formula} has {needed} parameters, but there are {designs} {what}; measure at least "
                f"{needed - designs} more{remedy}"
            )
        lack = form.needed(points.x)
        if lack is not None:
            raise FitError(lack)
        for name in ("E", "epsilon"):
            offset = form.fixed.get(name)
            if offset is None or offset == 0:
                continue
            beyond = points.y <= offset if name == "E" else points.y >= offset
            if beyond.any():
                side = "at or below" if name == "E" else "at or above"
                worst = points.y.min() if name == "E" else points.y.max()
                raise FitError(
                    f"{int(beyond.sum())} values of {points.y_name} lie {side} the fixed {name} = {offset:g} (the "
                    f"furthest {worst:g}); fix another, or let it be fitted"
                )
        if form.rate and (points.y > 1).any():
            raise FitError(f"{points.y_name} is an error rate, but {points.y.max():g} is above 1; give 1 - accuracy")

    @property
    def objective(self) -> Objective:
        """What is minimised."""
        return self.form.criterion

    @cached_property
    def centre(self) -> Floats:
        """Centre (V,) of the coordinates."""
        return self.form.centre(self.form.raw_coordinates(self.points.x))

    @cached_property
    def u(self) -> Floats:
        """Centred coordinates (V, n)."""
        return np.asarray(self.form.raw_coordinates(self.points.x) - self.centre[:, None])

    @cached_property
    def limits(self) -> tuple[Floats, Floats]:
        """Bounds of theta, equal where it is given."""
        lower, upper = self.form.bounds()
        for index, value in self.form.pins()[0].items():
            lower[index] = upper[index] = value
        return lower, upper

    @property
    def linear(self) -> int:
        """How many parameters, the first ones, are linear coefficients or their logarithms."""
        return len(self.form.log_linear)

    @cached_property
    def starts(self) -> Floats:
        """The best starts of the grid (at most 16, P), best first."""
        return self.starts_for(self.points.y, self.points.w)

    def starts_for(self, y_n: Floats, w_n: Floats) -> Floats:
        """The best starts for other values or weights on the same points."""
        library = self.form.library(self.u)
        linear, cost = project(library, y_n, w_n, self.objective.residual, self.form.known())
        kept = best(library, cost)
        return np.clip(self.form.assemble(linear[kept], library.nonlinear[kept], float(y_n.mean())), *self.limits)

    def solve(
        self, theta_BP: Floats, y_Bn: Floats | None = None, w_Bn: Floats | None = None, pull: Pull | None = None
    ) -> Solutions:
        """Minimise from ``theta_BP``, by default on the points as they are."""
        y = self.points.y[None] if y_Bn is None else y_Bn
        w = self.points.w[None] if w_Bn is None else w_Bn
        return solve(self.form.evaluate, self.u, theta_BP, y, w, self.objective, *self.limits, self.linear, pull)

    def values(self, theta_BP: Floats) -> Floats:
        """The law (B, n) at the points."""
        return self.form.evaluate(theta_BP, self.u)[0]

    def residuals(self, theta_P: Floats) -> Floats:
        """Residuals (n,) on the scale of the objective."""
        f_n = self.values(theta_P[None])[0]
        return np.asarray(np.log(self.points.y / f_n) if self.objective.residual == "log" else self.points.y - f_n)

    def jacobian(self, theta_P: Floats) -> Floats:
        """Jacobian (P, n) of log f or f."""
        f, jacobian = self.form.evaluate(theta_P[None], self.u)
        return np.asarray(jacobian[0] / f[0] if self.objective.residual == "log" else jacobian[0])

    def optimum(self) -> tuple[Floats, float, Certificate]:
        """theta (P,), the objective and the certificate of the best of all starts."""
        solutions = self.solve(self._varied(self.starts))
        scale = np.ones_like(self.points.y) if self.objective.residual == "log" else self.points.y
        floor = ROUNDING**2 * float((self.points.w * scale**2).sum())
        lower, upper = self.limits
        chosen = int(np.argmin(solutions.objective))
        jacobian = self.jacobian(solutions.theta[chosen]) * np.sqrt(self.points.w)
        index, certificate = examine(solutions, self.objective, jacobian, lower == upper, self.form.names, floor)
        return solutions.theta[index], float(solutions.objective[index]), certificate

    def _varied(self, theta_SP: Floats) -> Floats:
        """Twice the starts for a kinked loss, whose continuation ends in one of many corners of the objective."""
        if not self.objective.kinked:
            return theta_SP
        smooth = solve(
            self.form.evaluate, self.u, theta_SP[:1], self.points.y[None], self.points.w[None],
            Objective(self.objective.residual), *self.limits, self.linear,
        )  # fmt: skip
        rng = np.random.default_rng(0)
        spread = 0.02 * rng.standard_normal(theta_SP.shape) * (self.limits[0] < self.limits[1])
        return np.concatenate([theta_SP, np.clip(smooth.theta * (1.0 + spread), *self.limits)])


def designs_used(points: Points, w_Bn: Floats) -> NDArray[np.int64]:
    """How many different designs (B,) have weight in each data set."""
    design = points.design
    present = np.zeros((len(w_Bn), int(design.max()) + 1))
    np.add.at(present.T, design, (w_Bn > 0).T.astype(np.float64))
    return np.asarray((present > 0).sum(-1))
