"""Batched least squares for L(x) = E + exp(a + alpha u): variable projection for the starts, then damped Gauss-Newton.

One call fits many data sets at once (the draws of a bootstrap), so a thousand refits cost tens of milliseconds. The law
without offset is the same problem with E held at zero. Numerical choices, after facts on unconverged published fits:
log x is centred, the prefactor is a logarithm, and the stopping rule is free of scale (the cosine between the residual
and each column of the Jacobian), because an absolute tolerance stops far from the optimum on objectives of 1e-5.

Shapes: B data sets, n points, G starts; a parameter vector is (E, a, alpha) with u = log x - centre.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Objective = Literal["log", "raw"]

ALPHA_STEEPEST, ALPHA_FLATTEST = -4.0, -1e-3  # beyond these a curve with offset is a step or a straight line in log x
GRADIENT_TOLERANCE = 1e-7
ROUNDING = 1e-11  # relative residuals below this are rounding: the data lie on the law
_EXPONENTS = -np.geomspace(0.01, 3.0, 16)
_STEPS = 200
_POLISH = 3


class FitError(ValueError):
    """A law that cannot be fitted: too few sizes, or no start that converged. Names the numbers and the remedy."""


@dataclass(frozen=True)
class Solutions:
    """Fits of B data sets: theta (B, 3) = (E, a, alpha), objective, scale-free gradient, parameters at a bound."""

    theta: Floats
    objective: Floats
    gradient: Floats
    bound: NDArray[np.bool_]

    @property
    def converged(self) -> NDArray[np.bool_]:
        """Whether each fit meets the scale-free gradient tolerance."""
        return np.asarray(self.gradient <= GRADIENT_TOLERANCE)


def curve(theta: Floats, u_n: Floats) -> Floats:
    """E + exp(a + alpha u) for one parameter vector (3,) or many (B, 3): (n,) or (B, n)."""
    theta = np.asarray(theta)
    exponent = theta[..., 1, None] + theta[..., 2, None] * u_n
    return np.asarray(theta[..., 0, None] + np.exp(np.clip(exponent, -300.0, 300.0)))


def residuals(theta_B3: Floats, u_n: Floats, y_Bn: Floats, objective: Objective) -> Floats:
    """log y - log f, or y - f for the raw objective."""
    f_Bn = curve(theta_B3, u_n)
    return np.asarray(np.log(y_Bn / f_Bn) if objective == "log" else y_Bn - f_Bn)


def _jacobian(theta_B3: Floats, u_n: Floats, objective: Objective) -> Floats:
    power_Bn = curve(theta_B3, u_n) - theta_B3[:, :1]
    columns = np.stack([np.ones_like(power_Bn), power_Bn, power_Bn * u_n], axis=-1)
    return columns / curve(theta_B3, u_n)[..., None] if objective == "log" else columns


def projected(alpha_B: Floats, u_n: Floats, y_Bn: Floats, w_Bn: Floats, offset: bool, objective: Objective) -> Floats:
    """(E, a, alpha) with the closed-form E >= 0 and prefactor of each alpha (variable projection).

    Exact for the raw objective; for the log objective to first order in the residuals, as weights 1 / y^2.
    """
    v_Bn = w_Bn / y_Bn**2 if objective == "log" else w_Bn
    g_Bn = np.exp(np.clip(alpha_B[:, None] * u_n, -300.0, 300.0))
    vg_Bn, vy_Bn = v_Bn * g_Bn, v_Bn * y_Bn
    s1, sg, sgg, sy, sgy = v_Bn.sum(-1), vg_Bn.sum(-1), (vg_Bn * g_Bn).sum(-1), vy_Bn.sum(-1), (vy_Bn * g_Bn).sum(-1)
    slope = (s1 * sgy - sg * sy) / np.maximum(s1 * sgg - sg**2, 1e-300)
    e = (sy - slope * sg) / s1
    inside = (e > 0) & (slope > 0) & offset
    return np.stack([np.where(inside, e, 0.0), np.log(np.where(inside, slope, sgy / sgg)), alpha_B], axis=-1)


def starts(u_n: Floats, y_Bn: Floats, w_Bn: Floats, offset: bool, objective: Objective) -> Floats:
    """Starts (G, B, 3): a grid of exponents, each with its projected E and prefactor."""
    shape = len(y_Bn)
    return np.stack([projected(np.full(shape, alpha), u_n, y_Bn, w_Bn, offset, objective) for alpha in _EXPONENTS])


def solve(theta_B3: Floats, u_n: Floats, y_Bn: Floats, w_Bn: Floats, offset: bool, objective: Objective) -> Solutions:
    """Damped Gauss-Newton with an active set for the bounds E >= 0 and the range of alpha, on B problems at once.

    ``w_Bn`` may hold zeros: points that a data set does not have.
    """
    lower = np.array([0.0, -np.inf, ALPHA_STEEPEST if offset else -np.inf])
    upper = np.array([np.inf if offset else 0.0, np.inf, ALPHA_FLATTEST if offset else np.inf])
    theta = np.clip(theta_B3, lower, upper)
    scale = np.sqrt((w_Bn * (1.0 if objective == "log" else y_Bn**2)).sum(-1))

    def cost(theta: Floats, y_Bn: Floats, w_Bn: Floats) -> tuple[Floats, Floats]:
        r_Bn = residuals(theta, u_n, y_Bn, objective)
        return r_Bn, np.asarray((w_Bn * r_Bn**2).sum(-1))

    def state(
        theta: Floats, r_Bn: Floats, w_Bn: Floats, scale: Floats
    ) -> tuple[Floats, Floats, NDArray[np.bool_], Floats]:
        jacobian = _jacobian(theta, u_n, objective)
        weighted = jacobian * w_Bn[..., None]
        normal = np.swapaxes(weighted, -1, -2) @ jacobian
        descent = np.einsum("bnp,bn->bp", weighted, r_Bn)
        held = ((theta <= lower) & (descent <= 0)) | ((theta >= upper) & (descent >= 0))
        norm = np.maximum(np.sqrt((w_Bn * r_Bn**2).sum(-1)), ROUNDING * scale)
        lengths = np.sqrt(np.maximum(np.diagonal(normal, axis1=-2, axis2=-1), 1e-300))
        cosine = np.where(held, 0.0, np.abs(descent) / (lengths * norm[:, None]))
        return normal, descent, held, np.asarray(cosine.max(-1))

    objective_B = cost(theta, y_Bn, w_Bn)[1]
    gradient_B = np.full(len(theta), np.inf)
    bound = np.zeros(theta.shape, dtype=bool)
    damping = np.full(len(theta), 1e-3)
    left = np.full(len(theta), _STEPS)
    active = np.arange(len(theta))
    for _ in range(_STEPS):
        at, y, w = theta[active], y_Bn[active], w_Bn[active]
        r_Bn, now = cost(at, y, w)
        normal, descent, held, cosine = state(at, r_Bn, w, scale[active])
        gradient_B[active], bound[active], objective_B[active] = cosine, held, now
        # Below the tolerance a few more steps polish to rounding; without an improving step the fit has stalled.
        left[active] = np.where(cosine <= GRADIENT_TOLERANCE, np.minimum(left[active], _POLISH), left[active]) - 1
        more = (left[active] >= 0) & (damping[active] < 1e12)
        if not more.any():
            break
        active, at, y, w, now = active[more], at[more], y[more], w[more], now[more]
        normal, descent, held = normal[more], np.where(held, 0.0, descent)[more], held[more]
        normal = np.where(held[:, :, None] | held[:, None, :], 0.0, normal)
        diagonal = np.diagonal(normal, axis1=-2, axis2=-1)
        length = np.sqrt(np.where(held | (diagonal <= 0), 1.0, diagonal))
        scaled = normal / (length[:, :, None] * length[:, None, :])
        scaled = scaled + np.eye(3) * (np.where(held, 1.0, 0.0) + damping[active][:, None])[:, None, :]
        step = np.linalg.solve(scaled, (descent / length)[..., None])[..., 0] / length
        step[:, 2] = np.clip(step[:, 2], -0.5, 0.5)
        step[:, 1] = np.clip(step[:, 1], -2.0, 2.0)
        trial = np.clip(at + step, lower, upper)
        after = cost(trial, y, w)[1]
        # The valley of (E, a, alpha) is narrow and bent: the projected point at the new exponent is often further on.
        other = np.clip(projected(trial[:, 2], u_n, y, w, offset, objective), lower, upper)
        after_other = cost(other, y, w)[1]
        trial = np.where((after_other < after)[:, None], other, trial)
        after = np.minimum(after, after_other)
        better = after < now
        theta[active] = np.where(better[:, None], trial, at)
        damping[active] = np.where(better, np.maximum(damping[active] / 10, 1e-12), damping[active] * 10)
    return Solutions(theta, objective_B, gradient_B, bound & (np.array([offset, False, offset])))


def fit_batch(
    u_n: Floats, y_Bn: Floats, w_Bn: Floats, offset: bool, objective: Objective, warm: Floats | None = None
) -> Solutions:
    """Fit B data sets, each from the best start of the grid (and ``warm``, a parameter vector, if that is better)."""
    grid_GB3 = starts(u_n, y_Bn, w_Bn, offset, objective)
    if warm is not None:
        grid_GB3 = np.concatenate([grid_GB3, np.broadcast_to(warm, (1, *grid_GB3.shape[1:]))])
    costs_GB = np.stack([(w_Bn * residuals(theta, u_n, y_Bn, objective) ** 2).sum(-1) for theta in grid_GB3])
    best_B = np.argmin(costs_GB, axis=0)
    return solve(grid_GB3[best_B, np.arange(len(y_Bn))], u_n, y_Bn, w_Bn, offset, objective)
