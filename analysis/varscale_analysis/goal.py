"""Goal: the one number that the next sweep is to narrow.

A parameter of the law (alpha, E) or a number made of them (a), the compute-optimal size of a budget, or the loss at a
size not yet trained. Prefactors, sizes and losses count in the logarithm: their half-width is a factor.
Shapes: B parameter vectors, P inner parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from varscale_analysis.belief import columns
from varscale_analysis.fit import FitError, Floats
from varscale_analysis.laws.chinchilla import ChinchillaLaw
from varscale_analysis.laws.law import Law
from varscale_analysis.parametric import ComputeCost, optimum

N_OPT, LOSS = "n_opt", "loss"


@dataclass(frozen=True)
class Goal:
    """What to narrow; made by ``parameter``, ``n_opt`` or ``loss``.

    Attributes:
        name: of the parameter, or "n_opt" or "loss".
        at: the budget of N_opt (flops), or the point of the loss by role.
        cost: how N and D make C, for N_opt.
    """

    name: str
    at: Mapping[str, float] = field(default_factory=dict)
    cost: ComputeCost | None = None

    @classmethod
    def parameter(cls, name: str) -> Self:
        """A reported or derived number of the law, such as alpha, E or a."""
        return cls(name)

    @classmethod
    def n_opt(cls, flops: float, cost: ComputeCost | None = None) -> Self:
        """The compute-optimal N at a budget in FLOP; ``cost`` says how N and D make C, 6 N D by default.

        Raises ``ValueError`` for a budget that is not above 0.
        """
        if not flops > 0:
            raise ValueError(f"N_opt is asked at {flops:g} FLOP; name a budget above 0")
        return cls(N_OPT, {"flops": float(flops)}, cost or ComputeCost())

    @classmethod
    def loss(cls, **x: float) -> Self:
        """The loss at a point, by role: ``Goal.loss(n=1e9, d=2e10)``."""
        return cls(LOSS, {role: float(value) for role, value in x.items()})

    def logarithmic(self, law: Law) -> bool:
        """Whether the half-width is a factor."""
        logs = {name for name, log in zip(law.names, law.log_linear, strict=False) if log}
        return self.name in {N_OPT, LOSS, *logs}

    def of(self, law: Law, theta_BP: Floats, centre_V: Floats) -> Floats:
        """The number (B,), in its logarithm where ``logarithmic``.

        Raises ``FitError`` for a name that the law does not have, or N_opt of a law of one column.
        """
        if self.name == LOSS:
            u = law.raw_coordinates(columns(law, self.at)) - centre_V[:, None]
            return np.log(law.evaluate(theta_BP, u)[0][:, 0])
        if self.name == N_OPT:
            if not isinstance(law, ChinchillaLaw) or law.name != ChinchillaLaw.name:
                raise FitError(f"N_opt follows from L = E + A N^-alpha + B D^-beta; {law.formula} has none")
            assert self.cost is not None
            p = replace(law, per=1.0, per_d=1.0).report(theta_BP, centre_V)
            theta_B5 = np.stack([p["E"], p["A"], p["B"], p["alpha"], p.get("beta", p["alpha"])], axis=-1)
            with np.errstate(all="ignore"):  # a draw without a term of N or of D has its optimum at 0 or infinity
                trend_B3 = optimum(theta_B5, self.cost)[0]
                return np.asarray(trend_B3[:, 1] + trend_B3[:, 2] * np.log(self.at["flops"]))
        reported = law.report(theta_BP, centre_V)
        everything = {**reported, **law.derived(reported)}
        if self.name not in everything:
            raise FitError(f"{law.name} has no {self.name!r}; narrow {', '.join([*everything, N_OPT, LOSS])}")
        if self.name in law.fixed:
            raise FitError(f"{self.name} is given, not fitted: nothing narrows it; free it, or choose another goal")
        values = everything[self.name]
        return np.log(values) if self.logarithmic(law) else values

    def slope(self, law: Law, theta_BP: Floats, centre_V: Floats) -> Floats:
        """Its slopes (B, P) in the inner parameters, by central differences."""
        step_BP = 1e-6 * np.maximum(1.0, np.abs(theta_BP))
        columns_P = []
        for p in range(theta_BP.shape[1]):
            shift = np.zeros_like(theta_BP)
            shift[:, p] = step_BP[:, p]
            rise = self.of(law, theta_BP + shift, centre_V) - self.of(law, theta_BP - shift, centre_V)
            columns_P.append(rise / (2 * step_BP[:, p]))
        return np.stack(columns_P, axis=-1)

    def __str__(self) -> str:
        if self.name == N_OPT:
            return f"N_opt at {self.at['flops']:.3g} FLOP ({self.cost})"
        if self.name == LOSS:
            return f"loss at {', '.join(f'{role} = {value:.4g}' for role, value in self.at.items())}"
        return self.name
