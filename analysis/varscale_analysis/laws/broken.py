"""BrokenPowerLaw: L = E + b x^-c0 (1 + (x / d1)^(1 / f1))^(-c1 f1), a power law whose slope changes smoothly at d1.

Source: Caballero et al., arXiv:2210.14891, eq. 1 with one break. Before the break the slope is c0, after it c0 + c1;
f1 is the width of the change in log x. Needs points on both sides: it is for curves, not for a ladder of eight sizes.
Inside: theta = (E, log of the term's scale, c0, c0 + c1, log d1 - centre, f1); both slopes are at least 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.special import expit

from varscale_analysis.form import EXPONENT_STEEPEST, prefactor_unit, safe_exp
from varscale_analysis.laws.law import Law
from varscale_analysis.objective import Floats
from varscale_analysis.starts import Library

_SLOPES = np.array([0.01, 0.03, 0.08, 0.15, 0.3, 0.6, 1.2])
_WIDTHS = np.array([0.1, 0.4, 1.2])
_BREAKS = np.linspace(0.1, 0.9, 7)  # of the range of log x
_FURTHEST = 50.0  # of log d1 from the centre of the points: without a bound, points that show no break drive it away


@dataclass(frozen=True)
class BrokenPowerLaw(Law):
    """A smoothly broken power law of one column: slope c0 below N = d1, c0 + c1 above it, f1 the width of the change.

    Attributes:
        n: column of N; d1 is reported in its unit (or in ``per`` of them), b in the loss's unit times N's to the c0.
        offset: False leaves E >= 0, in the unit of the loss, out.

    E and c0 can be given with ``fixed``; ``ValueError`` for the others.
    """

    n: str = "params_nonembed"
    offset: bool = field(default=True, kw_only=True)

    name = "broken"
    formula = "L = E + b N^-c0 (1 + (N / d1)^(1/f1))^(-c1 f1)"
    fixed_tokens = True
    signed = True
    simpler = "SaturatingPowerLaw"

    def __post_init__(self) -> None:
        super().__post_init__()
        if set(self.fixed) - {"E", "c0"}:
            raise ValueError(f"{self.name} can be given E and c0, not {sorted(set(self.fixed) - {'E', 'c0'})}")

    @property
    def roles(self) -> dict[str, str]:
        return {"n": self.n}

    @property
    def names(self) -> tuple[str, ...]:
        return ("E", "b", "c0", "c1", "d1", "f1")

    @property
    def num_params(self) -> int:
        return len(self.names) - len(self.pins()[0])

    @property
    def log_linear(self) -> tuple[bool, ...]:
        return (False, True)

    def bounds(self) -> tuple[Floats, Floats]:
        lower = np.array([0.0, -np.inf, 0.0, 0.0, -_FURTHEST, 0.02])
        return lower, np.array([np.inf, np.inf, EXPONENT_STEEPEST, EXPONENT_STEEPEST, _FURTHEST, 5.0])

    def pins(self) -> tuple[dict[int, float], dict[int, float]]:
        held = {} if self.offset else {0: 0.0}
        return held | {{"E": 0, "c0": 2}[name]: value for name, value in self.fixed.items()}, {}

    def evaluate(self, theta_BP: Floats, u_Vn: Floats) -> tuple[Floats, Floats]:
        e, a, before, after, place, width = (theta_BP[:, i, None] for i in range(6))
        u = u_Vn[0]
        z = (u - place) / width
        soft, gate = width * np.logaddexp(0.0, z), expit(z)
        # Capped far below safe_exp's bound, because a wild step multiplies it by what is wild too.
        term = np.exp(np.clip(a - before * u - (after - before) * soft, -700.0, 300.0))
        change = after - before
        slopes = [np.ones_like(term), term, term * (soft - u), -term * soft, term * change * gate]
        slopes.append(-term * change * (soft / width - gate * z))
        return e + term, np.stack(slopes, axis=1)

    def library(self, u_Vn: Floats) -> Library:
        u = u_Vn[0]
        places = u.min() + _BREAKS * np.ptp(u)
        grid = np.meshgrid(_SLOPES, _SLOPES, places, _WIDTHS, indexing="ij")
        nonlinear = np.stack([axis.ravel() for axis in grid], axis=-1)
        nonlinear = nonlinear[nonlinear[:, 0] != nonlinear[:, 1]]
        theta = np.concatenate([np.zeros((len(nonlinear), 2)), nonlinear], axis=-1)
        basis = np.concatenate([np.ones((1, len(u))), self.evaluate(theta, u_Vn)[0]])
        index = np.arange(len(nonlinear))
        terms = np.stack([np.zeros_like(index), index + 1], axis=-1)
        return Library(basis, terms, nonlinear, index // len(_WIDTHS))

    def report(self, theta_BP: Floats, centre_V: Floats) -> dict[str, Floats]:
        before, after, width = theta_BP[:, 2], theta_BP[:, 3], theta_BP[:, 5]
        scale, c = np.log(self.per), centre_V[0]
        b, place = safe_exp(theta_BP[:, 1] + before * (c - scale)), safe_exp(theta_BP[:, 4] + c - scale)
        return {"E": theta_BP[:, 0], "b": b, "c0": before, "c1": after - before, "d1": place, "f1": width}

    def units(self, y_unit: str, x_units: Mapping[str, str]) -> dict[str, str]:
        x = x_units["n"] if self.per == 1.0 else f"{self.per:g} {x_units['n']}"
        b = prefactor_unit(y_unit, x_units["n"], self.per, "c0")
        return {"E": y_unit, "b": b, "c0": "1", "c1": "1", "d1": x, "f1": "1"}
