"""Form: the mathematics of a law, as the solver sees it and as a person reads it.

A law is a sum of terms with linear coefficients, theta = (linear ..., nonlinear ...), on coordinates u that are centred
logarithms of its columns (so theta is well conditioned whatever the unit). Prefactors are logarithms inside theta, an
offset E is itself. ``report`` turns theta into the named parameters of the literature, with units; a change of a
column's unit, or of ``per``, moves prefactors only.
Shapes: V coordinates of a point, n points, B parameter vectors, P parameters of one, G points of a grid of starts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from varscale_analysis.objective import FitError, Floats, Objective, squares
from varscale_analysis.starts import Library

EXPONENT_FLATTEST, EXPONENT_STEEPEST = 1e-3, 4.0  # beyond: a straight line in log x, or a step
EXPONENTS = np.geomspace(0.01, 3.0, 32)

_F = TypeVar("_F", bound="Form")


@dataclass(frozen=True)
class Form(ABC):
    """What every law shares.

    Attributes:
        per: prefactors in N are reported per this many of its unit: 1e9 for billions of parameters.
        objective: what a fit minimises; "log" and "raw" stand for least squares of these residuals.
        fixed: parameters that are given, by their reported name and in its unit, such as {"E": 1.69}.
    """

    per: float = field(default=1.0, kw_only=True)
    objective: Objective | str = field(default="log", kw_only=True)
    fixed: Mapping[str, float] = field(default_factory=dict, kw_only=True)

    name: ClassVar[str]
    formula: ClassVar[str]
    fixed_tokens: ClassVar[bool] = False  # whether E and the exponent hold for one number of training tokens
    signed: ClassVar[bool] = False  # whether reported exponents carry their sign (VAR's convention)
    rate: ClassVar[bool] = False  # whether y is an error rate, at most 1
    correlated: ClassVar[bool] = False  # whether one run gives several points
    simpler: ClassVar[str] = ""  # a law with fewer parameters, for the message of too few points

    def __post_init__(self) -> None:
        unknown = set(self.fixed) - set(self.names)
        if unknown:
            raise ValueError(f"{self.name} has no parameter {sorted(unknown)}; fix some of {', '.join(self.names)}")
        for name, value in self.fixed.items():
            if not np.isfinite(value) or (value < 0 and not self.signed):
                raise ValueError(f"{name} is fixed at {value:g}; it must be a finite number of at least 0")
        if not isinstance(self.objective, Objective):
            object.__setattr__(self, "objective", squares(self.objective))  # type: ignore[arg-type]

    @property
    def criterion(self) -> Objective:
        """The objective, whichever way it was given."""
        assert isinstance(self.objective, Objective)
        return self.objective

    @property
    @abstractmethod
    def roles(self) -> dict[str, str]:
        """Column by role, such as n and d, in the order of positional arguments."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Reported parameters, each standing for the inner one at the same place of theta."""

    @property
    @abstractmethod
    def log_linear(self) -> tuple[bool, ...]:
        """For each linear parameter whether theta holds its logarithm."""

    @abstractmethod
    def bounds(self) -> tuple[Floats, Floats]:
        """Lower and upper bound of theta, before anything is fixed."""

    @abstractmethod
    def pins(self) -> tuple[dict[int, float], dict[int, float]]:
        """Fixed parameters as theta index -> value, and coordinate -> the centre they need."""

    @abstractmethod
    def evaluate(self, theta_BP: Floats, u_Vn: Floats) -> tuple[Floats, Floats]:
        """The law (B, n) and its Jacobian (B, P, n) at coordinates (V, n) or (V, B, n)."""

    @abstractmethod
    def library(self, u_Vn: Floats) -> Library:
        """The grid of starts."""

    @abstractmethod
    def report(self, theta_BP: Floats, centre_V: Floats) -> dict[str, Floats]:
        """The reported parameters, each (B,)."""

    @abstractmethod
    def units(self, y_unit: str, x_units: Mapping[str, str]) -> dict[str, str]:
        """The unit of each reported parameter."""

    def derived(self, values: Mapping[str, Floats]) -> dict[str, Floats]:
        """Further numbers that a reader wants with an interval, from the reported ones."""
        return {}

    def raw_coordinates(self, x: Mapping[str, Floats]) -> Floats:
        """Coordinates (V, n) before centring: logarithms of the columns in the order of the roles."""
        return np.log(np.stack([x[role] for role in self.roles]))

    def bounded(self, y: Floats) -> Floats:
        """Predictions held to what can be: a hook for error rates."""
        return y

    def needed(self, x: Mapping[str, Floats]) -> str | None:
        """What the points lack for this law beyond their number; None if nothing."""
        for role, column in self.roles.items():
            if len(np.unique(x[role])) < 2:
                return f"{column} has one value, {x[role][0]:g}: no exponent can be seen; measure at a second one"
        return None

    @property
    def num_params(self) -> int:
        """Free parameters."""
        return len(self.bounds()[0]) - len(self.fixed)

    def centre(self, u_Vn: Floats) -> Floats:
        """The centre (V,) of each coordinate; that of a fixed prefactor is given by it."""
        centre = u_Vn.mean(-1)
        for v, value in self.pins()[1].items():
            centre[v] = value
        return np.asarray(centre)

    def known(self) -> Floats:
        """Given linear coefficients (K,), NaN where they are free."""
        held, logs = self.pins()[0], self.log_linear
        values = [held.get(k, np.nan) for k in range(len(logs))]
        return np.array([np.exp(v) if log else v for v, log in zip(values, logs, strict=True)])

    def assemble(self, linear_GK: Floats, nonlinear_GQ: Floats, scale: float) -> Floats:
        """theta (G, P) of projected coefficients; a vanished one becomes 1e-6 of ``scale``."""
        logs = np.array(self.log_linear)
        floor = np.where(logs, 1e-6 * scale, 0.0)
        linear = np.maximum(linear_GK, floor)
        return np.concatenate([np.where(logs, np.log(np.where(logs, linear, 1.0)), linear), nonlinear_GQ], axis=-1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {**values, "name": self.name, "objective": vars(self.criterion), "fixed": dict(self.fixed)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``, for any law that is imported. Raises ``FitError`` for an unknown name."""
        known = {form.name: form for form in _descendants(cls) if hasattr(form, "name")}
        found = known.get(str(values.get("name")))
        if found is None:
            raise FitError(
                f"no law {values.get('name')!r}; the laws are {', '.join(known)}: import yours before reading"
            )
        items: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in values.items() if key != "name"
        }
        items["objective"] = Objective(**values["objective"])
        return found(**items)

    def columns(self, given: ArrayLike | None, named: Mapping[str, ArrayLike]) -> dict[str, Floats]:
        """Values by role, broadcast together, from one array (laws of one column) or from named ones.

        Raises ``ValueError`` for a role that is missing or unknown, or values that are not positive.
        """
        roles = list(self.roles)
        if given is not None:
            named = {roles[0]: given, **named}
        if set(named) != set(roles):
            raise ValueError(f"{self.name} is a law of {', '.join(roles)}; got {', '.join(named) or 'nothing'}")
        arrays = np.broadcast_arrays(*(np.asarray(named[role], dtype=np.float64) for role in roles))
        for role, values in zip(roles, arrays, strict=True):
            if not (values > 0).all():
                raise ValueError(f"{self.roles[role]} must be positive, got {values.min():g}")
        return dict(zip(roles, arrays, strict=True))


def _descendants(cls: type[_F]) -> list[type[_F]]:
    return [cls, *(below for child in cls.__subclasses__() for below in _descendants(child))]


def prefactor_unit(y_unit: str, x_unit: str, per: float, exponent: str) -> str:
    """The unit of A in A x^-exponent."""
    x = x_unit if per == 1.0 else f"({per:g} {x_unit})"
    return f"{y_unit} {x}^{exponent}" if x_unit != "1" or per != 1.0 else y_unit


def inverse_unit(x_unit: str, per: float) -> str:
    """The unit of beta in (beta x)^alpha."""
    return "1" if x_unit == "1" and per == 1.0 else f"1/{x_unit}" if per == 1.0 else f"1/({per:g} {x_unit})"


def safe_exp(values: Floats) -> Floats:
    """exp without overflow to infinity, for prefactors of steep draws."""
    return np.asarray(np.exp(np.clip(values, -700.0, 700.0)))
