"""Power laws: L = (beta N)^alpha as VAR writes it, and y = a x^b. A straight line in log-log.

Source: VAR, arXiv:2404.02905, sec. 4.2. Differs: L is the raw cross-entropy here; the paper plots it after taking off a
constant (5.0 nat for the average, 4.5 for the last scale), which decides the exponent. See ``offset.py``.
Inside: theta = (log of the value at the centre, exponent).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from varscale_analysis.form import EXPONENTS, inverse_unit, prefactor_unit, safe_exp
from varscale_analysis.laws.law import Law
from varscale_analysis.objective import Floats
from varscale_analysis.starts import Library


@dataclass(frozen=True)
class PowerLaw(Law):
    """L = (beta N)^alpha: beta > 0 in 1/parameter (or per ``per`` of them), alpha < 0 when the loss falls.

    Attributes:
        n: column of N, or of compute.
    """

    n: str = "params_nonembed"

    name = "power"
    formula = "L = (beta N)^alpha"
    fixed_tokens = True
    signed = True

    @property
    def roles(self) -> dict[str, str]:
        return {"n": self.n}

    @property
    def names(self) -> tuple[str, ...]:
        return ("beta", "alpha")

    @property
    def log_linear(self) -> tuple[bool, ...]:
        return (True,)

    def bounds(self) -> tuple[Floats, Floats]:
        return np.full(2, -np.inf), np.full(2, np.inf)

    def pins(self) -> tuple[dict[int, float], dict[int, float]]:
        held, centre = {}, {}
        if "alpha" in self.fixed:
            held[1] = self.fixed["alpha"]
        if "beta" in self.fixed:  # at N = 1 / beta the law is 1 whatever alpha is
            held[0], centre[0] = 0.0, float(np.log(self.per / self.fixed["beta"]))
        return held, centre

    def evaluate(self, theta_BP: Floats, u_Vn: Floats) -> tuple[Floats, Floats]:
        u = u_Vn[0]
        f = safe_exp(theta_BP[:, :1] + theta_BP[:, 1:] * u)
        return f, np.stack([f, f * u], axis=1)

    def library(self, u_Vn: Floats) -> Library:
        exponents = np.concatenate([-EXPONENTS[::-1], EXPONENTS])
        basis = safe_exp(exponents[:, None] * u_Vn[0])
        index = np.arange(len(exponents))
        return Library(basis, index[:, None], exponents[:, None], index // 2)

    def report(self, theta_BP: Floats, centre_V: Floats) -> dict[str, Floats]:
        alpha = theta_BP[:, 1]
        safe = np.where(np.abs(alpha) < 1e-12, np.copysign(1e-12, alpha), alpha)
        return {"beta": safe_exp(theta_BP[:, 0] / safe - centre_V[0] + np.log(self.per)), "alpha": alpha}

    def units(self, y_unit: str, x_units: Mapping[str, str]) -> dict[str, str]:
        return {"beta": inverse_unit(x_units["n"], self.per), "alpha": "1"}


@dataclass(frozen=True)
class PrefactorLaw(PowerLaw):
    """y = a x^b, for what is not a loss: N_opt(C), D_opt(C). The same line as ``PowerLaw``, its height at x = per."""

    name = "prefactor"
    formula = "y = a x^b"

    @property
    def names(self) -> tuple[str, ...]:
        return ("a", "b")

    def pins(self) -> tuple[dict[int, float], dict[int, float]]:
        held, centre = {}, {}
        if "b" in self.fixed:
            held[1] = self.fixed["b"]
        if "a" in self.fixed:
            held[0], centre[0] = float(np.log(self.fixed["a"])), float(np.log(self.per))
        return held, centre

    def report(self, theta_BP: Floats, centre_V: Floats) -> dict[str, Floats]:
        b = theta_BP[:, 1]
        return {"a": safe_exp(theta_BP[:, 0] + b * (np.log(self.per) - centre_V[0])), "b": b}

    def units(self, y_unit: str, x_units: Mapping[str, str]) -> dict[str, str]:
        return {"a": prefactor_unit(y_unit, x_units["n"], self.per, "-b"), "b": "1"}
