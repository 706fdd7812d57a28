"""The exponent as a function of the offset E: what a law without a fitted offset hides.

VAR (arXiv:2404.02905) plots L - E for a constant E that the paper does not name (5.0 nat for the average loss, given
later by an author) and offers Pearson's r as evidence. On the data implied by its own law, r stays above .99 in size
from E = 0 to 5.4 while the exponent runs from -.04 to -.32; so a study shows this table beside its fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from varscale_analysis.objective import FitError
from varscale_analysis.points import Points


@dataclass(frozen=True)
class ExponentAtOffset:
    """One row: a fixed E.

    Attributes:
        offset: E, in the unit of the loss.
        alpha: slope of log(L - E) on log N.
        pearson_r: correlation of the two; printed, not evidence.
    """

    offset: float
    alpha: float
    pearson_r: float


def exponent_against_offset(
    n: ArrayLike, loss: ArrayLike, offsets: ArrayLike | None = None
) -> tuple[ExponentAtOffset, ...]:
    """The exponent for each fixed E.

    Args:
        n, loss: sizes and raw losses, (n,).
        offsets: values of E, in the unit of the loss; by default 25 from 0 to 99 % of the smallest loss, denser there.

    Raises ``FitError`` for values that are not positive numbers, fewer than 3 distinct sizes, or an E at or above the
    smallest loss.
    """
    points = Points.read((n, loss), {"n": "N"}, "loss")
    x_n, y_n = np.log(points.x["n"]), points.y
    if len(np.unique(x_n)) < 3:
        raise FitError(f"the exponent against E needs 3 sizes, there are {len(np.unique(x_n))}; measure more")
    smallest = float(y_n.min())
    values = (
        smallest * (1 - np.geomspace(1.0, 0.01, 25)) if offsets is None else np.atleast_1d(np.asarray(offsets, float))
    )
    if values.max() >= smallest or values.min() < 0:
        raise FitError(
            f"E must lie in [0, {smallest:.6g}), the smallest loss; got {values.min():g} to {values.max():g}"
        )
    rows = []
    for offset in values:
        z_n = np.log(y_n - offset)
        slope = float(((x_n - x_n.mean()) * (z_n - z_n.mean())).sum() / ((x_n - x_n.mean()) ** 2).sum())
        rows.append(ExponentAtOffset(float(offset), slope, float(np.corrcoef(x_n, z_n)[0, 1])))
    return tuple(rows)
