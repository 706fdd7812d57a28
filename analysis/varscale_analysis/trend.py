"""Trend: a quantity of the compute frontier as a function of compute, y(C) = offset + s (C / C0)^exponent, with draws.

N_opt(C) and D_opt(C) are trends without offset (straight lines in log-log), L_opt(C) has one where it can be fitted.
Source: Hoffmann et al., arXiv:2203.15556, sec. 3; weights 1 / std^2 of log N*, Porian et al., arXiv:2406.19146.

Shapes: n points, B draws.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from varscale_analysis.bootstrap import interval
from varscale_analysis.fit import FitError, Floats
from varscale_analysis.laws.parameter import Parameter
from varscale_analysis.table import LEVEL

MIN_DRAWS = 100  # for an interval: its ends are the 5th value from either side


@dataclass(frozen=True)
class Estimate:
    """A value and its 90 % interval; ``low`` and ``high`` are None with fewer than 100 draws."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, value: float, drawn_B: Floats) -> Self:
        """With the central interval of the draws that are numbers."""
        drawn_B = drawn_B[np.isfinite(drawn_B)]
        low, high = interval(drawn_B, LEVEL) if len(drawn_B) >= MIN_DRAWS else (None, None)
        return cls(float(value), low, high)

    def __str__(self) -> str:
        text = f"{self.value:.4g}"
        return text if self.low is None else f"{text} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True, eq=False)
class Trend:
    """y(C) = offset + exp(log_scale + exponent (log C - log_centre)).

    Attributes:
        name: N_opt, D_opt or L_opt; ``unit`` of y. C is in FLOP.
        draws: (B, 3): offset, log_scale, exponent of each resample; fewer than 100 rows give no interval.
    """

    name: str
    unit: str
    offset: float
    log_scale: float
    exponent: float
    log_centre: float
    draws: Floats = field(repr=False)

    @property
    def theta(self) -> Floats:
        """(1, 3): offset, log_scale, exponent."""
        return np.array([[self.offset, self.log_scale, self.exponent]])

    @property
    def parameter(self) -> Parameter:
        """The exponent with its 90 % interval."""
        estimate = Estimate.of(self.exponent, self.draws[:, 2])
        return Parameter(f"exponent of {self.name}", self.exponent, "1", estimate.low, estimate.high)

    @property
    def coefficient(self) -> float:
        """s at C = 1 FLOP, in the unit of y: y = offset + coefficient C^exponent."""
        return float(np.exp(self.log_scale - self.exponent * self.log_centre))

    def predict(self, flops: ArrayLike) -> Floats:
        """y at compute ``flops``, in its shape. Raises ``ValueError`` for compute that is not positive."""
        return np.asarray(self._values(self.theta, flops)[0].reshape(np.shape(flops)))

    def drawn(self, flops: ArrayLike) -> Floats:
        """y of every draw: (B, n)."""
        return self._values(self.draws, flops)

    def interval(self, flops: ArrayLike, level: float = LEVEL) -> tuple[Floats, Floats]:
        """Central interval of y at ``flops``. Raises ``FitError`` with fewer than 100 draws."""
        if len(self.draws) < MIN_DRAWS:
            raise FitError(
                f"{self.name} has {len(self.draws)} draws, an interval needs {MIN_DRAWS}: ask for a bootstrap of more, "
                "or give more runs so that the resamples keep a frontier"
            )
        low, high = np.quantile(self.drawn(flops), [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low.reshape(np.shape(flops)), high.reshape(np.shape(flops))

    def solve(self, y: ArrayLike) -> Floats:
        """The compute at which the trend reaches y, in FLOP; NaN where it never does."""
        return np.asarray(solve_trend(self.theta, self.log_centre, np.ravel(y))[0].reshape(np.shape(y)))

    def __str__(self) -> str:
        offset = f"{self.offset:.4g} + " if self.offset else ""
        parameter = self.parameter
        text = f"{self.name} = {offset}{self.coefficient:.4g} C^{self.exponent:.4f}"
        if parameter.low is not None:
            text += f", exponent {LEVEL:.0%} interval [{parameter.low:.4f}, {parameter.high:.4f}]"
        return text + ("" if self.unit == "1" else f" ({self.unit})")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the draws as base64 of little-endian float64, row by row."""
        raw = np.ascontiguousarray(self.draws, dtype="<f8").tobytes()
        return {**vars(self), "draws": base64.b64encode(raw).decode()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``. Raises ``FitError`` for a mapping that is not a trend."""
        try:
            draws = np.frombuffer(base64.b64decode(values["draws"]), dtype="<f8").reshape(-1, 3).astype(np.float64)
            return cls(**{**values, "draws": draws})
        except (KeyError, TypeError, ValueError) as error:
            raise FitError(f"not a saved trend ({error!r}); write one with Trend.to_dict") from error

    def _values(self, theta_B3: Floats, flops: ArrayLike) -> Floats:
        c_n = np.atleast_1d(np.asarray(flops, dtype=np.float64)).ravel()
        if not (c_n > 0).all():
            raise ValueError(f"compute must be positive, got {c_n.min():g} FLOP")
        power = theta_B3[:, 1:2] + theta_B3[:, 2:] * (np.log(c_n) - self.log_centre)
        return np.asarray(theta_B3[:, :1] + np.exp(np.clip(power, -700.0, 700.0)))


def solve_trend(theta_B3: Floats, log_centre: float, y: ArrayLike) -> Floats:
    """Compute (B, n) at which each (offset, log_scale, exponent) reaches y, (n,) or (B, n); NaN where it never does."""
    above = np.atleast_1d(np.asarray(y, dtype=np.float64)) - theta_B3[:, :1]
    slope = np.where(theta_B3[:, 2:] == 0, np.nan, theta_B3[:, 2:])
    log_c = log_centre + (np.log(np.where(above > 0, above, np.nan)) - theta_B3[:, 1:2]) / slope
    return np.asarray(np.exp(np.clip(log_c, -700.0, 700.0)))


def line(x_Bn: Floats, z_Bn: Floats, w_Bn: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Weighted least squares of z on x, B problems at once: value at x = 0, slope, and whether there is a line.

    Points of weight 0 are absent. There is a line where at least two distinct x have weight.
    """
    total = w_Bn.sum(-1)
    safe = np.where(total > 0, total, 1.0)
    mean_x, mean_z = (w_Bn * x_Bn).sum(-1) / safe, (w_Bn * z_Bn).sum(-1) / safe
    d_Bn = x_Bn - mean_x[:, None]
    sxx = (w_Bn * d_Bn**2).sum(-1)
    good = (sxx > 1e-12 * safe) & (total > 0)
    slope = (w_Bn * d_Bn * z_Bn).sum(-1) / np.where(good, sxx, 1.0)
    return mean_z - slope * mean_x, slope, good


def fit_line(
    name: str,
    unit: str,
    c_n: Floats,
    y_n: Floats,
    w_n: Floats,
    draws_c_Bm: Floats,
    draws_y_Bm: Floats,
    draws_w_m: Floats | None = None,
) -> Trend:
    """The trend without offset through points (c, y) with weights, and through the points of every draw.

    ``draws_c_Bm`` and ``draws_y_Bm`` hold logarithms, NaN where a draw has no point, with weights ``draws_w_m`` (equal
    ones by default); a draw with fewer than two points gives no line. Raises ``FitError`` without two computes.
    """
    centre = float((w_n * np.log(c_n)).sum() / w_n.sum())
    value, slope, good = line((np.log(c_n) - centre)[None], np.log(y_n)[None], w_n[None])
    if not good[0]:
        raise FitError(f"{name}(C) needs optima at 2 budgets, there is {len(np.unique(c_n))}; add budgets")
    there = np.isfinite(draws_c_Bm) & np.isfinite(draws_y_Bm)
    x_Bm, z_Bm = np.where(there, draws_c_Bm - centre, 0.0), np.where(there, draws_y_Bm, 0.0)
    w_Bm = there * (np.ones(there.shape[1]) if draws_w_m is None else draws_w_m)
    values_B, slopes_B, good_B = line(x_Bm, z_Bm, w_Bm)
    draws = np.stack([np.zeros(int(good_B.sum())), values_B[good_B], slopes_B[good_B]], axis=-1)
    return Trend(name, unit, 0.0, float(value[0]), float(slope[0]), centre, draws)
