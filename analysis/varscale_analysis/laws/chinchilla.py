"""ChinchillaLaw: L = E + A N^-alpha + B D^-beta, the loss of a model of N parameters trained on D tokens.

Source: Hoffmann et al., arXiv:2203.15556, eq. 2; refitted by Besiroglu et al., arXiv:2404.10102. With ``tied``
exponents (alpha = beta) it is the law of Gadre et al., arXiv:2403.08540, eq. 4, who write it in C = 6ND and M = D / N.
A, B, E or an exponent can be given with ``fixed``.
Inside: theta = (E, log of the N term at the centre, log of the D term, alpha, beta).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from varscale_analysis.form import EXPONENT_FLATTEST, EXPONENT_STEEPEST, EXPONENTS, prefactor_unit, safe_exp
from varscale_analysis.laws.law import Law
from varscale_analysis.objective import Floats
from varscale_analysis.starts import Library


@dataclass(frozen=True)
class ChinchillaLaw(Law):
    """L = E + A N^-alpha + B D^-beta: E >= 0 in the unit of the loss, alpha, beta > 0.

    Attributes:
        n, d: columns of N and D.
        per_d: B is reported per this many of D's unit, as ``per`` for A.
        tied: one exponent for both terms; it is reported as alpha.

    Also reported, with free exponents: a = beta / (alpha + beta) and b = 1 - a, of N_opt ~ C^a and D_opt ~ C^b at C ~
    N D.
    """

    n: str = "params_nonembed"
    d: str = "tokens_seen"
    per_d: float = field(default=1.0, kw_only=True)
    tied: bool = field(default=False, kw_only=True)

    name = "chinchilla"
    formula = "L = E + A N^-alpha + B D^-beta"
    simpler = "ChinchillaLaw(tied=True)"

    @property
    def roles(self) -> dict[str, str]:
        return {"n": self.n, "d": self.d}

    @property
    def names(self) -> tuple[str, ...]:
        return ("E", "A", "B", "alpha") if self.tied else ("E", "A", "B", "alpha", "beta")

    @property
    def log_linear(self) -> tuple[bool, ...]:
        return (False, True, True)

    def bounds(self) -> tuple[Floats, Floats]:
        exponents = 1 if self.tied else 2
        lower = np.array([0.0, -np.inf, -np.inf] + [EXPONENT_FLATTEST] * exponents)
        return lower, np.array([np.inf, np.inf, np.inf] + [EXPONENT_STEEPEST] * exponents)

    def pins(self) -> tuple[dict[int, float], dict[int, float]]:
        held = {self.names.index(name): value for name, value in self.fixed.items()}
        centre = {}
        for v, (name, per) in enumerate((("A", self.per), ("B", self.per_d))):
            if name in self.fixed:
                held[v + 1], centre[v] = float(np.log(self.fixed[name])), float(np.log(per))
        return held, centre

    def evaluate(self, theta_BP: Floats, u_Vn: Floats) -> tuple[Floats, Floats]:
        u, v = u_Vn
        jacobian = np.empty((len(theta_BP), theta_BP.shape[1], u.shape[-1]))
        jacobian[:, 0] = 1.0
        in_n, in_d = jacobian[:, 1], jacobian[:, 2]
        np.exp(_capped(theta_BP[:, 1, None] - theta_BP[:, 3, None] * u), out=in_n)
        np.exp(_capped(theta_BP[:, 2, None] - theta_BP[:, -1, None] * v), out=in_d)
        np.multiply(in_n, -u, out=jacobian[:, 3])
        if self.tied:
            jacobian[:, 3] -= in_d * v
        else:
            np.multiply(in_d, -v, out=jacobian[:, 4])
        return theta_BP[:, :1] + in_n + in_d, jacobian

    def library(self, u_Vn: Floats) -> Library:
        count = len(EXPONENTS)
        in_n, in_d = (safe_exp(-EXPONENTS[:, None] * u) for u in u_Vn)
        basis = np.concatenate([np.ones((1, u_Vn.shape[1])), in_n, in_d])
        i, j = (index.ravel() for index in np.indices((count, count)))
        if self.tied:
            i = j = np.arange(count)
        terms = np.stack([np.zeros_like(i), 1 + i, 1 + count + j], axis=-1)
        nonlinear = EXPONENTS[i][:, None] if self.tied else np.stack([EXPONENTS[i], EXPONENTS[j]], axis=-1)
        return Library(basis, terms, nonlinear, (i // 2) * count + j // 2)

    def report(self, theta_BP: Floats, centre_V: Floats) -> dict[str, Floats]:
        alpha, beta = theta_BP[:, 3], theta_BP[:, -1]
        a = safe_exp(theta_BP[:, 1] + alpha * (centre_V[0] - np.log(self.per)))
        b = safe_exp(theta_BP[:, 2] + beta * (centre_V[1] - np.log(self.per_d)))
        return dict(zip(self.names, (theta_BP[:, 0], a, b, alpha, beta), strict=False))

    def units(self, y_unit: str, x_units: Mapping[str, str]) -> dict[str, str]:
        a = prefactor_unit(y_unit, x_units["n"], self.per, "alpha")
        b = prefactor_unit(y_unit, x_units["d"], self.per_d, "alpha" if self.tied else "beta")
        return dict(zip(self.names, (y_unit, a, b, "1", "1"), strict=False))

    def derived(self, values: Mapping[str, Floats]) -> dict[str, Floats]:
        if self.tied:
            return {}  # a = b = 1/2 by construction
        a = values["beta"] / (values["alpha"] + values["beta"])
        return {"a": a, "b": 1.0 - a}


def _capped(exponent: Floats) -> Floats:
    return np.minimum(exponent, 700.0, out=exponent)
