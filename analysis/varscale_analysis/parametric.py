"""The compute-optimal allocation of a parametric law L = E + A N^-alpha + B D^-beta, in closed form.

Source: Hoffmann et al., arXiv:2203.15556, eq. 4: N_opt = G (C / k)^(beta / (alpha + beta)), D_opt = (C / k)^(alpha /
(alpha + beta)) / G, G = (alpha A / (beta B))^(1 / (alpha + beta)). Differs: the FLOPs per parameter and token may
depend on N as k = k1 N^g (attention, heads and embeddings make g differ from 0), which keeps the closed form.

Shapes: B draws, n points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from varscale_analysis.fit import FitError, Floats
from varscale_analysis.laws.chinchilla import ChinchillaLaw
from varscale_analysis.laws.result import LawFit
from varscale_analysis.trend import Trend, line

UNITS_FACTOR = 30.0  # C / (N D) differs by attention and heads, by less than this; beyond it two units are mixed


@dataclass(frozen=True)
class ComputeCost:
    """C = k N^g N D: training FLOPs of N parameters and D tokens.

    Attributes:
        k: FLOPs per parameter and token at N = 1; 6 by the usual count of forward and backward.
        g: exponent of the dependence on N, 0 for a constant.
    """

    k: float = 6.0
    g: float = 0.0

    @classmethod
    def from_columns(cls, c: ArrayLike, n: ArrayLike, d: ArrayLike) -> ComputeCost:
        """k and g by a line through log C / (N D) against log N (g = 0 for a single size).

        Raises ``FitError`` when C / (N D) spreads so far that a column must hold two units.
        """
        c_n, n_n, d_n = (np.asarray(values, dtype=np.float64).ravel() for values in (c, n, d))
        per = check_units(c_n, n_n, d_n)
        value, slope, good = line(np.log(n_n)[None], np.log(per)[None], np.ones((1, len(per))))
        if not good[0]:
            return cls(float(np.exp(np.log(per).mean())))
        g = float(slope[0])
        return cls(float(np.exp(value[0])), g) if abs(g) > 1e-9 else cls(float(np.exp(np.log(per).mean())))

    def flops(self, n: ArrayLike, d: ArrayLike) -> Floats:
        """C (FLOP) of N parameters and D tokens, numbers or arrays."""
        return np.asarray(self.k * np.asarray(n, dtype=np.float64) ** (1 + self.g) * np.asarray(d, dtype=np.float64))

    def __str__(self) -> str:
        return f"{self.k:.4g} N^{self.g:.3g} N D" if self.g else f"{self.k:.4g} N D"


@dataclass(frozen=True, eq=False)
class LossLaw:
    """The numbers of a fitted L = E + A N^-alpha + B D^-beta, and their draws.

    Attributes:
        value: (5,): E, A, B, alpha, beta, with N and D counted in ones.
        draws: (B, 5), empty without intervals.
        cost: how N and D make C.
    """

    value: Floats
    draws: Floats
    cost: ComputeCost

    @classmethod
    def of(cls, fit: LawFit, cost: ComputeCost) -> LossLaw:
        """From a fitted ``ChinchillaLaw``, whatever units its A and B are reported in.

        Raises ``FitError`` for another law, and for exponents or prefactors that are not positive: such a law has no
        compute-optimal size.
        """
        form = fit.form
        if not isinstance(form, ChinchillaLaw):
            raise FitError(f"a frontier needs L = E + A N^-alpha + B D^-beta; fit ChinchillaLaw, not {fit.formula}")

        def theta(values: Mapping[str, Floats]) -> Floats:
            alpha = values["alpha"]
            beta = values.get("beta", alpha)
            big_a, big_b = values["A"] * form.per**alpha, values["B"] * form.per_d**beta
            return np.stack([values["E"], big_a, big_b, alpha, beta], axis=-1)

        value = theta({name: np.asarray(number) for name, number in fit.values().items()})
        if not (np.isfinite(value).all() and (value[1:] > 0).all()):
            raise FitError(
                f"the law has no compute-optimal size: A, B and exponents must be above 0, got {fit.values()}"
            )
        drawn = theta(fit.drawn()) if len(fit.draws) else np.empty((0, 5))
        return cls(value, drawn[np.isfinite(drawn).all(-1) & (drawn[:, 1:] > 0).all(-1)], cost)

    def loss(self, flops: ArrayLike, n: ArrayLike) -> Floats:
        """L at compute C and size N."""
        log_c, log_n = np.broadcast_arrays(np.log(flops), np.log(n))
        loss = loss_at(self.value[None], self.cost, log_c.ravel(), log_n.ravel())[0]
        return np.asarray(loss.reshape(log_c.shape))

    def trends(self, n_unit: str, d_unit: str, y_unit: str) -> tuple[Trend, Trend, Trend]:
        """N_opt(C), D_opt(C) and L_opt(C)."""
        value, drawn = optimum(self.value[None], self.cost), optimum(self.draws, self.cost)

        def trend(i: int, name: str, unit: str) -> Trend:
            offset, log_scale, exponent = (float(number) for number in value[i][0])
            return Trend(name, unit, offset, log_scale, exponent, 0.0, drawn[i])

        return trend(0, "N_opt", n_unit), trend(1, "D_opt", d_unit), trend(2, "L_opt", y_unit)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"value": self.value.tolist(), "draws": self.draws.tolist(), "cost": vars(self.cost)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LossLaw:
        """The inverse of ``to_dict``."""
        draws = np.asarray(values["draws"], dtype=np.float64).reshape(-1, 5)
        return cls(np.asarray(values["value"], dtype=np.float64), draws, ComputeCost(**values["cost"]))


def optimum(theta_B5: Floats, cost: ComputeCost) -> tuple[Floats, Floats, Floats]:
    """N_opt, D_opt and L_opt as (B, 3) each: offset, log of the scale at C = 1 FLOP, exponent."""
    e, big_a, big_b, alpha, beta = theta_B5.T
    # Along C = k N^(1 + g) D the exponent of D in N is -(1 + g), so beta acts as beta (1 + g).
    h = 1 + cost.g
    total = alpha + beta * h
    log_k = np.log(cost.k)
    log_g = np.log(alpha * big_a / (beta * h * big_b)) / total
    n_exponent = beta / total
    n_log = log_g - n_exponent * log_k
    d_exponent, d_log = 1 - h * n_exponent, -log_k - h * n_log
    # At the optimum both terms fall as C^-(alpha n_exponent), because alpha N_exponent = beta D_exponent.
    log_l = np.logaddexp(np.log(big_a) - alpha * n_log, np.log(big_b) - beta * d_log)
    zero = np.zeros_like(e)
    return (
        np.stack([zero, n_log, n_exponent], axis=-1),
        np.stack([zero, d_log, d_exponent], axis=-1),
        np.stack([e, log_l, -alpha * n_exponent], axis=-1),
    )


def loss_at(theta_B5: Floats, cost: ComputeCost, log_c: ArrayLike, log_n: ArrayLike) -> Floats:
    """L (B, n) at log C and log N, each a number, (n,) or (B, n)."""
    e, big_a, big_b, alpha, beta = (column[:, None] for column in theta_B5.T)
    log_d = np.asarray(log_c) - np.log(cost.k) - (1 + cost.g) * np.asarray(log_n)
    return np.asarray(e + np.exp(np.log(big_a) - alpha * log_n) + np.exp(np.log(big_b) - beta * log_d))


def check_units(c_n: Floats, n_n: Floats, d_n: Floats) -> Floats:
    """C / (N D) of every run. Raises ``FitError`` when it spreads so far that a column must hold two units."""
    per = c_n / (n_n * d_n)
    if per.max() > UNITS_FACTOR * per.min():
        low, high = int(np.argmin(per)), int(np.argmax(per))
        raise FitError(
            f"C / (N D) runs from {per[low]:.4g} (row {low}: C {c_n[low]:.4g}, N {n_n[low]:.4g}, D {d_n[low]:.4g}) to "
            f"{per[high]:.4g} (row {high}: C {c_n[high]:.4g}, N {n_n[high]:.4g}, D {d_n[high]:.4g}): a column holds "
            "two units; give C in FLOP, N and D in ones, in every row"
        )
    return per
