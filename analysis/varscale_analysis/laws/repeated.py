"""RepeatedDataLaw: Chinchilla's law on data seen more than once, L = E + A N'^-alpha + B D'^-beta.

Source: Muennighoff et al., arXiv:2305.16264, eq. 5 and 6. Of D tokens seen, U are unique; a repetition R = D / U - 1
is worth less and less: D' = U + U R* (1 - exp(-R / R*)), so D' saturates at U (1 + R*). The same for parameters beyond
the number U_N that the unique data can use, if a column of U_N is named (``base_parameters`` computes it).
Inside: theta = (E, log of the N term, log of the D term, alpha, beta, log R*, log R*_N).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from varscale_analysis.form import EXPONENTS, safe_exp
from varscale_analysis.laws.chinchilla import ChinchillaLaw
from varscale_analysis.objective import Floats
from varscale_analysis.starts import Library

_HALVES = np.geomspace(0.5, 100.0, 7)
_COARSE = EXPONENTS[1::3]


@dataclass(frozen=True)
class RepeatedDataLaw(ChinchillaLaw):
    """Loss of N parameters on D tokens of which ``u`` are unique: R*, the repetitions after which data is worth little.

    Attributes:
        u: column of unique tokens.
        u_n: column of the parameters that the unique data can use; None: N counts in full.
    """

    u: str = "unique_tokens"
    u_n: str | None = None
    tied: bool = field(default=False, kw_only=True)

    name = "repeated"
    formula = "L = E + A N'^-alpha + B D'^-beta, D' = U + U R* (1 - exp(-(D/U - 1)/R*))"
    simpler = "ChinchillaLaw"

    @property
    def roles(self) -> dict[str, str]:
        roles = {"n": self.n, "d": self.d, "u": self.u}
        return roles if self.u_n is None else roles | {"u_n": self.u_n}

    @property
    def _exponents(self) -> int:
        return 1 if self.tied else 2

    @property
    def names(self) -> tuple[str, ...]:
        names = (*super().names, "R*")
        return names if self.u_n is None else (*names, "R*_N")

    def bounds(self) -> tuple[Floats, Floats]:
        lower, upper = super().bounds()
        halves = len(self.names) - len(lower)
        return np.append(lower, [np.log(1e-2)] * halves), np.append(upper, [np.log(1e4)] * halves)

    def pins(self) -> tuple[dict[int, float], dict[int, float]]:
        held, centre = super().pins()
        for name in ("R*", "R*_N"):
            if name in self.fixed:
                held[self.names.index(name)] = float(np.log(self.fixed[name]))
        return held, centre

    def raw_coordinates(self, x: Mapping[str, Floats]) -> Floats:
        """log of the first pass of N and D, and the repetitions of each beyond it (0 where there is none)."""
        once_d = np.minimum(x["d"], x["u"])
        once_n = x["n"] if self.u_n is None else np.minimum(x["n"], x["u_n"])
        return np.stack([np.log(once_n), np.log(once_d), x["n"] / once_n - 1.0, x["d"] / once_d - 1.0])

    def centre(self, u_Vn: Floats) -> Floats:
        centre = super().centre(u_Vn)
        centre[2:] = 0.0
        return centre

    def evaluate(self, theta_BP: Floats, u_Vn: Floats) -> tuple[Floats, Floats]:
        chinchilla = 3 + self._exponents
        worth_d, slope_d = _worth(theta_BP[:, chinchilla, None], u_Vn[3])
        inner = np.stack(np.broadcast_arrays(u_Vn[0], u_Vn[1] + worth_d))
        slope_n: Floats | None = None
        if self.u_n is not None:
            worth_n, slope_n = _worth(theta_BP[:, chinchilla + 1, None], u_Vn[2])
            inner[0] += worth_n
        f, jacobian = super().evaluate(theta_BP[:, :chinchilla], inner)
        alpha, beta = theta_BP[:, 3, None], theta_BP[:, chinchilla - 1, None]
        more = [-beta * jacobian[:, 2] * slope_d]
        if slope_n is not None:
            more.append(-alpha * jacobian[:, 1] * slope_n)
        return f, np.concatenate([jacobian, np.stack(more, axis=1)], axis=1)

    def library(self, u_Vn: Floats) -> Library:
        axes = [_COARSE] * self._exponents + [_HALVES] * (1 if self.u_n is None else 2)
        indices = [index.ravel() for index in np.indices([len(axis) for axis in axes])]
        nonlinear = np.stack([axis[index] for axis, index in zip(axes, indices, strict=True)], axis=-1)
        nonlinear[:, self._exponents :] = np.log(nonlinear[:, self._exponents :])
        halves = len(_HALVES)
        in_d = [-e * (u_Vn[1] + _worth(np.log(h), u_Vn[3])[0]) for e in _COARSE for h in _HALVES]
        if self.u_n is None:
            in_n = [-e * u_Vn[0] for e in _COARSE]
            at_n = indices[0]
        else:
            in_n = [-e * (u_Vn[0] + _worth(np.log(h), u_Vn[2])[0]) for e in _COARSE for h in _HALVES]
            at_n = indices[0] * halves + indices[self._exponents + 1]
        at_d = indices[self._exponents - 1] * halves + indices[self._exponents]
        basis = np.concatenate([np.ones((1, u_Vn.shape[1])), safe_exp(np.stack(in_n)), safe_exp(np.stack(in_d))])
        terms = np.stack([np.zeros_like(at_n), 1 + at_n, 1 + len(in_n) + at_d], axis=-1)
        return Library(basis, terms, nonlinear, np.arange(len(nonlinear)) // 2)

    def report(self, theta_BP: Floats, centre_V: Floats) -> dict[str, Floats]:
        chinchilla = 3 + self._exponents
        values = super().report(theta_BP[:, :chinchilla], centre_V)
        halves = self.names[chinchilla:]
        return values | {name: np.exp(theta_BP[:, chinchilla + i]) for i, name in enumerate(halves)}

    def units(self, y_unit: str, x_units: Mapping[str, str]) -> dict[str, str]:
        return super().units(y_unit, x_units) | dict.fromkeys(self.names[3 + self._exponents :], "1")

    def needed(self, x: Mapping[str, Floats]) -> str | None:
        for role, unique in (("d", "u"), ("n", "u_n")):
            if unique in x and not (x[role] > x[unique] * 1.001).any():
                return f"no row has {self.roles[role]} above {self.roles[unique]}: nothing is repeated, R* is unseen"
        return ChinchillaLaw(self.n, self.d).needed(x)


def _worth(log_half: Floats | float, repeats: Floats) -> tuple[Floats, Floats]:
    """log(1 + R* (1 - exp(-R / R*))), and its derivative in log R*."""
    half = np.exp(log_half)
    decay = np.exp(-repeats / half)
    total = 1.0 + half * (1.0 - decay)
    return np.log(total), np.asarray((half * (1.0 - decay) - repeats * decay) / total)


def base_parameters(unique_tokens: ArrayLike, n: ArrayLike, *, A: float, B: float, alpha: float, beta: float) -> Floats:
    """U_N = min(N_opt, N): the parameters that ``unique_tokens`` can use, from a law fitted to data seen once.

    Tokens and sizes ``n`` are numbers or arrays, broadcast together; A, B, alpha, beta are those of ``ChinchillaLaw``
    with N and D counted in ones. N_opt is the N at which U tokens are compute-optimal, (alpha A / (beta B))^(1 / alpha)
    U^(beta / alpha).
    """
    log_n = (np.log(alpha * A / (beta * B)) + beta * np.log(np.asarray(unique_tokens, dtype=np.float64))) / alpha
    return np.asarray(np.minimum(np.exp(log_n), np.asarray(n, dtype=np.float64)))
