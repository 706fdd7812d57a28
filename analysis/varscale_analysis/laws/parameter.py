"""Parameter: one number of a fitted law, with its unit and interval."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Parameter:
    """One parameter of a law.

    Attributes:
        name, value, unit: as reported; the unit of a pure number is "1".
        low, high: 90 % interval; None where there is none.
        at_bound: the optimum lies on a bound of the parameter, such as E = 0.
        given: it was given, not fitted.
    """

    name: str
    value: float
    unit: str
    low: float | None
    high: float | None
    at_bound: bool = False
    given: bool = False

    def __str__(self) -> str:
        text = f"{self.name} = {self.value:.4g}"
        if self.low is not None and self.high is not None:
            text += f" [{self.low:.4g}, {self.high:.4g}]"
        text += f" {self.unit}" if self.unit != "1" else ""
        return text + (" (given)" if self.given else " (at its bound)" if self.at_bound else "")
