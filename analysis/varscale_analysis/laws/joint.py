"""JointLaw: several targets of the same runs (average and last loss, or the loss of each scale) under one exponent.

L_t = E_t + (beta_t N)^alpha, with alpha shared or one for each target. Shared, the targets lend each other what they
know about the exponent; the cost is the claim that they share it, which ``selection.compare_laws`` tests against the
free form. Intervals keep the targets of a run together, because their noise is one training run's.
Shapes: T targets. Inside: theta = (E_1 .. E_T, log of each power at the centre, alpha or alpha_1 .. alpha_T).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from varscale_analysis.form import EXPONENT_FLATTEST, EXPONENT_STEEPEST, EXPONENTS, inverse_unit, safe_exp
from varscale_analysis.laws.law import Law
from varscale_analysis.objective import FitError, Floats
from varscale_analysis.points import Data, Points
from varscale_analysis.starts import Library


@dataclass(frozen=True)
class JointLaw(Law):
    """Saturating power laws of several columns, fitted together.

    Attributes:
        targets: the columns; ``fit(data)`` takes no ``y``.
        n: column of N.
        shared: one exponent for all targets.
        offset: False leaves every E out.

    ``predict(n=..., target="column")`` names the target.
    """

    targets: Sequence[str] = ("val_nats_per_token_avg", "val_nats_per_token_last")
    n: str = "params_nonembed"
    shared: bool = field(default=True, kw_only=True)
    offset: bool = field(default=True, kw_only=True)

    name = "joint"
    formula = "L_t = E_t + (beta_t N)^alpha"
    fixed_tokens = True
    signed = True
    correlated = True

    @property
    def roles(self) -> dict[str, str]:
        return {"n": self.n, "target": "target"}

    @property
    def names(self) -> tuple[str, ...]:
        exponents = ("alpha",) if self.shared else tuple(f"alpha[{t}]" for t in self.targets)
        return (*(f"E[{t}]" for t in self.targets), *(f"beta[{t}]" for t in self.targets), *exponents)

    @property
    def num_params(self) -> int:
        return len(self.names) - len(self.pins()[0])

    @property
    def log_linear(self) -> tuple[bool, ...]:
        return (False,) * len(self.targets) + (True,) * len(self.targets)

    def bounds(self) -> tuple[Floats, Floats]:
        count, exponents = len(self.targets), 1 if self.shared else len(self.targets)
        lower = [0.0] * count + [-np.inf] * count + [-EXPONENT_STEEPEST] * exponents
        return np.array(lower), np.array([np.inf] * (2 * count) + [-EXPONENT_FLATTEST] * exponents)

    def pins(self) -> tuple[dict[int, float], dict[int, float]]:
        """As for every law. Raises ``ValueError`` for a given beta."""
        if any(name.startswith("beta") for name in self.fixed):
            raise ValueError("a joint law can be given E and alpha, not beta; leave beta free")
        held = {} if self.offset else dict.fromkeys(range(len(self.targets)), 0.0)
        return held | {self.names.index(name): value for name, value in self.fixed.items()}, {}

    def read(self, data: Data, y: str) -> Points:
        """One point a run and target; ``y`` is not looked at.

        Raises ``FitError`` where a run lacks a target, or a loss lies at or below its given E.
        """
        if isinstance(data, tuple):
            data = {name: values for name, values in zip((self.n, *self.targets), data, strict=True)}
        parts = [Points.read(data, {"n": self.n}, t, self.criterion.weights, fixed_tokens=True) for t in self.targets]
        for name, part in zip(self.targets, parts, strict=True):
            offset = self.fixed.get(f"E[{name}]", 0.0)
            if (part.y <= offset).any():
                raise FitError(
                    f"{int((part.y <= offset).sum())} values of {name} lie at or below the fixed E[{name}] = "
                    f"{offset:g} (the furthest {part.y.min():g}); fix another, or let it be fitted"
                )
        runs = np.arange(len(parts[0]), dtype=np.int64)
        if len({len(part) for part in parts}) > 1:
            raise FitError("a joint law needs every target in every run; leave out runs that lack one")
        frame = None if parts[0].frame is None else pd.concat([part.frame for part in parts if part.frame is not None])
        target = np.repeat(np.arange(1.0, len(parts) + 1), len(runs))
        return Points(
            {"n": np.concatenate([part.x["n"] for part in parts]), "target": target},
            np.concatenate([part.y for part in parts]),
            np.concatenate([part.w for part in parts]),
            ", ".join(self.targets),
            parts[0].y_unit,
            parts[0].at,
            frame,
            np.tile(runs, len(parts)),
        )

    def columns(self, given: ArrayLike | None, named: Mapping[str, ArrayLike]) -> dict[str, Floats]:
        """As for every law, with ``target`` as a column's name. Raises ``ValueError`` for an unknown one, too."""
        target = named.get("target")
        if isinstance(target, str):
            if target not in self.targets:
                raise ValueError(f"no target {target!r}; the targets are {', '.join(self.targets)}")
            named = {**named, "target": float(list(self.targets).index(target) + 1)}
        return super().columns(given, named)

    def needed(self, x: Mapping[str, Floats]) -> str | None:
        sizes = len(np.unique(x["n"]))
        wanted = 2 + self.offset
        if sizes < wanted:
            return f"{self.n} has {sizes} sizes, each target needs {wanted}; measure more"
        return None

    def raw_coordinates(self, x: Mapping[str, Floats]) -> Floats:
        """log N, and the place of the target from 0."""
        return np.stack([np.log(x["n"]), x["target"] - 1.0])

    def centre(self, u_Vn: Floats) -> Floats:
        return np.array([u_Vn[0].mean(), 0.0])

    def evaluate(self, theta_BP: Floats, u_Vn: Floats) -> tuple[Floats, Floats]:
        count, u, target = len(self.targets), u_Vn[0], u_Vn[1].astype(np.int64)
        is_target = np.moveaxis(target[..., None] == np.arange(count), -1, -2)  # (T, n) or (B, T, n)
        at = np.broadcast_to(target, (len(theta_BP), target.shape[-1]))
        e = np.take_along_axis(theta_BP[:, :count], at, 1)
        a = np.take_along_axis(theta_BP[:, count : 2 * count], at, 1)
        alpha = theta_BP[:, 2 * count :] if self.shared else np.take_along_axis(theta_BP[:, 2 * count :], at, 1)
        power = safe_exp(a + alpha * u)
        slope = (power * u)[:, None, :]
        columns = [np.broadcast_to(is_target, (len(theta_BP), count, power.shape[-1])), power[:, None, :] * is_target]
        return e + power, np.concatenate([*columns, slope if self.shared else slope * is_target], axis=1)

    def library(self, u_Vn: Floats) -> Library:
        count, grid, target = len(self.targets), len(EXPONENTS), u_Vn[1].astype(np.int64)
        mask = (target == np.arange(count)[:, None]).astype(np.float64)
        powers = safe_exp(-EXPONENTS[:, None] * u_Vn[0])
        basis = np.concatenate([mask, (mask[:, None, :] * powers).reshape(count * grid, -1)])
        index = np.arange(grid)
        offsets = np.broadcast_to(np.arange(count), (grid, count))
        terms = np.concatenate([offsets, count + np.arange(count) * grid + index[:, None]], axis=-1)
        exponents = 1 if self.shared else count
        return Library(basis, terms, np.repeat(-EXPONENTS[:, None], exponents, axis=1), index // 2)

    def report(self, theta_BP: Floats, centre_V: Floats) -> dict[str, Floats]:
        count = len(self.targets)
        alphas = np.broadcast_to(theta_BP[:, 2 * count :], (len(theta_BP), count))
        beta = safe_exp(theta_BP[:, count : 2 * count] / alphas - centre_V[0] + np.log(self.per))
        values = [*theta_BP[:, :count].T, *beta.T, *theta_BP[:, 2 * count :].T]
        return dict(zip(self.names, values, strict=True))

    def units(self, y_unit: str, x_units: Mapping[str, str]) -> dict[str, str]:
        beta = inverse_unit(x_units["n"], self.per)
        return {n: y_unit if n.startswith("E") else beta if n.startswith("beta") else "1" for n in self.names}
