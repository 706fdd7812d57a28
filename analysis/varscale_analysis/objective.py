"""Objective: what a fit minimises, S(theta) = sum_i w_i rho(r_i). Summed over the points, never averaged.

Residual r: ``log``, log y - log f (a share of the loss), or ``raw``, y - f (in the unit of y). Loss rho:

    squares                    r^2
    huber(delta)               r^2 / 2 within delta, delta (|r| - delta / 2) beyond: scipy.special.huber, the loss of
                               Hoffmann et al., arXiv:2203.15556, who sum it with delta = 1e-3
    least_absolute_deviations  |r|
    quantile(tau)              tau r above the law, (tau - 1) r below it (Koenker and Bassett, 1978)

The last two have a kink at 0. They are reached by continuation: a Huber corner that shrinks to 2e-5 of the mean
absolute residual, so no corner of the answer depends on the unit of y.
Shapes: B data sets, n points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Residual = Literal["log", "raw"]
Loss = Literal["squares", "huber", "absolute", "quantile"]

CORNER = 2e-5  # of the mean absolute residual: where the continuation to a kink ends
_PATH = (1.0, 0.1, 1e-2, 1e-3, 1e-4, CORNER)


class FitError(ValueError):
    """A law that cannot be fitted: bad points, too few of them, or no certified optimum. Names numbers and remedy."""


@dataclass(frozen=True)
class Objective:
    """A residual, a loss and the column of weights, if any; make one with the functions below.

    Attributes:
        residual: "log" or "raw".
        loss: "squares", "huber", "absolute" or "quantile".
        delta: corner of the Huber loss, in the unit of the residual; None for other losses.
        tau: the quantile, between 0 and 1; None for other losses.
        weights: column of non-negative weights w, such as 1 / variance; None: all 1.

    Raises ``ValueError`` for a loss without its number, or with another's.
    """

    residual: Residual = "log"
    loss: Loss = "squares"
    delta: float | None = None
    tau: float | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        if self.residual not in ("log", "raw"):
            raise ValueError(f"the residual is {self.residual!r}; it is 'log' or 'raw'")
        if self.loss not in ("squares", "huber", "absolute", "quantile"):
            raise ValueError(f"the loss is {self.loss!r}; it is squares, huber, absolute or quantile")
        if (self.loss == "huber") != (self.delta is not None) or (self.delta is not None and not self.delta > 0):
            raise ValueError(f"delta is {self.delta}: a Huber loss needs one above 0, other losses have none")
        if (self.loss == "quantile") != (self.tau is not None) or (self.tau is not None and not 0 < self.tau < 1):
            raise ValueError(f"tau is {self.tau}: a quantile loss needs one between 0 and 1, other losses have none")

    @property
    def kinked(self) -> bool:
        """Whether the loss has a corner at 0 and is reached by continuation."""
        return self.loss in ("absolute", "quantile")

    @property
    def label(self) -> str:
        """As a table names it: "huber(0.001) of log residuals, weights w"."""
        number = {"huber": f"({self.delta:g})" if self.delta else "", "quantile": f"({self.tau:g})" if self.tau else ""}
        text = f"{self.loss}{number.get(self.loss, '')} of {self.residual} residuals"
        return text if self.weights is None else f"{text}, weights {self.weights}"

    def value(self, r_Bn: Floats, w_Bn: Floats) -> Floats:
        """The objective (B,), with its kink if it has one."""
        if self.loss == "squares":
            rho = r_Bn**2
        elif self.delta is not None:
            psi = np.clip(r_Bn, -self.delta, self.delta)
            rho = psi * (r_Bn - psi / 2)
        else:
            rho = np.abs(r_Bn) if self.tau is None else np.maximum(self.tau * r_Bn, (self.tau - 1) * r_Bn)
        return np.asarray((w_Bn * rho).sum(-1))

    @property
    def path(self) -> tuple[float, ...]:
        """Corners to solve for, one after the other: of the mean absolute residual for a kink, else the loss's own."""
        return _PATH if self.kinked else (np.inf if self.delta is None else self.delta,)


def squares(residual: Residual = "log", weights: str | None = None) -> Objective:
    """Least squares of the ``residual``, "log" or "raw"; ``weights``: column of 1 / variance, if any."""
    return Objective(residual, "squares", weights=weights)


def huber(delta: float = 1e-3, residual: Residual = "log", weights: str | None = None) -> Objective:
    """Huber's loss with its corner at ``delta``, in the unit of the ``residual``; ``weights`` as for squares.

    Raises ``ValueError`` for a delta of 0 or less.
    """
    return Objective(residual, "huber", delta=delta, weights=weights)


def least_absolute_deviations(residual: Residual = "log", weights: str | None = None) -> Objective:
    """The sum of absolute values of the ``residual``, "log" or "raw"; ``weights``: a column, if any."""
    return Objective(residual, "absolute", weights=weights)


def quantile(tau: float, residual: Residual = "log", weights: str | None = None) -> Objective:
    """The law that a share ``tau`` of the points lie below; ``residual`` and ``weights`` as for squares.

    Raises ``ValueError`` for a tau outside (0, 1).
    """
    return Objective(residual, "quantile", tau=tau, weights=weights)
