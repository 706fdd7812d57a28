"""Lower envelope of training curves: the lowest loss at each compute over all sizes, and where the best size changes.

Source: VAR, arXiv:2404.02905, sec. 4.2 (Pareto frontier over all training curves); Hoffmann et al., arXiv:2203.15556,
approach 1. Differs: N_opt is read where two curves cross, at the geometric mean of their sizes, because the points in
between are set by which sizes were trained; places where a curve merely begins or ends are flagged. The first 10 % of
each curve, by compute, is dropped: warm-up is no frontier.

Shapes: R runs, S sizes, G points of a grid of compute, B draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from varscale_analysis.curve_set import CurveSet
from varscale_analysis.fit import FitError, Floats
from varscale_analysis.table import TOKENS_TOLERANCE
from varscale_analysis.trend import Trend, fit_line

GRID = 384
MIN_POINTS = 8  # between the first and the last crossing, to leave out what lies outside them
_CHUNK = 64  # draws extracted at a time: 64 x 12 sizes x 384 points fit the cache of a core

Flag = Literal["crossing", "end", "start"]


@dataclass(frozen=True)
class Vertex:
    """Where the envelope passes from one size to a larger one.

    Attributes:
        flops: compute of the vertex, FLOP: where the curves cross, the middle of several crossings of noisy curves.
        size_before, size_after: N on either side; N_opt at the vertex is their geometric mean.
        loss: loss there.
        flag: "crossing" of two curves; "end": the smaller size's curves stop here, longer ones might stay below;
            "start": the larger size's curves begin here (their first 10 % are dropped), an earlier crossing is unseen.
        tokens: geometric mean of the tokens the two sizes have seen by then; None where tokens are not given.
    """

    flops: float
    size_before: float
    size_after: float
    loss: float
    flag: Flag
    tokens: float | None = None

    @property
    def n_opt(self) -> float:
        """Geometric mean of the two sizes."""
        return float(np.sqrt(self.size_before * self.size_after))


@dataclass(frozen=True, eq=False)
class Envelope:
    """The lower envelope of a ``CurveSet`` and its resamples.

    Attributes:
        n_S: the sizes, ascending. ``loss_SG``: their losses on the grid of compute ``flops_G``, NaN outside the curves.
        seed_averaged: whether the seeds of a size and length were averaged first; otherwise the lowest run counts.
        held_G: points that improve on all smaller compute; the frontier. ``best_G``: index of the size that is best.
        vertices: where the best size grows.
    """

    n_S: Floats
    flops_G: Floats
    loss_SG: Floats
    seed_averaged: bool
    held_G: NDArray[np.bool_]
    best_G: NDArray[np.int64]
    vertices: tuple[Vertex, ...]

    @property
    def least_G(self) -> Floats:
        """The lowest loss at each point of the grid."""
        return np.asarray(_least(self.loss_SG))

    @property
    def flops(self) -> Floats:
        """Compute of the points of the frontier, FLOP."""
        return self.flops_G[self.held_G]

    @property
    def loss(self) -> Floats:
        """Loss of the points of the frontier."""
        return self.least_G[self.held_G]

    @property
    def size(self) -> Floats:
        """The size that holds each point of the frontier."""
        return self.n_S[self.best_G[self.held_G]]

    @property
    def crossings(self) -> tuple[Vertex, ...]:
        """The vertices where two curves cross."""
        return tuple(vertex for vertex in self.vertices if vertex.flag == "crossing")

    def thinned(self, count: int) -> tuple[NDArray[np.int64], bool]:
        """Points of the grid for L(C), about ``count`` of them, and whether they all lie between two crossings.

        Before the first crossing and after the last the envelope is one size's curve, which leaves the optimum; those
        parts are used only where fewer than two curves cross.
        """
        points = np.flatnonzero(self.held_G)
        between = len(self.crossings) >= 2
        if between:
            inside = (self.flops >= self.crossings[0].flops) & (self.flops <= self.crossings[-1].flops)
            between = int(inside.sum()) >= MIN_POINTS
            points = points[inside] if between else points
        return points[:: max(1, len(points) // count)], between

    def lines(self, drawn: EnvelopeDraws) -> tuple[Trend | None, Trend | None, dict[str, str]]:
        """N_opt(C) and D_opt(C) through the crossings, refitted to the crossings of every draw; why one is absent."""
        crossings, absent = self.crossings, {}
        if len(crossings) < 2:
            why = (
                f"N_opt(C) needs 2 crossings of curves, there are {len(crossings)} among {len(self.vertices)} changes "
            )
            why += "of size (the others are where curves begin or end); validate earlier, or train the sizes on "
            return None, None, {"N_opt": why + "different tokens"}
        c_P = np.array([vertex.flops for vertex in crossings])
        w_P = np.ones(len(c_P))
        x_BP, n_BP, d_BP = drawn.padded()
        n_opt = fit_line("N_opt", "parameter", c_P, np.array([v.n_opt for v in crossings]), w_P, x_BP, n_BP)
        tokens = [vertex.tokens for vertex in crossings if vertex.tokens is not None]
        if len(tokens) < len(crossings):
            absent["D_opt"] = "tokens are not given; name their column"
            return n_opt, None, absent
        return n_opt, fit_line("D_opt", "token", c_P, np.array(tokens), w_P, x_BP, d_BP), absent

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN (a size without a value) as None."""
        loss = [[None if np.isnan(value) else float(value) for value in row] for row in self.loss_SG]
        return {
            "n_S": self.n_S.tolist(),
            "flops_G": self.flops_G.tolist(),
            "loss_SG": loss,
            "seed_averaged": self.seed_averaged,
            "vertices": [vars(vertex) for vertex in self.vertices],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Envelope:
        """The inverse of ``to_dict``."""
        loss_SG = np.array([[np.nan if v is None else v for v in row] for row in values["loss_SG"]], dtype=np.float64)
        held_BG, best_BG, _ = _improving(loss_SG[None])
        vertices = tuple(Vertex(**vertex) for vertex in values["vertices"])
        n_S, flops_G = (np.asarray(values[name], dtype=np.float64) for name in ("n_S", "flops_G"))
        return cls(n_S, flops_G, loss_SG, bool(values["seed_averaged"]), held_BG[0], best_BG[0], vertices)


@dataclass(frozen=True, eq=False)
class EnvelopeDraws:
    """The envelope extracted again from resampled runs, at the crossings and on every ``stride``-th point of the grid.

    Attributes:
        draw, log_flops, log_n, log_tokens: one entry a crossing: which draw it belongs to, and where it lies.
        loss_BP: loss at P points of the grid, NaN where the draw has no frontier point.
    """

    draw: NDArray[np.int64]
    log_flops: Floats
    log_n: Floats
    log_tokens: Floats
    loss_BP: Floats

    def padded(self) -> tuple[Floats, Floats, Floats]:
        """log C, log N, log D of the crossings as (B, most crossings of a draw), NaN beyond a draw's own."""
        draws = len(self.loss_BP)
        order = np.argsort(self.draw, kind="stable")
        count = np.bincount(self.draw, minlength=draws)
        place = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)
        out = np.full((3, draws, int(count.max(initial=0))), np.nan)
        out[:, self.draw[order], place] = np.stack([self.log_flops, self.log_n, self.log_tokens])[:, order]
        return out[0], out[1], out[2]


def extract(curves: CurveSet, *, seed_average: bool = True) -> Envelope:
    """The lower envelope of the curves. Raises ``FitError`` with fewer than 3 points that improve with compute."""
    return _extract(_Grid(curves, seed_average))


def extract_draws(
    curves: CurveSet, envelope: Envelope, points_P: NDArray[np.int64], draws: int, rng: np.random.Generator
) -> EnvelopeDraws:
    """Draw sizes, and runs within a size, with replacement, and extract the envelope again, ``draws`` times.

    Args:
        points_P: the points of the grid whose losses are kept.
    """
    grid = _Grid(curves, envelope.seed_averaged)
    parts, losses = [np.empty((4, 0))], [np.empty((0, len(points_P)))]
    for start in range(0, draws, _CHUNK):
        count = min(_CHUNK, draws - start)
        loss_BSG = grid.resampled(count, rng)
        held_BG, best_BG, least_BG = _improving(loss_BSG)
        found = _crossings(grid, loss_BSG, held_BG, best_BG)
        crossing = found.flag == 0
        parts.append(np.stack([found.draw + start, found.log_flops, found.log_n, found.log_tokens])[:, crossing])
        losses.append(np.where(held_BG, least_BG, np.nan)[:, points_P])
    draw, log_flops, log_n, log_tokens = np.concatenate(parts, axis=1)
    return EnvelopeDraws(draw.astype(np.int64), log_flops, log_n, log_tokens, np.concatenate(losses))


class _Grid:
    """The curves of a ``CurveSet`` on one grid of log compute: loss (R, G), NaN outside a curve."""

    def __init__(self, curves: CurveSet, seed_average: bool):
        self.seed_average = seed_average
        self.n_S, size_R = np.unique(curves.size_R, return_inverse=True)
        self.runs_S = [np.flatnonzero(size_R == s) for s in range(len(self.n_S))]
        # Seeds are runs of one size and one length; another length is another run of that size, not another seed.
        length_R = np.array([c_n[-1] for c_n in curves.flops_R])
        self.seeds_S = [_of_one_length(runs, length_R) for runs in self.runs_S]
        low, high = min(c_n[0] for c_n in curves.flops_R), max(c_n[-1] for c_n in curves.flops_R)
        self.log_c_G = np.linspace(np.log(low), np.log(high), GRID)
        self.loss_RG = np.stack(
            [
                np.interp(self.log_c_G, np.log(c_n), y_n, left=np.nan, right=np.nan)
                for c_n, y_n in zip(curves.flops_R, curves.loss_R, strict=True)
            ]
        )
        per_flop_R = curves.tokens_per_flop_R
        logs_R = np.full(len(size_R), np.nan) if per_flop_R is None else np.log(per_flop_R)
        self.log_tokens_per_flop_S = np.array([logs_R[runs].mean() for runs in self.runs_S])

    def combined(self, counts_BR: Floats) -> Floats:
        """Loss (B, S, G) of each size over its runs, ``counts`` times each; NaN where a size has none."""
        out = np.full((len(counts_BR), len(self.n_S), GRID), np.inf)
        for s, groups in enumerate(self.seeds_S):
            for runs in groups if self.seed_average else [self.runs_S[s]]:
                counts_BM, loss_MG = counts_BR[:, runs], self.loss_RG[runs]
                there_MG = np.isfinite(loss_MG)
                if self.seed_average:
                    total_B = counts_BM.sum(-1)[:, None]
                    # A mean over fewer seeds than drawn would jump where one curve begins or ends.
                    whole = (counts_BM @ there_MG.astype(np.float64) == total_B) & (total_B > 0)
                    mean = (counts_BM @ np.where(there_MG, loss_MG, 0.0)) / np.maximum(total_B, 1.0)
                    loss_BG = np.where(whole, mean, np.inf)
                else:
                    taken = (counts_BM > 0)[:, :, None] & there_MG
                    loss_BG = np.where(taken, loss_MG, np.inf).min(1)
                np.minimum(out[:, s], loss_BG, out=out[:, s])
        return np.where(np.isfinite(out), out, np.nan)

    def resampled(self, draws: int, rng: np.random.Generator) -> Floats:
        """Loss (B, S, G) after drawing sizes with replacement, and the seeds of each size and length likewise."""
        sizes = len(self.n_S)
        there_BS = np.zeros((draws, sizes))
        there_BS[np.arange(draws)[:, None], rng.integers(0, sizes, (draws, sizes))] = 1.0
        counts_BR = np.zeros((draws, len(self.loss_RG)))
        for s, groups in enumerate(self.seeds_S):
            for runs in groups:
                counts = rng.multinomial(len(runs), np.full(len(runs), 1.0 / len(runs)), size=draws)
                counts_BR[:, runs] = counts * there_BS[:, s, None]
        return self.combined(counts_BR)


def _of_one_length(runs: NDArray[np.int64], length_R: Floats) -> list[NDArray[np.int64]]:
    """The runs of a size, parted where their final compute differs by more than 1 %."""
    ordered = runs[np.argsort(length_R[runs], kind="stable")]
    gaps = np.flatnonzero(np.diff(np.log(length_R[ordered])) > TOKENS_TOLERANCE) + 1
    return [np.sort(part) for part in np.split(ordered, gaps)]


@dataclass(frozen=True)
class _Found:
    """Vertices of B envelopes, one entry each; ``flag`` is 0 for a crossing, 1 for an end, 2 for a start."""

    draw: NDArray[np.int64]
    log_flops: Floats
    log_n: Floats
    log_tokens: Floats
    loss: Floats
    before: NDArray[np.int64]
    after: NDArray[np.int64]
    flag: NDArray[np.int64]


def _extract(grid: _Grid) -> Envelope:
    loss_SG = grid.combined(np.ones((1, len(grid.loss_RG))))[0]
    held_BG, best_BG, _ = _improving(loss_SG[None])
    if held_BG.sum() < 3:
        raise FitError(f"the envelope has {int(held_BG.sum())} points that improve with compute; it needs 3")
    found = _crossings(grid, loss_SG[None], held_BG, best_BG)
    flags: tuple[Flag, ...] = ("crossing", "end", "start")
    vertices = []
    for i in np.argsort(found.log_flops, kind="stable"):
        tokens = None if np.isnan(found.log_tokens[i]) else float(np.exp(found.log_tokens[i]))
        sizes = float(grid.n_S[found.before[i]]), float(grid.n_S[found.after[i]])
        vertices.append(
            Vertex(float(np.exp(found.log_flops[i])), *sizes, float(found.loss[i]), flags[found.flag[i]], tokens)
        )
    return Envelope(grid.n_S, np.exp(grid.log_c_G), loss_SG, grid.seed_average, held_BG[0], best_BG[0], tuple(vertices))


def _least(loss_SG: Floats) -> Floats:
    return np.asarray(np.where(np.isfinite(loss_SG), loss_SG, np.inf).min(axis=0))


def _improving(loss_BSG: Floats) -> tuple[NDArray[np.bool_], NDArray[np.int64], Floats]:
    """For each draw: which points improve on all smaller compute, the size that holds each, the loss."""
    filled = np.where(np.isfinite(loss_BSG), loss_BSG, np.inf)
    best_BG = np.argmin(filled, axis=1)
    loss_BG = np.take_along_axis(filled, best_BG[:, None], axis=1)[:, 0]
    before = np.minimum.accumulate(loss_BG, axis=1)
    held = np.isfinite(loss_BG)
    held[:, 1:] &= loss_BG[:, 1:] < before[:, :-1]
    return held, best_BG.astype(np.int64), loss_BG


def _crossings(grid: _Grid, loss_BSG: Floats, held_BG: NDArray[np.bool_], best_BG: NDArray[np.int64]) -> _Found:
    """The changes to a larger size along B envelopes; several between the same two sizes count as one, halfway."""
    points = np.where(held_BG, np.arange(GRID), -1)
    last = np.maximum.accumulate(points, axis=1)[:, :-1]
    previous = np.concatenate([np.full((len(points), 1), -1), last], axis=1)
    size_before = np.take_along_axis(best_BG, np.maximum(previous, 0), axis=1)
    b, j = np.nonzero(held_BG & (previous >= 0) & (best_BG > size_before))
    i, before, after = previous[b, j], size_before[b, j], best_BG[b, j]
    ended, begun = ~np.isfinite(loss_BSG[b, before, j]), ~np.isfinite(loss_BSG[b, after, i])
    flag = np.where(ended, 1, np.where(begun, 2, 0)).astype(np.int64)
    # Where the larger size's lead changes sign, on straight lines between the two points.
    behind = np.where(flag == 0, loss_BSG[b, after, i] - loss_BSG[b, before, i], 1.0)
    ahead = np.where(flag == 0, loss_BSG[b, before, j] - loss_BSG[b, after, j], 1.0)
    share = np.where(behind + ahead > 0, behind / np.where(behind + ahead > 0, behind + ahead, 1.0), 0.5)
    x = grid.log_c_G[i] + np.clip(share, 0.0, 1.0) * (grid.log_c_G[j] - grid.log_c_G[i])
    loss = loss_BSG[b, after, j]
    sizes = len(grid.n_S)
    key, first, group = np.unique((b * sizes + before) * sizes + after, return_index=True, return_inverse=True)
    # A pair that crosses anywhere has crossed, there; where it is only cut, the first cut names the reason.
    crosses = np.bincount(group, flag == 0, minlength=len(key)) > 0
    cut = np.where(crosses, 0, flag[first])
    weight = np.where(crosses[group], flag == 0, 1.0)
    count = np.bincount(group, weight, minlength=len(key))
    x, loss = (np.bincount(group, weight * values, minlength=len(key)) / count for values in (x, loss))
    b, before, after = b[first], before[first], after[first]
    log_n = (np.log(grid.n_S[before]) + np.log(grid.n_S[after])) / 2
    per_flop = (grid.log_tokens_per_flop_S[before] + grid.log_tokens_per_flop_S[after]) / 2
    return _Found(b, x, log_n, x + per_flop, loss, before, after, cut)
