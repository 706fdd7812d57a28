"""LawFit: the result of fitting a law, with units, intervals and the certificate of its convergence.

Shapes: B draws, P inner parameters, n points.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from varscale_analysis.bootstrap import jackknife_interval, percentiles
from varscale_analysis.certificate import Certificate
from varscale_analysis.fit import FitError, Floats, Problem
from varscale_analysis.form import Form
from varscale_analysis.laws.diagnostics import Diagnostics
from varscale_analysis.laws.parameter import Parameter
from varscale_analysis.objective import Objective, Residual
from varscale_analysis.points import Points
from varscale_analysis.profile import Profile, profile_of
from varscale_analysis.table import LEVEL, unit_of

_REACH = 700.0  # of log x, either side of 1


@dataclass(frozen=True, eq=False)
class LawFit:
    """A fitted law with intervals: parameters, predictions, inverse, certificate.

    Attributes:
        form: the law, with its columns, objective and given parameters.
        points: what it was fitted to.
        theta, centre: inner parameters (P,) and centre (V,) of the coordinates: the numbers predictions come from.
        params, derived: reported parameters, and numbers made of them, with intervals at 90 %.
        certificate: why this is the optimum.
        diagnostics: residuals, noise and how the draws went.
        intervals: where the draws come from, such as "noise" or "pairs of rows"; "none".
        basis: the points in words.
        seed: of the draws.
        draws: (B, P) draws of theta; for a jackknife the fits without one group. Empty without intervals.
        noise: (B, 2) seed and size noise of each draw; empty where predictions take their noise from the residuals.
    """

    form: Form
    points: Points
    theta: tuple[float, ...]
    centre: tuple[float, ...]
    params: Mapping[str, Parameter]
    derived: Mapping[str, Parameter]
    certificate: Certificate
    diagnostics: Diagnostics
    intervals: str
    basis: str
    seed: int
    draws: Floats = field(repr=False)
    noise: Floats = field(repr=False)

    @property
    def law(self) -> str:
        """The law's name."""
        return self.form.name

    @property
    def x(self) -> str:
        """The first column."""
        return next(iter(self.form.roles.values()))

    @property
    def formula(self) -> str:
        """The form, with C for N where the column is compute."""
        return self.form.formula.replace(" N)", " C)") if self.x.startswith("flops") else self.form.formula

    @property
    def x_unit(self) -> str:
        """Unit of the first column."""
        return unit_of(self.x)

    @property
    def y(self) -> str:
        """The fitted column."""
        return self.points.y_name

    @property
    def y_unit(self) -> str:
        """Its unit."""
        return self.points.y_unit

    @property
    def at(self) -> str:
        """What the fit holds for, such as "at D = 2.5e+06 tokens"."""
        return self.points.at

    @property
    def objective(self) -> Objective:
        """What was minimised."""
        return self.form.criterion

    @property
    def residual(self) -> Residual:
        """Whether residuals are of log y or of y."""
        return self.objective.residual

    @property
    def rows(self) -> int:
        """Points behind the fit."""
        return len(self.points)

    @property
    def sizes(self) -> int:
        """Different values of the first column."""
        return len(np.unique(next(iter(self.points.x.values()))))

    @property
    def x_range(self) -> tuple[float, float]:
        """Smallest and largest value of the first column."""
        values = next(iter(self.points.x.values()))
        return float(values.min()), float(values.max())

    @property
    def problem(self) -> Problem:
        """The law on its points, for fitting again."""
        return Problem(self.form, self.points)

    @property
    def residuals(self) -> Floats:
        """Residuals (n,) on the scale of the objective."""
        return self.problem.residuals(np.array(self.theta))

    def values(self) -> dict[str, float]:
        """Reported parameters as plain numbers."""
        return {name: parameter.value for name, parameter in self.params.items()}

    def drawn(self) -> dict[str, Floats]:
        """Reported and derived parameters of every draw, each (B,). Raises ``FitError`` without draws."""
        reported = self.form.report(self._drawn(), np.array(self.centre))
        return {**reported, **self.form.derived(reported)}

    def predict(self, x: ArrayLike | None = None, /, **columns: ArrayLike) -> Floats:
        """The law at x, in ``y_unit``: ``predict(1e8)`` for a law of one column, ``predict(n=1e8, d=2e9)`` for more.

        x and the columns are numbers or arrays in the units of the points, broadcast together; the result has their
        shape. Raises ``ValueError`` for a role that is missing or unknown, or values that are not positive.
        """
        u, shape = self._u(x, columns)
        return np.asarray(self._law(np.array(self.theta)[None], u)[0].reshape(shape))

    def curve_interval(
        self, x: ArrayLike | None = None, /, level: float = LEVEL, **columns: ArrayLike
    ) -> tuple[Floats, Floats]:
        """Interval (low, high) of the law itself at x, without the noise of a run; ends are shaped as ``predict``'s.

        Raises ``FitError`` without draws, ``ValueError`` as ``predict`` and for a level outside (0, 1).
        """
        u, shape = self._u(x, columns)
        low, high = self._spread(self._law(np.array(self.theta)[None], u)[0], self._law(self._drawn(), u), level)
        return low.reshape(shape), high.reshape(shape)

    def predict_interval(
        self, x: ArrayLike | None = None, /, level: float = LEVEL, seeds: int = 1, **columns: ArrayLike
    ) -> tuple[Floats, Floats]:
        """Interval of what will be measured at x: the law's uncertainty and the residual noise of ``seeds`` runs' mean.

        The noise is that of the noise model, or the residuals drawn again, inflated by sqrt(n / (n - P)).
        Raises ``FitError`` without draws, or from a jackknife, which has none of the noise.
        """
        if self.intervals.startswith("jackknife"):
            raise FitError("a jackknife gives no prediction interval; fit with intervals='noise' or 'pairs'")
        draws, rng = self._drawn(), np.random.default_rng([self.seed, 1])
        u, shape = self._u(x, columns)
        values = self._law(draws, u, bounded=False)
        if len(self.noise):
            z_B2 = rng.standard_normal((len(draws), 2))
            noise_B = self.noise[:, 0] * z_B2[:, 0] / np.sqrt(seeds) + self.noise[:, 1] * z_B2[:, 1]
        else:
            inflated = self.residuals * np.sqrt(self.rows / max(self.diagnostics.degrees_of_freedom, 1))
            noise_B = rng.choice(inflated, (len(draws), seeds)).mean(-1)
        values = values * np.exp(noise_B)[:, None] if self.residual == "log" else values + noise_B[:, None]
        low, high = self._percentiles(self.form.bounded(values), level)
        return low.reshape(shape), high.reshape(shape)

    def interval(
        self, quantity: str | Callable[[Mapping[str, Floats]], Floats], level: float = LEVEL
    ) -> tuple[float, float]:
        """Interval of a parameter or derived number, or of any function of them.

        ``fit.interval("alpha")``, ``fit.interval(lambda p: p["beta"] / (p["alpha"] + p["beta"]))``.
        Raises ``FitError`` without draws or for an unknown name.
        """
        drawn = self.drawn()
        here = self.form.report(np.array(self.theta)[None], np.array(self.centre))
        here |= self.form.derived(here)
        if isinstance(quantity, str):
            if quantity not in drawn:
                raise FitError(f"{self.law} has no {quantity!r}; it has {', '.join(drawn)}")
            value, values = here[quantity], drawn[quantity]
            logs = {name for name, log in zip(self.form.names, self.form.log_linear, strict=False) if log}
            if quantity in logs and self.intervals.startswith("jackknife"):  # symmetric in the logarithm of a prefactor
                low, high = jackknife_interval(np.log(value), np.log(values)[:, None], level)
                return float(np.exp(low[0])), float(np.exp(high[0]))
        else:
            value, values = quantity(here), quantity(drawn)
        low, high = self._spread(np.asarray(value), np.asarray(values)[:, None], level)
        return float(low[0]), float(high[0])

    def profile(self, name: str) -> Profile:
        """The profile of a reported or derived number, with its own intervals. Raises as ``profile_of``."""
        return profile_of(self.problem, np.array(self.theta), name)

    def standard_error(self, name: str) -> float:
        """Standard deviation of the draws of a parameter or derived number. Raises as ``interval``."""
        if self.intervals.startswith("jackknife"):
            values = self.drawn()[name]
            return float(np.sqrt((len(values) - 1) / len(values) * ((values - values.mean()) ** 2).sum()))
        return float(self.drawn()[name].std())

    def solve(self, y: float, /, **known: ArrayLike) -> float:
        """The value of the column not given at which the law reaches y: ``solve(2.1)``, or ``solve(2.1, n=1e9)`` for d.

        Raises ``FitError`` when it never does.
        """
        value = float(self._inverse(np.array(self.theta)[None], y, known)[0])
        if not np.isfinite(value) or value == 0:
            role = self._open_role(known)
            offset = f": its offset E is {self.params['E'].value:.6g}" if "E" in self.params else ""
            raise FitError(
                f"the law never reaches {y:g} {self.y_unit} within 1e304 of {self.form.roles[role]}{offset}; ask for a "
                "loss above what it can reach"
            )
        return value

    def solve_interval(self, y: float, /, level: float = LEVEL, **known: ArrayLike) -> tuple[float, float]:
        """Interval of ``solve``; an end is infinite where draws never reach y. Raises ``FitError`` without draws."""
        value = self._inverse(np.array(self.theta)[None], y, known)
        low, high = self._spread(value, self._inverse(self._drawn(), y, known)[:, None], level)
        return float(low[0]), float(high[0])

    def summary(self) -> str:
        """The fit as text: form, parameters with units and intervals, certificate, correlation labelled as it must."""
        d = self.diagnostics
        columns = ", ".join(self.form.roles.values())
        lines = [f"{self.y} against {columns}, {self.formula}{', ' + self.at if self.at else ''}: {self.basis}"]
        level = f"{LEVEL:.0%} intervals, {self.intervals}" if self.intervals != "none" else "no intervals"
        lines.append("  " + ", ".join(map(str, self.params.values())) + f"  ({level})")
        if self.derived:
            lines.append("  " + ", ".join(map(str, self.derived.values())))
        text = f"  rms {d.rms:.3%}" if self.residual == "log" else f"  rms {d.rms:.4g} {self.y_unit}"
        c = self.certificate
        text += f", {c.starts_agreeing} of {c.starts_tried} starts agree, gradient {c.gradient:.0e}"
        if d.pearson_r is not None:
            text += f"; Pearson r of log-log {d.pearson_r:.4f} (printed, not evidence)"
        lines.append(text)
        return "\n".join([*lines, *(f"  NOT CERTIFIED: {fault}" for fault in c.faults)])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; draws and noise as base64 of little-endian float64, row by row."""
        return {
            "form": self.form.to_dict(),
            "points": self.points.to_dict(),
            "theta": list(self.theta),
            "centre": list(self.centre),
            "params": {name: vars(parameter) for name, parameter in self.params.items()},
            "derived": {name: vars(parameter) for name, parameter in self.derived.items()},
            "certificate": vars(self.certificate)
            | {k: list(getattr(self.certificate, k)) for k in ("at_bounds", "faults")},
            "diagnostics": vars(self.diagnostics),
            "intervals": self.intervals,
            "basis": self.basis,
            "seed": self.seed,
            "draws": _text(self.draws),
            "noise": _text(self.noise),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``. Raises ``FitError`` for a mapping that is not a fit."""
        try:
            items = {item.name: values[item.name] for item in fields(cls)}
            theta = tuple(map(float, values["theta"]))
            certificate = dict(values["certificate"])
            certificate |= {key: tuple(certificate[key]) for key in ("at_bounds", "faults")}
            for group in ("params", "derived"):
                items[group] = {name: Parameter(**parameter) for name, parameter in values[group].items()}
            return cls(
                **items
                | {
                    "form": Form.from_dict(values["form"]),
                    "points": Points.from_dict(values["points"]),
                    "theta": theta,
                    "centre": tuple(map(float, values["centre"])),
                    "certificate": Certificate(**certificate),
                    "diagnostics": Diagnostics(**values["diagnostics"]),
                    "draws": _numbers(values["draws"], len(theta)),
                    "noise": _numbers(values["noise"], 2),
                }
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FitError(f"not a saved fit ({error!r}); write one with LawFit.to_dict") from error

    def _u(self, x: ArrayLike | None, named: Mapping[str, ArrayLike]) -> tuple[Floats, tuple[int, ...]]:
        columns = self.form.columns(x, named)
        flat = {role: values.ravel() for role, values in columns.items()}
        u = self.form.raw_coordinates(flat) - np.array(self.centre)[:, None]
        return u, next(iter(columns.values())).shape

    def _law(self, theta_BP: Floats, u_Vn: Floats, bounded: bool = True) -> Floats:
        f = self.form.evaluate(theta_BP, u_Vn)[0]
        return self.form.bounded(f) if bounded else f

    def _open_role(self, known: Mapping[str, ArrayLike]) -> str:
        left = [role for role in self.form.roles if role not in known]
        if len(left) != 1 or set(known) - set(self.form.roles):
            raise ValueError(f"give all but one of {', '.join(self.form.roles)}; got {', '.join(known) or 'none'}")
        return left[0]

    def _inverse(self, theta_BP: Floats, y: float, known: Mapping[str, ArrayLike]) -> Floats:
        """Bisection in log x, which no draw can derail; infinite (or 0) beyond the reach."""
        role = self._open_role(known)
        low, high = np.full(len(theta_BP), -_REACH), np.full(len(theta_BP), _REACH)

        def gap(log_x: Floats) -> Floats:
            columns = self.form.columns(None, {**known, role: np.exp(log_x)})
            u = self.form.raw_coordinates(columns) - np.array(self.centre)[:, None]
            return np.asarray(self.form.evaluate(theta_BP, u[:, :, None])[0][:, 0] - y)

        at_low, at_high = gap(low), gap(high)
        flat = np.abs(at_high) <= 1e-13 * abs(y)
        crosses = (np.sign(at_low) != np.sign(at_high)) & ~flat
        for _ in range(64):
            middle = (low + high) / 2
            below = np.sign(gap(middle)) == np.sign(at_low)
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        beyond = np.where((np.abs(at_high) < np.abs(at_low)) | flat, np.inf, 0.0)
        return np.asarray(np.where(crosses, np.exp((low + high) / 2), beyond))

    def _drawn(self) -> Floats:
        if len(self.draws) == 0:
            raise FitError(
                f"{self.form.formula} on {self.rows} points has no draws: it leaves no degree of freedom, bootstrap "
                "was 0, or intervals are profiles; add a size or a seed, and ask for draws"
            )
        return self.draws

    def _spread(self, value_n: Floats, values_Bn: Floats, level: float) -> tuple[Floats, Floats]:
        if self.intervals.startswith("jackknife"):
            return jackknife_interval(value_n, values_Bn, level)
        return self._percentiles(values_Bn, level)

    def _percentiles(self, values_Bn: Floats, level: float) -> tuple[Floats, Floats]:
        if not 0 < level < 1:
            raise ValueError(f"a level lies between 0 and 1, got {level:g}")
        return percentiles(values_Bn, level)


def _text(values: Floats) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f8").tobytes()).decode()


def _numbers(text: str, width: int) -> Floats:
    return np.frombuffer(base64.b64decode(text), dtype="<f8").reshape(-1, width).astype(np.float64)
