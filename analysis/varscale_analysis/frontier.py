"""Compute frontier: the lower envelope of the validation curves, its laws, and the size that is best for each compute.

Source: VAR, arXiv:2404.02905, sec. 4.2 (Pareto frontier over all training curves); Hoffmann et al., arXiv:2203.15556,
approach 1. Differs: intervals go through the frontier. Sizes, and runs within a size, are drawn with replacement, the
envelope is extracted again and every law refitted. The first 10 % of each curve is dropped (warm-up, not a frontier).

Shapes: R runs, S sizes, G points of a grid of compute, B draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from varscale_analysis.bootstrap import interval
from varscale_analysis.fit import FitError, Floats
from varscale_analysis.laws.power import PowerLaw
from varscale_analysis.laws.result import LawFit, Parameter
from varscale_analysis.laws.saturating import SaturatingPowerLaw
from varscale_analysis.table import LEVEL, RunTable

GRID = 96
MIN_DRAWS = 100  # with crossings, for an interval of the exponent
DROPPED = 0.1  # of each curve, by compute
CURVE_METRICS = {
    "val_nats_per_token_avg": "nats_per_token_avg",
    "val_nats_per_token_last": "nats_per_token_last",
    "val_error_avg": "error_avg",
    "val_error_last": "error_last",
}


Flag = Literal["crossing", "end", "start"]


@dataclass(frozen=True)
class Vertex:
    """Where the frontier passes from one size to a larger one.

    Attributes:
        flops: compute of the vertex, FLOP.
        size_before, size_after: N on either side; N_opt at the vertex is their geometric mean.
        loss: loss there.
        flag: "crossing" of two curves; "end": the smaller size's curves stop here, longer ones might stay below;
            "start": the larger size's curves begin here (their first 10 % are dropped), an earlier crossing is unseen.
    """

    flops: float
    size_before: float
    size_after: float
    loss: float
    flag: Flag

    @property
    def n_opt(self) -> float:
        """Geometric mean of the two sizes."""
        return float(np.sqrt(self.size_before * self.size_after))


@dataclass(frozen=True, eq=False)
class Frontier:
    """The compute frontier of a study.

    Attributes:
        flops, loss, size: points of the frontier and the size that holds it; only points that improve on all
            smaller compute.
        vertices: where the size changes; both ends of ``flops`` are cut by the runs themselves, not by a crossing.
        power, saturating: L(C); ``saturating`` is None where it cannot be fitted, ``absent`` says why.
        n_exponent: a of N_opt ~ C^a over the vertices that are crossings; None with fewer than two, because the others
            are set by where the curves were cut, not by the losses.
        d_exponent: 1 - a, of tokens D_opt ~ C^(1-a), for compute proportional to N D.
        draws: resamples behind the intervals.
    """

    n: str
    y: str
    flops_rule: str
    seed_averaged: bool
    flops: Floats
    loss: Floats
    size: Floats
    vertices: tuple[Vertex, ...]
    power: LawFit
    saturating: LawFit | None
    n_exponent: Parameter | None
    n_at_centre: tuple[float, float] | None
    absent: str | None
    draws: int

    @classmethod
    def from_envelope(
        cls,
        table: RunTable,
        *,
        n: str = "params_nonembed",
        y: str = "val_nats_per_token_avg",
        seed_average: bool = True,
        bootstrap: int = 1000,
        seed: int = 0,
    ) -> Frontier:
        """Extract the lower envelope of the validation curves and fit its laws.

        Args:
            table: runs with curves; rows that are not comparable are refused.
            n, y: convention of N and the loss.
            seed_average: average the seeds of a size first (the minimum over seeds favours sizes with more seeds).

        Raises ``FitError`` without curves, with fewer than 2 sizes, or fewer than 3 frontier points.
        """
        table = table.comparable(fixed_tokens=False)
        log_c_G, run_RG, size_S, size_R = _interpolated(table, n, y)
        if seed_average:
            pick = np.zeros((len(size_S), len(size_R)))
            pick[size_R, np.arange(len(size_R))] = 1.0
            loss_SG = _averages(pick[None], run_RG)[0]
        else:
            loss_SG = np.stack([_least(run_RG[size_R == s]) for s in range(len(size_S))])
        held_G, best_G, loss_G = (values[0] for values in _envelope(loss_SG[None]))
        if held_G.sum() < 3:
            raise FitError(f"the envelope has {int(held_G.sum())} points that improve with compute; it needs 3")
        drawn_BSG = loss_SG[None][:0]
        if bootstrap:
            picks_BSR = _resample(size_R, len(size_S), bootstrap, np.random.default_rng([seed, 2]))
            if seed_average:
                drawn_BSG = _averages(picks_BSR, run_RG)
            else:
                drawn_BSG = np.stack(
                    [np.stack([_least(run_RG[row > 0]) for row in picks_SR]) for picks_SR in picks_BSR]
                )
        mask_BG, best_BG, draws_BG = _envelope(drawn_BSG)
        at = f"on the envelope of {len(size_R)} runs, {'seeds averaged' if seed_average else 'single runs'}"
        c_n, y_n = np.exp(log_c_G[held_G]), loss_G[held_G]
        drawn_y = np.where(mask_BG, draws_BG, 1.0)
        # Draws whose frontier reaches compute beyond the points kept in the measured one keep their own points.
        drawn_y, drawn_w = drawn_y[:, held_G], mask_BG[:, held_G].astype(np.float64)
        power = PowerLaw(n="flops_train").fit_weighted(c_n, y_n, drawn_y, drawn_w, y, at)
        saturating, absent = None, None
        try:
            saturating = SaturatingPowerLaw(n="flops_train").fit_weighted(c_n, y_n, drawn_y, drawn_w, y, at)
        except FitError as error:
            absent = str(error)
        vertices = _vertices(log_c_G, loss_SG, held_G, best_G, loss_G, size_S)
        n_exponent, n_at_centre = None, None
        line = _crossing_slope(vertices)
        if line is not None:
            drawn = (
                _crossing_slope(_vertices(log_c_G, loss, held, best, least, size_S))
                for loss, held, best, least in zip(drawn_BSG, mask_BG, best_BG, draws_BG, strict=True)
            )
            slopes = np.array([draw[0] for draw in drawn if draw is not None])
            low, high = interval(slopes, LEVEL) if len(slopes) >= MIN_DRAWS else (None, None)
            n_exponent = Parameter("a", line[0], "1", low, high)
            n_at_centre = (float(np.exp(line[1])), float(np.exp(line[2])))
        else:
            found = sum(vertex.flag == "crossing" for vertex in vertices)
            why = f"N_opt(C) needs 2 crossings of curves, there are {found} among {len(vertices)} changes of size (the "
            why += "others are where curves begin or end); validate earlier, or train the sizes on different tokens"
            absent = f"{absent}; {why}" if absent else why
        return cls(
            n=n,
            y=y,
            flops_rule=str(table.rows["flops_rule"].iloc[0]),
            seed_averaged=seed_average,
            flops=c_n,
            loss=y_n,
            size=size_S[best_G[held_G]],
            vertices=vertices,
            power=power,
            saturating=saturating,
            n_exponent=n_exponent,
            n_at_centre=n_at_centre,
            absent=absent,
            draws=len(draws_BG),
        )

    @property
    def crossings(self) -> tuple[Vertex, ...]:
        """The vertices where two curves cross."""
        return tuple(vertex for vertex in self.vertices if vertex.flag == "crossing")

    @property
    def d_exponent(self) -> float | None:
        """1 - a, the exponent of the tokens when compute is proportional to N D."""
        return None if self.n_exponent is None else 1.0 - self.n_exponent.value

    def allocate(self, flops: float) -> tuple[float, float]:
        """The best N at ``flops``, and how far outside the crossings it lies (1: inside). Raises ``FitError``."""
        if self.n_exponent is None or self.n_at_centre is None:
            raise FitError(f"no N_opt(C): {self.absent}")
        centre, n_centre = self.n_at_centre
        low, high = self.crossings[0].flops, self.crossings[-1].flops
        return n_centre * (flops / centre) ** self.n_exponent.value, max(flops / high, low / flops, 1.0)

    def summary(self) -> str:
        """The frontier as text."""
        lines = [self.power.summary()]
        if self.saturating is not None:
            lines.append(self.saturating.summary())
        if self.n_exponent is not None:
            found = f"{len(self.crossings)} crossings of {len(self.vertices)} vertices"
            lines.append(f"N_opt ~ C^a over {found}: {self.n_exponent}")
        if self.absent:
            lines.append(f"absent: {self.absent}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "n": self.n,
            "y": self.y,
            "flops_rule": self.flops_rule,
            "seed_averaged": self.seed_averaged,
            "flops": self.flops.tolist(),
            "loss": self.loss.tolist(),
            "size": self.size.tolist(),
            "vertices": [vars(vertex) for vertex in self.vertices],
            "power": self.power.to_dict(),
            "saturating": None if self.saturating is None else self.saturating.to_dict(),
            "n_exponent": None if self.n_exponent is None else vars(self.n_exponent),
            "absent": self.absent,
            "draws": self.draws,
        }


def run_curve(table: RunTable, run_id: str, y: str) -> tuple[Floats, Floats]:
    """Compute (FLOP) and loss along one run, without the first 10 % of its compute."""
    if table.curves is None:
        raise FitError("there are no curves: put curves.csv beside runs.csv (`varscale collect` writes both)")
    if y not in CURVE_METRICS:
        raise FitError(f"{y} has no curve; choose one of {', '.join(CURVE_METRICS)}")
    c_n, y_n = table.curves.of(run_id, CURVE_METRICS[y])
    keep = c_n >= DROPPED * c_n.max() if len(c_n) else np.zeros(0, dtype=bool)
    return c_n[keep], y_n[keep]


def _interpolated(table: RunTable, n: str, y: str) -> tuple[Floats, Floats, Floats, NDArray[np.int64]]:
    """Grid of log compute, each run's loss on it (NaN outside its curve), the sizes, and each run's size."""
    curves = [run_curve(table, str(run), y) for run in table.rows["run_id"]]
    enough = np.array([len(c_n) >= 2 and c_n[0] > 0 for c_n, _ in curves])
    size_S, size_R = np.unique(table.values(n)[enough], return_inverse=True)
    if len(size_S) < 2:
        raise FitError(
            f"a frontier needs curves of 2 sizes, there are {len(size_S)}; validate more often than once a run"
        )
    kept = [pair for pair, good in zip(curves, enough, strict=True) if good]
    log_c_G = np.linspace(np.log(min(c_n[0] for c_n, _ in kept)), np.log(max(c_n[-1] for c_n, _ in kept)), GRID)
    run_RG = np.stack([np.interp(log_c_G, np.log(c_n), y_n, left=np.nan, right=np.nan) for c_n, y_n in kept])
    return log_c_G, run_RG, size_S, size_R.astype(np.int64)


def _averages(picks_BSR: Floats, run_RG: Floats) -> Floats:
    """Loss (B, S, G) of each size: the mean over the runs picked, NaN where none of them has a value."""
    there_RG = np.isfinite(run_RG)
    total = picks_BSR @ np.where(there_RG, run_RG, 0.0)
    count = picks_BSR @ there_RG.astype(np.float64)
    full = picks_BSR.sum(-1)[..., None]
    # A mean over fewer seeds than picked would jump where one curve starts or ends.
    whole = (count == full) & (full > 0)
    return np.where(whole, total / np.where(whole, count, 1.0), np.nan)


def _least(run_MG: Floats) -> Floats:
    """The lowest value at each point, NaN where no run has one."""
    if len(run_MG) == 0:
        return np.full(run_MG.shape[1], np.nan)
    filled = np.where(np.isfinite(run_MG), run_MG, np.inf).min(0)
    return np.where(np.isfinite(filled), filled, np.nan)


def _resample(size_R: NDArray[np.int64], sizes: int, draws: int, rng: np.random.Generator) -> Floats:
    """Picks (B, S, R): which sizes, drawn with replacement, and how often each of their runs."""
    chosen_BS = rng.integers(0, sizes, (draws, sizes))
    there_BS = np.zeros((draws, sizes), dtype=bool)
    there_BS[np.arange(draws)[:, None], chosen_BS] = True
    picks = np.zeros((draws, sizes, len(size_R)))
    for s in range(sizes):
        runs = np.flatnonzero(size_R == s)
        counts = rng.multinomial(len(runs), np.full(len(runs), 1.0 / len(runs)), size=draws)
        picks[:, s, runs] = counts * there_BS[:, s, None]
    return picks


def _envelope(loss_BSG: Floats) -> tuple[NDArray[np.bool_], NDArray[np.int64], Floats]:
    """For each draw: which points improve on all smaller compute, the size that holds each, the loss."""
    filled = np.where(np.isfinite(loss_BSG), loss_BSG, np.inf)
    best_BG, loss_BG = np.argmin(filled, axis=1), filled.min(axis=1)
    before = np.minimum.accumulate(loss_BG, axis=1)
    held = np.isfinite(loss_BG)
    held[:, 1:] &= loss_BG[:, 1:] < before[:, :-1]
    return held, best_BG.astype(np.int64), loss_BG


def _vertices(
    log_c_G: Floats,
    loss_SG: Floats,
    held_G: NDArray[np.bool_],
    best_G: NDArray[np.int64],
    loss_G: Floats,
    size_S: Floats,
) -> tuple[Vertex, ...]:
    """The changes from a size to a larger one along one frontier."""
    points = np.flatnonzero(held_G)
    step = best_G[points[1:]] > best_G[points[:-1]]
    out: list[Vertex] = []
    for i, j in zip(points[:-1][step], points[1:][step], strict=True):
        before, after = best_G[i], best_G[j]
        flag: Flag = "crossing"
        if not np.isfinite(loss_SG[before, j]):
            flag = "end"
        elif not np.isfinite(loss_SG[after, i]):
            flag = "start"
        flops = float(np.exp((log_c_G[i] + log_c_G[j]) / 2))
        out.append(Vertex(flops, float(size_S[before]), float(size_S[after]), float(loss_G[j]), flag))
    return tuple(out)


def _crossing_slope(vertices: tuple[Vertex, ...]) -> tuple[float, float, float] | None:
    """Slope of log N_opt on log C over the crossings, and the means of log C and log N_opt; None below two."""
    crossings = [vertex for vertex in vertices if vertex.flag == "crossing"]
    if len(crossings) < 2:
        return None
    x_n = np.log([vertex.flops for vertex in crossings])
    z_n = np.log([vertex.n_opt for vertex in crossings])
    d_n = x_n - x_n.mean()
    return float((d_n * z_n).sum() / (d_n**2).sum()), float(x_n.mean()), float(z_n.mean())
