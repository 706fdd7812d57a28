"""Draws behind intervals: which data sets a law is fitted to again.

    noise      from the law itself: y* = f + a deviation that the runs of one design share + noise of each run, both
               normal, each draw with its own variances s^2 nu / chi2_nu, so that an interval is as wide as Student's t
               says (exact for a law linear in its parameters). Design noise and run noise are pooled unless the F test
               of lack of fit rejects at the 25 % level (Bozivich, Bancroft and Hartley, 1956). Where runs branched from
               shared trunks, the branches of one trunk take the place of the runs of one design.
    pairs      groups (rows, runs, sizes, a column) with replacement, as Besiroglu et al., arXiv:2404.10102.
    seeds      runs with replacement inside each design: seed noise alone, blind to lack of fit.
    wild       y* = f with each group's residuals multiplied by one random sign (Cameron, Gelbach and Miller, 2008),
               residuals inflated by leverage (HC2).
    jackknife  each group left out once; Student's t interval.

Coverage of nominal 90 % intervals, measured by benchmarks/coverage_intervals.py: independent noise of 1 %, 400 draws,
2,000 tables a case for "noise" (standard error .007), 1,000 for the others; least and most over a law's parameters.

    points          noise       pairs       wild        jackknife   new run, by noise
    power 12        .890-.895   .820-.823   .825-.828   .874-.883   .890
    power 24        .903-.905   .865-.873   .869-.878   .896-.906   .900
    power 45        .905-.906   .870-.874   .875-.884   .891-.901   .900
    saturating 12   .900-.904   .904-.912   .833-.837   .917-.923   .890
    saturating 24   .899-.901   .863-.878   .873-.877   .919-.921   .906
    saturating 45   .914-.916   .899-.908   .906-.910   .924-.926   .894
    chinchilla 12   .889-.905   .896-.925   .849-.860   .936-.949   .878
    chinchilla 20   .898-.901   .887-.898   .858-.881   .919-.931   .900
    chinchilla 45   .896-.901   .891-.905   .881-.904   .914-.933   .891

"noise" holds for the three laws at 12 to 45 points and is the default for squares. Resampled points (pairs) and signs
(wild) fall short below about 40 points, because neither knows how few degrees of freedom there are; the jackknife is
wide for Chinchilla's law at 12 points. Profiles (300 tables, standard error .017) lie between .87 and .92 for the first
six rows. No kind sees what all runs share. With noise that is not independent (tests/analysis/test_coverage.py),
deviations of .006 nat shared by the seeds of a size beside seed noise of .005, "noise" gives .84 to .90, the least with
three seeds a size, where the F test pools in error too often.

Branches: Chinchilla's law of 8 sizes at 6 horizons, .4 % noise of each trunk and .15 % of each branch, alpha, beta and
a in 300 tables (``branches`` of tests/analysis/test_coverage.py, standard error .017):

    trunks a size   noise of trunks   pairs of trunks   branches taken as independent
    1               .89, .88, .90     .91, .81, .93     .40, 1.00, .83
    2               .90, .88, .89     .88, .83, .89     .52, 1.00, .90
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc, stdtrit

from varscale_analysis.objective import Floats

POOLING_LEVEL = 0.25


@dataclass(frozen=True)
class NoiseModel:
    """Variances of the residuals of a law, on the scale of its objective (log loss: relative noise).

    Attributes:
        seed_sd: spread of runs of one size, about the law when pooled.
        size_sd: spread of sizes (or trunks) about the law beyond the seed noise; 0 when pooled.
        seed_df, size_df: degrees of freedom of the two mean squares (pooled: all in ``seed_df``); not whole for trunks.
        pooled: whether lack of fit and seed noise are one variance.
        lack_of_fit_p: p value of the F test; None without replicated sizes or with as many parameters as sizes.
        seeds_per_size: effective number of seeds a size (equal to it in a balanced ladder).
    """

    seed_sd: float
    size_sd: float
    seed_df: float
    size_df: float
    pooled: bool
    lack_of_fit_p: float | None
    seeds_per_size: float

    @classmethod
    def estimate(
        cls, residual_n: Floats, design_n: NDArray[np.int64], num_params: int, between: float | None = None
    ) -> NoiseModel | None:
        """From the residuals of a fit and the index of each run's group; None without a degree of freedom.

        ``between``: how many of the parameters the means of the groups take up. By default all: a law is constant over
        the runs of a design. Over the branches of a trunk it is not, and groups must then leave a degree of freedom.
        """
        n, counts = len(residual_n), np.bincount(design_n)
        sizes = len(counts)
        means = np.bincount(design_n, residual_n) / counts
        pure = float(((residual_n - means[design_n]) ** 2).sum())
        lack = float((counts * means**2).sum())
        taken = num_params if between is None else between
        pure_df, lack_df = n - sizes - (num_params - taken), sizes - taken
        if pure_df + lack_df < 1 or (between is not None and min(pure_df, lack_df) < 1):
            return None
        seeds = float((n - (counts**2).sum() / n) / max(sizes - 1, 1))
        p = None
        if pure_df and lack_df and pure > 0:
            p = float(fdtrc(lack_df, pure_df, (lack / lack_df) / (pure / pure_df)))
        if p is not None and p < POOLING_LEVEL:
            seed_ms, lack_ms = pure / pure_df, lack / lack_df
            return cls(
                float(np.sqrt(seed_ms)),
                float(np.sqrt(max(0.0, lack_ms - seed_ms) / seeds)),
                pure_df,
                lack_df,
                False,
                p,
                seeds,
            )
        pooled_sd = float(np.sqrt((pure + lack) / (pure_df + lack_df)))
        return cls(pooled_sd, 0.0, pure_df + lack_df, 0, True, p, seeds)

    def draw_sd(self, draws: int, rng: np.random.Generator) -> Floats:
        """Standard deviations (B, 2) of seed noise and size deviation, one pair a draw."""
        seed_ms = self.seed_sd**2 * self.seed_df / rng.chisquare(self.seed_df, draws)
        if self.pooled:
            return np.stack([np.sqrt(seed_ms), np.zeros(draws)], axis=-1)
        mean_square = self.seed_sd**2 + self.seeds_per_size * self.size_sd**2
        lack_ms = mean_square * self.size_df / rng.chisquare(self.size_df, draws)
        size_ms = np.maximum(0.0, lack_ms - seed_ms) / self.seeds_per_size
        return np.stack([np.sqrt(seed_ms), np.sqrt(size_ms)], axis=-1)


def draw_noise(sd_B2: Floats, design_n: NDArray[np.int64], rng: np.random.Generator) -> Floats:
    """Noise (B, n): independent for each run, plus a deviation that the runs of a size share."""
    draws, sizes = len(sd_B2), int(design_n.max()) + 1
    shared_BS = sd_B2[:, 1:] * rng.standard_normal((draws, sizes))
    own_Bn = sd_B2[:, :1] * rng.standard_normal((draws, len(design_n)))
    return np.asarray(own_Bn + shared_BS[:, design_n])


def pairs(group_n: NDArray[np.int64], draws: int, rng: np.random.Generator) -> Floats:
    """Weights (B, n): how often each point stands in a draw of whole groups with replacement."""
    groups = int(group_n.max()) + 1
    counts = rng.multinomial(groups, np.full(groups, 1.0 / groups), size=draws)
    return np.asarray(counts[:, group_n], dtype=np.float64)


def within(design_n: NDArray[np.int64], draws: int, rng: np.random.Generator) -> Floats:
    """Weights (B, n): points with replacement inside each design."""
    weights = np.empty((draws, len(design_n)))
    for design in range(int(design_n.max()) + 1):
        rows = np.flatnonzero(design_n == design)
        weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1.0 / len(rows)), size=draws)
    return weights


def signs(group_n: NDArray[np.int64], draws: int, rng: np.random.Generator) -> Floats:
    """Rademacher signs (B, n), one for each group."""
    groups = int(group_n.max()) + 1
    return np.asarray(rng.integers(0, 2, (draws, groups))[:, group_n] * 2.0 - 1.0)


def without_each(group_n: NDArray[np.int64]) -> Floats:
    """Weights (G, n): each group left out once."""
    return np.asarray(group_n[None] != np.arange(int(group_n.max()) + 1)[:, None], dtype=np.float64)


def interval(values_B: Floats, level: float) -> tuple[float, float]:
    """The central percentile interval."""
    low, high = percentiles(values_B, level)
    return float(low), float(high)


def percentiles(values_Bn: Floats, level: float) -> tuple[Floats, Floats]:
    """The central percentile interval along the draws; an infinite draw counts as such."""
    finite = bool(np.isfinite(values_Bn).all())
    method = "linear" if finite else "inverted_cdf"
    low, high = np.quantile(values_Bn, [(1 - level) / 2, (1 + level) / 2], axis=0, method=method)  # type: ignore[call-overload]
    return low, high


def jackknife_interval(value_n: Floats, values_Gn: Floats, level: float) -> tuple[Floats, Floats]:
    """value -+ t_{G-1} sqrt((G - 1) / G sum (value_g - mean)^2)."""
    groups = len(values_Gn)
    spread = np.sqrt((groups - 1) / groups * ((values_Gn - values_Gn.mean(0)) ** 2).sum(0))
    half = float(stdtrit(groups - 1, (1 + level) / 2)) * spread
    return np.asarray(value_n - half), np.asarray(value_n + half)
