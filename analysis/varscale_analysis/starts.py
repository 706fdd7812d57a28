"""Starts by variable projection: a grid of nonlinear parameters, each with its best linear ones in closed form.

Source: Golub and Pereyra (1973). A law is a sum of terms c_k phi_k(x; p). All distinct phi of the grid are rows of one
library, so one matrix product gives every inner product of the grid, and 48 x 48 exponents on 240 points take about 2
ms. Log residuals enter to first order, as weights 1 / y^2; bounds c >= 0 by dropping a term.
Shapes: n points, M library rows, G grid points, K terms, Q nonlinear parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varscale_analysis.objective import Floats, Residual

KEPT = 16


@dataclass(frozen=True)
class Library:
    """The grid of a law on given points.

    Attributes:
        basis: (M, n), each row a term without its coefficient, sign included.
        terms: (G, K), which row each term is at each grid point.
        nonlinear: (G, Q), the nonlinear parameters there.
        block: (G,), neighbours that count as one start.
    """

    basis: Floats
    terms: NDArray[np.int64]
    nonlinear: Floats
    block: NDArray[np.int64]


def project(library: Library, y_n: Floats, w_n: Floats, residual: Residual, known_K: Floats) -> tuple[Floats, Floats]:
    """Linear parameters (G, K), at least 0, and the weighted sum of squares (G,).

    ``known_K`` holds the terms whose coefficient is given, NaN where it is free.
    """
    v_n = w_n / y_n**2 if residual == "log" else w_n
    weighted = library.basis * v_n
    gram_MM, right_M = weighted @ library.basis.T, weighted @ y_n
    terms = library.terms
    gram, right = gram_MM[terms[:, :, None], terms[:, None, :]], right_M[terms]
    total = float((v_n * y_n**2).sum())
    given = np.isfinite(known_K)
    c = np.where(given, known_K, 0.0) * np.ones_like(right)
    free = np.broadcast_to(~given, right.shape).copy()
    # The most negative coefficient is dropped and the rest solved again, at most K times.
    left = np.arange(len(right))
    for _ in range(right.shape[1] + 1):
        c[left] = _restricted(gram[left], right[left], c[left], free[left])
        lowest = np.where(free[left], c[left], np.inf)
        worst = np.argmin(lowest, axis=1)
        negative = np.take_along_axis(lowest, worst[:, None], 1)[:, 0] < 0
        left, worst = left[negative], worst[negative]
        if not len(left):
            break
        free[left, worst] = False
        c[left, worst] = 0.0
    cost = total - 2 * (c * right).sum(-1) + (c[:, None, :] @ gram @ c[:, :, None])[:, 0, 0]
    return c, np.maximum(cost, 0.0)


def _restricted(gram: Floats, right: Floats, c: Floats, free: NDArray[np.bool_]) -> Floats:
    """Coefficients with those not free left as they are."""
    length = np.sqrt(np.maximum(np.diagonal(gram, axis1=-2, axis2=-1), 1e-300))
    scaled = gram / (length[:, :, None] * length[:, None, :])
    target = right / length - (scaled @ (np.where(free, 0.0, c) * length)[..., None])[..., 0]
    scaled = np.where(free[:, :, None] & free[:, None, :], scaled, 0.0)
    scaled.reshape(len(scaled), -1)[:, :: gram.shape[-1] + 1] += np.where(free, 1e-12, 1.0)
    solution = np.linalg.solve(scaled, np.where(free, target, 0.0)[..., None])[..., 0] / length
    return np.where(free, solution, c)


def best(library: Library, cost_G: Floats, kept: int = KEPT) -> NDArray[np.int64]:
    """The best grid point of each of the best ``kept`` blocks, best first."""
    order = np.argsort(cost_G, kind="stable")
    _, first = np.unique(library.block[order], return_index=True)
    return order[np.sort(first)[:kept]]
