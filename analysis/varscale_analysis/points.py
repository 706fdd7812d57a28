"""Points: what a law is fitted to, from a run table, any data frame, arrays by column name, or plain arrays.

Checked before anything is fitted, because a fit does not fail on bad points, it only moves: finite positive numbers,
no row twice, no column that mixes two units, more designs than parameters.
Shapes: n points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from varscale_analysis.objective import FitError, Floats
from varscale_analysis.table import RunTable, unit_of

TWO_UNITS = 900.0  # a gap of this factor inside a column may be a thousand-fold unit ...
LEAP = 30.0  # ... if it is this much wider than the usual step of the ladder
Data = RunTable | pd.DataFrame | Mapping[str, ArrayLike] | tuple[ArrayLike, ...]


@dataclass(frozen=True, eq=False)
class Points:
    """Points of a law.

    Attributes:
        x: values by role, such as n and d, each (n,).
        y, w: the fitted column and its weights, (n,).
        y_name, y_unit: column of y and its unit.
        at: what they hold for, such as "at D = 2.5e+06 tokens"; empty if nothing is held.
        frame: the rows behind them, for grouping by a column; None for plain arrays and saved fits.
        run: index of the row each point comes from, where a row gives several (joint laws); None: each its own.
    """

    x: Mapping[str, Floats]
    y: Floats
    w: Floats
    y_name: str
    y_unit: str
    at: str = ""
    frame: pd.DataFrame | None = field(default=None, repr=False)
    run: NDArray[np.int64] | None = None

    @classmethod
    def read(
        cls, data: Data, roles: Mapping[str, str], y: str, weights: str | None = None, *, fixed_tokens: bool = False
    ) -> Points:
        """The points of columns ``roles`` (role -> column), ``y`` and ``weights``.

        ``data`` is a run table (its usable, comparable rows), a data frame or mapping with these columns, or a tuple of
        arrays in the order of the roles, then y (then weights, if a column of weights is named).
        Raises ``FitError`` for a missing column or points that cannot be fitted, ``RunTableError`` for rows that must
        not be mixed.
        """
        at, frame = "", None
        if isinstance(data, RunTable):
            # A law of tokens or of compute holds no D fixed, whatever its form.
            fixed_tokens = fixed_tokens and not {"tokens_seen", "flops_train"} & {*roles.values()}
            table = data.comparable(fixed_tokens=fixed_tokens)
            at, frame = table.at_tokens if fixed_tokens else "", table.rows
            columns = {name: table.values(name) for name in (*roles.values(), y, *([weights] if weights else []))}
        elif isinstance(data, tuple):
            names = [*roles.values(), y, *([weights] if weights else [])]
            if len(data) != len(names):
                raise FitError(f"{len(data)} arrays given, {len(names)} needed: {', '.join(names)}, in this order")
            columns = {name: _numbers(name, values) for name, values in zip(names, data, strict=True)}
            at = "on the given points"
        else:
            frame = data if isinstance(data, pd.DataFrame) else pd.DataFrame(dict(data))
            for name in (*roles.values(), y, *([weights] if weights else [])):
                if name not in frame:
                    raise FitError(f"there is no column {name!r}; the columns are {', '.join(map(str, frame))}")
            columns = {
                name: _numbers(name, frame[name]) for name in (*roles.values(), y, *([weights] if weights else []))
            }
            # Hashing every column takes as long as a tenth of a fit; rows can only be alike where y is.
            twice = int(frame.duplicated().sum()) if len(np.unique(columns[y])) < len(frame) else 0
            if twice:
                raise FitError(
                    f"{twice} rows stand in the data twice, in every column; drop them (drop_duplicates), or add a "
                    "column such as seed that tells them apart"
                )
        x = {role: columns[name] for role, name in roles.items()}
        w = columns[weights] if weights else np.ones(len(columns[y]))
        points = cls(x, columns[y], w, y, unit_of(y), at, frame)
        points._check(roles, weights)
        return points.where(w > 0) if weights else points

    def __len__(self) -> int:
        return len(self.y)

    def where(self, keep: NDArray[np.bool_]) -> Points:
        """The points of a mask."""
        frame = None if self.frame is None else self.frame[keep]
        x = {role: values[keep] for role, values in self.x.items()}
        run = None if self.run is None else self.run[keep]
        return Points(x, self.y[keep], self.w[keep], self.y_name, self.y_unit, self.at, frame, run)

    @cached_property
    def design(self) -> NDArray[np.int64]:
        """Index (n,) of each point's design: points alike in every x are one design measured again."""
        index = np.zeros(len(self), dtype=np.int64)
        for values in self.x.values():
            levels, level = np.unique(values, return_inverse=True)
            index = np.unique(index * len(levels) + level, return_inverse=True)[1]
        return index.astype(np.int64)

    @cached_property
    def trunk(self) -> NDArray[np.int64] | None:
        """Index (n,) of the trunk each point branched from, a run from scratch being its own; None if none share one.

        Branches of one trunk are one run up to where they leave it: what it lost or gained, all of them did.
        """
        if self.frame is None or not {"trunk_id", "run_id"} <= {*self.frame} or self.run is not None:
            return None
        own, of = (self.frame[name].fillna("").astype(str).to_numpy() for name in ("run_id", "trunk_id"))
        index = pd.factorize(np.where(of == "", own, of))[0]
        return np.asarray(index, dtype=np.int64) if len(np.unique(index)) < len(index) else None

    def group(self, name: str) -> NDArray[np.int64]:
        """Index (n,) of each point's group: "rows", "designs", "sizes" (the first x), "trunks", or a column's values.

        Raises ``FitError`` for a column that is not there.
        """
        if name == "rows":
            return np.arange(len(self), dtype=np.int64) if self.run is None else self.run
        if name == "designs":
            return self.design
        if name == "trunks" and self.trunk is not None:
            return self.trunk
        if name == "sizes":
            return np.unique(next(iter(self.x.values())), return_inverse=True)[1].astype(np.int64)
        if self.frame is None or name not in self.frame:
            there = "no columns" if self.frame is None else ", ".join(map(str, self.frame))
            raise FitError(f"no groups {name!r}: choose rows, designs, sizes or a column of the data ({there})")
        return np.asarray(pd.factorize(self.frame[name])[0], dtype=np.int64)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the frame."""
        values: dict[str, Any] = {"x": {role: values.tolist() for role, values in self.x.items()}, "y": self.y.tolist()}
        values |= {"w": self.w.tolist(), "y_name": self.y_name, "y_unit": self.y_unit, "at": self.at}
        return values | {"run": None if self.run is None else self.run.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Points:
        """The inverse of ``to_dict``."""
        x = {role: np.asarray(column, dtype=np.float64) for role, column in values["x"].items()}
        y, w = (np.asarray(values[name], dtype=np.float64) for name in ("y", "w"))
        run = None if values["run"] is None else np.asarray(values["run"], dtype=np.int64)
        return cls(x, y, w, values["y_name"], values["y_unit"], values["at"], None, run)

    def _check(self, roles: Mapping[str, str], weights: str | None) -> None:
        for role, values in self.x.items():
            if len(values) != len(self.y):
                raise FitError(f"{len(values)} values of {roles[role]} but {len(self.y)} of y; give one y for each x")
        if len(self.w) != len(self.y) or not (np.isfinite(self.w) & (self.w >= 0)).all():
            raise FitError(
                f"weights {weights} must be {len(self.y)} finite numbers of at least 0, such as 1 / variance"
            )
        if len(self.y) == 0:
            raise FitError(f"there are no points: {self.y_name} is empty; give at least one row a parameter")
        names = {**{roles[role]: values for role, values in self.x.items()}, f"y ({self.y_name})": self.y}
        for name, values in names.items():
            bad = ~(np.isfinite(values) & (values > 0))
            if bad.any():
                where = ", ".join(map(str, np.flatnonzero(bad)[:5]))
                raise FitError(
                    f"{name} has {int(bad.sum())} values that are not positive numbers (rows {where}: "
                    f"{', '.join(f'{value:g}' for value in values[bad][:5])}); leave them out"
                )
        for role, values in self.x.items():
            ordered = np.unique(values)
            jump = ordered[1:] / ordered[:-1]
            if len(jump) > 2 and jump.max() >= max(TWO_UNITS, LEAP * float(np.median(jump))):
                at = int(np.argmax(jump))
                raise FitError(
                    f"{roles[role]} leaps from {ordered[at]:g} to {ordered[at + 1]:g} with nothing between: two units "
                    "in one column? Convert it to one unit, or fit the two parts apart"
                )


def _numbers(name: str, values: Any) -> Floats:
    try:
        return np.asarray(values, dtype=np.float64).ravel()
    except (TypeError, ValueError):
        raise FitError(f"column {name} does not hold numbers; name a column that does") from None
