"""Laws of error rates, 1 - accuracy: power laws with predictions at most 1, and the error as a function of loss.

Source: VAR, arXiv:2404.02905, sec. 4.2 (token error against N); Gadre et al., arXiv:2403.08540, eq. 5 (downstream error
against loss). A power law of N exceeds 1 below N = 1 / beta; predictions and intervals are held to 1 there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from varscale_analysis.form import safe_exp
from varscale_analysis.laws.law import Law
from varscale_analysis.laws.power import PowerLaw
from varscale_analysis.laws.saturating import SaturatingPowerLaw
from varscale_analysis.objective import Floats
from varscale_analysis.starts import Library


@dataclass(frozen=True)
class ErrorPowerLaw(PowerLaw):
    """Err = min(1, (beta N)^alpha): an error rate in (0, 1]."""

    name = "error-power"
    formula = "Err = min(1, (beta N)^alpha)"
    rate = True

    def bounded(self, y: Floats) -> Floats:
        return np.clip(y, 0.0, 1.0)


@dataclass(frozen=True)
class ErrorSaturatingLaw(SaturatingPowerLaw):
    """Err = min(1, E + (beta N)^alpha): an error rate in (0, 1] with a floor E in [0, 1)."""

    name = "error-saturating"
    formula = "Err = min(1, E + (beta N)^alpha)"
    simpler = "ErrorPowerLaw"
    rate = True

    def bounds(self) -> tuple[Floats, Floats]:
        lower, upper = super().bounds()
        upper[0] = 1.0
        return lower, upper

    def bounded(self, y: Floats) -> Floats:
        return np.clip(y, 0.0, 1.0)


@dataclass(frozen=True)
class ErrorOfLossLaw(Law):
    """Err = epsilon - k exp(-gamma L): downstream error against loss, k, gamma > 0, epsilon in (0, 1].

    ``loss`` is the column of the loss. gamma is per unit of it. The published fits minimise raw squares:
    ``objective="raw"``, and leave epsilon free, which ``bounded_ceiling=False`` does.
    Inside: theta = (epsilon, log k at the mean loss, gamma).
    """

    loss: str = "val_nats_per_token_avg"
    bounded_ceiling: bool = True

    name = "error-of-loss"
    formula = "Err = epsilon - k exp(-gamma L)"
    rate = True

    @property
    def roles(self) -> dict[str, str]:
        return {"loss": self.loss}

    @property
    def names(self) -> tuple[str, ...]:
        return ("epsilon", "k", "gamma")

    @property
    def log_linear(self) -> tuple[bool, ...]:
        return (False, True)

    def bounds(self) -> tuple[Floats, Floats]:
        return np.array([0.0, -np.inf, 1e-3]), np.array([1.0 if self.bounded_ceiling else np.inf, np.inf, 1e2])

    def pins(self) -> tuple[dict[int, float], dict[int, float]]:
        held = {self.names.index(name): value for name, value in self.fixed.items()}
        if "k" not in self.fixed:
            return held, {}
        return held | {1: float(np.log(self.fixed["k"]))}, {0: 0.0}

    def raw_coordinates(self, x: Mapping[str, Floats]) -> Floats:
        return np.stack([x["loss"]])

    def evaluate(self, theta_BP: Floats, u_Vn: Floats) -> tuple[Floats, Floats]:
        u = u_Vn[0]
        gain = safe_exp(theta_BP[:, 1:2] - theta_BP[:, 2:3] * u)
        return theta_BP[:, :1] - gain, np.stack([np.ones_like(gain), -gain, gain * u], axis=1)

    def library(self, u_Vn: Floats) -> Library:
        gammas = np.geomspace(0.05, 20.0, 32)
        basis = np.concatenate([np.ones((1, u_Vn.shape[1])), -safe_exp(-gammas[:, None] * u_Vn[0])])
        index = np.arange(len(gammas))
        return Library(basis, np.stack([np.zeros_like(index), index + 1], axis=-1), gammas[:, None], index // 2)

    def report(self, theta_BP: Floats, centre_V: Floats) -> dict[str, Floats]:
        k = safe_exp(theta_BP[:, 1] + theta_BP[:, 2] * centre_V[0])
        return {"epsilon": theta_BP[:, 0], "k": k, "gamma": theta_BP[:, 2]}

    def units(self, y_unit: str, x_units: Mapping[str, str]) -> dict[str, str]:
        return {"epsilon": "1", "k": "1", "gamma": f"1/({x_units['loss']})" if x_units["loss"] != "1" else "1"}

    def bounded(self, y: Floats) -> Floats:
        return np.clip(y, 0.0, 1.0)
