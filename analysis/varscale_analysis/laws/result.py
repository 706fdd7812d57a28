"""LawFit: the result of fitting a law, with units, intervals and the certificate of its convergence."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from varscale_analysis.fit import FitError, Floats, Objective, curve
from varscale_analysis.table import LEVEL


@dataclass(frozen=True)
class Parameter:
    """One parameter of a law: value, unit and 90 % interval (None where no degree of freedom is left for one)."""

    name: str
    value: float
    unit: str
    low: float | None
    high: float | None
    at_bound: bool = False

    def __str__(self) -> str:
        text = f"{self.name} = {self.value:.4g}"
        if self.low is not None and self.high is not None:
            text += f" [{self.low:.4g}, {self.high:.4g}]"
        text += f" {self.unit}" if self.unit != "1" else ""
        return text + (" (at its bound)" if self.at_bound else "")


@dataclass(frozen=True)
class Diagnostics:
    """The certificate of a fit, and what is left of the data after it.

    Attributes:
        starts_tried, starts_agreeing: starts, and those that end at the best objective.
        next_basin: relative gap of objective to the best start that ended elsewhere; None if all agree.
        gradient: largest cosine between the residual and a free column of the Jacobian; 0 at an optimum.
        rms: root mean square residual, on the scale of the objective (log: a fraction of the loss).
        degrees_of_freedom: rows minus parameters.
        draws, draws_converged: refits of the bootstrap, and those that met the tolerance.
        seed_sd, size_sd, lack_of_fit_p: see ``NoiseModel``; None without a degree of freedom.
        pearson_r: correlation of log x and log y. Printed, not evidence: it stays above .99 for wrong offsets.
        pearson_r_offset: the same after the fitted offset is taken off; None for a law without one.
    """

    starts_tried: int
    starts_agreeing: int
    next_basin: float | None
    gradient: float
    rms: float
    degrees_of_freedom: int
    draws: int
    draws_converged: int
    seed_sd: float | None
    size_sd: float | None
    lack_of_fit_p: float | None
    pearson_r: float | None
    pearson_r_offset: float | None


@dataclass(frozen=True, eq=False)
class LawFit:
    """A fitted law with intervals: parameters, predictions, inverse, certificate.

    Attributes:
        law, formula: name and form.
        x, x_unit, y, y_unit: columns and their units.
        at: what the fit holds for, such as "at D = 2.5e+06 tokens".
        params: E, beta, alpha as the law has them.
        rows, sizes: points behind the fit and their distinct x; ``basis`` says it in words.
        theta, centre: (E, a, alpha) of E + exp(a + alpha (log x - centre)), the numbers predictions come from.
        draws: (B, 5), bootstrap draws of theta with the seed and size noise of each; empty without intervals.
    """

    law: str
    formula: str
    x: str
    x_unit: str
    y: str
    y_unit: str
    at: str
    objective: Objective
    params: Mapping[str, Parameter]
    rows: int
    sizes: int
    basis: str
    x_range: tuple[float, float]
    theta: tuple[float, float, float]
    centre: float
    seed: int
    diagnostics: Diagnostics
    draws: Floats = field(repr=False)

    def predict(self, x: ArrayLike) -> Floats:
        """Loss at x (a number or an array), in ``y_unit``."""
        return np.asarray(curve(np.array(self.theta), self._u(x)).reshape(np.shape(x)))

    def curve_interval(self, x: ArrayLike, level: float = LEVEL) -> tuple[Floats, Floats]:
        """Interval of the law itself at x, without the noise of a run. Raises ``FitError`` without draws."""
        return self._bounds(curve(self._drawn()[:, :3], self._u(x)), x, level)

    def predict_interval(self, x: ArrayLike, level: float = LEVEL, seeds: int = 1) -> tuple[Floats, Floats]:
        """Interval of what will be measured at x: the law's uncertainty and the residual noise of ``seeds`` runs' mean.

        Raises ``FitError`` without draws.
        """
        draws = self._drawn()
        rng = np.random.default_rng([self.seed, 1])
        z_B2 = rng.standard_normal((len(draws), 2))
        noise_B = draws[:, 3] * z_B2[:, 0] / np.sqrt(seeds) + draws[:, 4] * z_B2[:, 1]
        values = curve(draws[:, :3], self._u(x))
        values = values * np.exp(noise_B)[:, None] if self.objective == "log" else values + noise_B[:, None]
        return self._bounds(values, x, level)

    def solve(self, y: float) -> float:
        """The x at which the law reaches loss y. Raises ``FitError`` when it never does."""
        e, a, alpha = self.theta
        if y <= e or alpha == 0:
            raise FitError(
                f"the law never reaches {y:g} {self.y_unit}: its offset E is {e:.6g}; ask for a loss above E"
            )
        exponent = (np.log(y - e) - a) / alpha + self.centre
        if exponent > 700:
            raise FitError(
                f"the law reaches {y:g} {self.y_unit} only beyond 1e304 {self.x_unit}; ask for a higher loss"
            )
        return float(np.exp(exponent))

    def summary(self) -> str:
        """The fit as text: form, parameters with units and intervals, certificate, correlation labelled as it must."""
        d = self.diagnostics
        lines = [f"{self.y} against {self.x}, {self.formula}, {self.at}: {self.basis}"]
        lines.append("  " + ", ".join(map(str, self.params.values())) + f"  ({LEVEL:.0%} intervals)")
        text = f"  rms {d.rms:.3%}" if self.objective == "log" else f"  rms {d.rms:.4g} {self.y_unit}"
        text += f", {d.starts_agreeing} of {d.starts_tried} starts agree, gradient {d.gradient:.0e}"
        if d.pearson_r is not None:
            text += f"; Pearson r of log-log {d.pearson_r:.4f} (printed, not evidence)"
        return "\n".join([*lines, text])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the draws as base64 of little-endian float64, row by row."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["params"] = {name: vars(parameter) for name, parameter in self.params.items()}
        values["diagnostics"] = vars(self.diagnostics)
        values["theta"], values["x_range"] = list(self.theta), list(self.x_range)
        values["draws"] = base64.b64encode(np.ascontiguousarray(self.draws, dtype="<f8").tobytes()).decode()
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``. Raises ``FitError`` for a mapping that is not a fit."""
        try:
            fields = dict(values)
            fields["params"] = {name: Parameter(**parameter) for name, parameter in values["params"].items()}
            fields["diagnostics"] = Diagnostics(**values["diagnostics"])
            fields["theta"], fields["x_range"] = tuple(values["theta"]), tuple(values["x_range"])
            raw = base64.b64decode(values["draws"])
            fields["draws"] = np.frombuffer(raw, dtype="<f8").reshape(-1, 5).astype(np.float64)
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise FitError(f"not a saved fit ({error!r}); write one with LawFit.to_dict") from error

    def _u(self, x: ArrayLike) -> Floats:
        values = np.atleast_1d(np.asarray(x, dtype=np.float64)).ravel()
        if not (values > 0).all():
            raise ValueError(f"{self.x} must be positive, got {values.min():g} {self.x_unit}")
        return np.asarray(np.log(values) - self.centre)

    def _drawn(self) -> Floats:
        if len(self.draws) == 0:
            raise FitError(
                f"{self.formula} on {self.rows} points has no intervals: it leaves no degree of freedom, or bootstrap "
                "was 0; add a size or a seed, and ask for draws"
            )
        return self.draws

    def _bounds(self, values_Bn: Floats, x: ArrayLike, level: float) -> tuple[Floats, Floats]:
        if not 0 < level < 1:
            raise ValueError(f"a level lies between 0 and 1, got {level:g}")
        low, high = np.quantile(values_Bn, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low.reshape(np.shape(x)), high.reshape(np.shape(x))
