"""Certificate: the evidence that a fit is the optimum of its objective, not where an optimiser happened to stop.

Of the 4500 starts of one published fit, 8.4 % reach the optimum; a fit that cannot say so is not reported here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varscale_analysis.objective import CORNER, Floats, Objective
from varscale_analysis.solver import GRADIENT_TOLERANCE, Solutions

AGREE = 1e-6
LEAST_IDENTIFIABLE = 1e-7


def agreement(objective: Objective) -> float:
    """How close two objectives agree, relative to the best: to the corner's size where a kink is rounded off."""
    return CORNER if objective.kinked else AGREE


@dataclass(frozen=True)
class Certificate:
    """How sure it is that a fit is the global optimum.

    Attributes:
        starts_tried, starts_agreeing: starts, and those that end at the best objective.
        next_basin: relative gap of objective to the best converged start that ended elsewhere; None if all agree.
        gradient: scale-free gradient (see ``solver.Solutions``); 0 at an optimum.
        at_bounds: names of the parameters held at a bound; no fault by itself, but no interior optimum.
        identifiability: smallest singular value of the Jacobian with columns of unit length; 1: the parameters act
            independently, 0: some combination of them leaves every prediction as it is.
        faults: why the fit is not certified; empty if it is.
    """

    starts_tried: int
    starts_agreeing: int
    next_basin: float | None
    gradient: float
    at_bounds: tuple[str, ...]
    identifiability: float
    faults: tuple[str, ...]

    @property
    def certified(self) -> bool:
        """Whether nothing speaks against the fit."""
        return not self.faults

    def __str__(self) -> str:
        text = f"{self.starts_agreeing} of {self.starts_tried} starts agree, gradient {self.gradient:.0e}, "
        text += f"identifiability {self.identifiability:.1e}"
        if self.next_basin is not None:
            text += f", next basin +{self.next_basin:.2%}"
        if self.at_bounds:
            text += f", at a bound: {', '.join(self.at_bounds)}"
        return text + "".join(f"; NOT CERTIFIED: {fault}" for fault in self.faults)


def examine(
    solutions: Solutions,
    objective: Objective,
    jacobian_Pn: Floats,
    fixed_P: NDArray[np.bool_],
    names: tuple[str, ...],
    floor: float,
) -> tuple[int, Certificate]:
    """The best of many starts, and its certificate.

    Args:
        jacobian_Pn: weighted Jacobian at the best start's optimum.
        fixed_P: which parameters are given.
        names: of the parameters.
        floor: an objective below it is rounding.
    """
    best = int(np.argmin(solutions.objective))
    least = float(solutions.objective[best])
    agree = solutions.objective <= least * (1 + agreement(objective)) + floor
    rest = solutions.objective[~agree & solutions.converged]
    bound = solutions.bound[best]
    free = ~bound & ~fixed_P
    columns = jacobian_Pn[free]
    length = np.sqrt((columns**2).sum(-1, keepdims=True))
    identifiability = 1.0
    if free.any():
        scaled = columns / np.where(length > 0, length, 1.0)
        identifiability = float(np.linalg.svd(scaled, compute_uv=False)[-1]) if len(scaled) <= scaled.shape[1] else 0.0
    faults = []
    gradient = float(solutions.gradient[best])
    if not gradient <= GRADIENT_TOLERANCE:
        faults.append(
            f"the best start stopped at a scale-free gradient of {gradient:.1e} (limit {GRADIENT_TOLERANCE:g})"
        )
    if len(agree) > 1 and agree.sum() < 2:
        faults.append(f"only one of {len(agree)} starts reaches the best objective")
    if identifiability < LEAST_IDENTIFIABLE:
        faults.append(
            f"the points do not tell the parameters apart (smallest singular value {identifiability:.1e}); fix one, or "
            "choose a law with fewer"
        )
    return best, Certificate(
        starts_tried=len(agree),
        starts_agreeing=int(agree.sum()),
        next_basin=float(rest.min() / least - 1) if len(rest) and least > floor else None,
        gradient=gradient,
        at_bounds=tuple(name for name, held in zip(names, bound, strict=True) if held),
        identifiability=identifiability,
        faults=tuple(faults),
    )
