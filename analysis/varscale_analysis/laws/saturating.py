"""SaturatingPowerLaw: L = E + (beta N)^alpha, a power law above an offset that no size gets below.

Source: Henighan et al., arXiv:2010.14701, eq. 1.1; in the sign convention of VAR (alpha < 0). E and alpha belong to the
number of training tokens at which the runs were made: both move when D grows, so every fit carries its D. VAR's own
choice, E given and not fitted, is ``fixed={"E": 5.0}``.
Inside: theta = (E, log of the power at the centre, alpha).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from varscale_analysis.form import EXPONENT_FLATTEST, EXPONENT_STEEPEST, EXPONENTS, safe_exp
from varscale_analysis.laws.law import Law
from varscale_analysis.laws.power import PowerLaw
from varscale_analysis.objective import Floats
from varscale_analysis.starts import Library


@dataclass(frozen=True)
class SaturatingPowerLaw(Law):
    """L = E + (beta N)^alpha: E >= 0 in nats per token, beta in 1/parameter (or per ``per``), alpha < 0.

    Attributes:
        n: column of N, or of compute.
    """

    n: str = "params_nonembed"

    name = "saturating"
    formula = "L = E + (beta N)^alpha"
    fixed_tokens = True
    signed = True
    simpler = "PowerLaw"

    @property
    def roles(self) -> dict[str, str]:
        return {"n": self.n}

    @property
    def names(self) -> tuple[str, ...]:
        return ("E", "beta", "alpha")

    @property
    def log_linear(self) -> tuple[bool, ...]:
        return (False, True)

    def bounds(self) -> tuple[Floats, Floats]:
        return np.array([0.0, -np.inf, -EXPONENT_STEEPEST]), np.array([np.inf, np.inf, -EXPONENT_FLATTEST])

    def pins(self) -> tuple[dict[int, float], dict[int, float]]:
        held, centre = PowerLaw(per=self.per, fixed={k: v for k, v in self.fixed.items() if k != "E"}).pins()
        held = {index + 1: value for index, value in held.items()}
        return (held | {0: self.fixed["E"]} if "E" in self.fixed else held), centre

    def evaluate(self, theta_BP: Floats, u_Vn: Floats) -> tuple[Floats, Floats]:
        u = u_Vn[0]
        power = safe_exp(theta_BP[:, 1:2] + theta_BP[:, 2:3] * u)
        return theta_BP[:, :1] + power, np.stack([np.ones_like(power), power, power * u], axis=1)

    def library(self, u_Vn: Floats) -> Library:
        basis = np.concatenate([np.ones((1, u_Vn.shape[1])), safe_exp(-EXPONENTS[:, None] * u_Vn[0])])
        index = np.arange(len(EXPONENTS))
        terms = np.stack([np.zeros_like(index), index + 1], axis=-1)
        return Library(basis, terms, -EXPONENTS[:, None], index // 2)

    def report(self, theta_BP: Floats, centre_V: Floats) -> dict[str, Floats]:
        return {"E": theta_BP[:, 0], **PowerLaw(per=self.per).report(theta_BP[:, 1:], centre_V)}

    def units(self, y_unit: str, x_units: Mapping[str, str]) -> dict[str, str]:
        return {"E": y_unit, **PowerLaw(per=self.per).units(y_unit, x_units)}
