"""Akima interpolation of many curves over the same points, and the minimum of each.

Source: Akima, 1970, Journal of the ACM 17, 589. The splines are those of ``scipy.interpolate.Akima1DInterpolator``,
whose import takes a fifth of a second, with the exact minimum of each.
Shapes: S points, B curves, n places; coefficients (4, S - 1, B) in powers of the distance to the left end of a piece.
"""

from __future__ import annotations

import numpy as np

from varscale_analysis.objective import Floats


def coefficients(x_S: Floats, y_SB: Floats) -> Floats:
    """Coefficients (4, S - 1, B), lowest power first, of the splines through (x, y); x ascending, S at least 3."""
    width = np.diff(x_S)[:, None]
    inner = np.diff(y_SB, axis=0) / width
    before, after = 2 * inner[0] - inner[1], 2 * inner[-1] - inner[-2]
    ends = (np.stack([2 * before - inner[0], before]), np.stack([after, 2 * after - inner[-1]]))
    slope = np.concatenate([ends[0], inner, ends[1]])  # (S + 3, B): two made up at each end
    bend = np.abs(np.diff(slope, axis=0))
    right, left = bend[2:], bend[:-2]
    total = right + left
    # Where four neighbouring slopes agree the weights vanish, and the mean of the outer ones is taken.
    straight = total <= 1e-9 * total.max(axis=0)
    share = np.where(straight, 0.0, left / np.where(straight, 1.0, total))
    tangent = np.where(straight, 0.5 * (slope[3:] + slope[:-3]), slope[1:-2] + share * (slope[2:-1] - slope[1:-2]))
    t0, t1 = tangent[:-1], tangent[1:]
    return np.stack([y_SB[:-1], t0, (3 * inner - 2 * t0 - t1) / width, (t0 + t1 - 2 * inner) / width**2])


def evaluate(x_S: Floats, y_SB: Floats, x_n: Floats) -> Floats:
    """The splines (n, B) at places inside the points."""
    piece = np.clip(np.searchsorted(x_S, x_n, side="right") - 1, 0, len(x_S) - 2)
    c = coefficients(x_S, y_SB)[:, piece]
    t = (x_n - x_S[piece])[:, None]
    return np.asarray(((c[3] * t + c[2]) * t + c[1]) * t + c[0])


def minimum(x_S: Floats, y_SB: Floats) -> tuple[Floats, Floats]:
    """Place and value (B,) of the least value of each spline, over the ends and turning points of all pieces."""
    c = coefficients(x_S, y_SB)
    width = np.broadcast_to(np.diff(x_S)[:, None], c.shape[1:])
    a, b, d = 3 * c[3], 2 * c[2], c[1]
    root = np.sqrt(np.maximum(b**2 - 4 * a * d, 0.0))
    q = -0.5 * (b + np.copysign(root, b))
    with np.errstate(divide="ignore", invalid="ignore"):
        turning = (q / a, d / q)
    t = np.stack([np.zeros_like(a), width, *turning])
    inside = np.isfinite(t) & (t >= 0) & (t <= width)
    t = np.where(inside, t, 0.0)
    value = np.where(inside, ((c[3] * t + c[2]) * t + c[1]) * t + c[0], np.inf).reshape(-1, y_SB.shape[1])
    place = (x_S[:-1, None] + t).reshape(-1, y_SB.shape[1])
    best, curve = np.argmin(value, axis=0), np.arange(y_SB.shape[1])
    return place[best, curve], value[best, curve]
