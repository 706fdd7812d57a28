"""Intervals at 6 to 8 sizes: a residual bootstrap over runs with two sources of noise and t-inflated variances.

Resampling whole runs or sizes is degenerate for three parameters on six sizes, so the draws are made from the fitted
law: y* = f(N) + size deviation (lack of fit, shared by the seeds of a size) + seed noise, both normal. Each draw has
its own variances, s^2 nu / chi2_nu, so that an interval is as wide as Student's t says at the few degrees of freedom
there are; for a law linear in its parameters the percentile interval is the exact t interval. Seed noise and lack of
fit are pooled unless the F test of lack of fit rejects at the 25 % level (Bozivich, Bancroft and Hartley, 1956).

Coverage of nominal 90 % intervals, measured by tests/analysis/test_coverage.py: 24 designs of 6, 7 or 8 sizes over a
factor of 33 with 1, 1-2, 2 or 3 seeds each, truth L = 3.37 + (N / 3.0e3)^-.40, seed noise .003 and .01 nat, 300 studies
a design (standard error .017). alpha .907, E .903, a new run at twice the largest size .896 on average; single designs
lie between .85 and .94. With deviations of .006 nat shared by the seeds of a size, beside seed noise of .005: .84 to
.90, the least with three seeds a size, where the F test pools in error more often than it should.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc

from varscale_analysis.fit import Floats

POOLING_LEVEL = 0.25


@dataclass(frozen=True)
class NoiseModel:
    """Variances of the residuals of a law, on the scale of its objective (log loss: relative noise).

    Attributes:
        seed_sd: spread of runs of one size, about the law when pooled.
        size_sd: spread of sizes about the law beyond the seed noise; 0 when pooled.
        seed_df, size_df: degrees of freedom of the two mean squares (pooled: all in ``seed_df``).
        pooled: whether lack of fit and seed noise are one variance.
        lack_of_fit_p: p value of the F test; None without replicated sizes or with as many parameters as sizes.
        seeds_per_size: effective number of seeds a size (equal to it in a balanced ladder).
    """

    seed_sd: float
    size_sd: float
    seed_df: int
    size_df: int
    pooled: bool
    lack_of_fit_p: float | None
    seeds_per_size: float

    @classmethod
    def estimate(cls, residual_n: Floats, size_n: NDArray[np.int64], num_params: int) -> NoiseModel | None:
        """From the residuals of a fit and the index of each run's size; None without a degree of freedom."""
        n, counts = len(residual_n), np.bincount(size_n)
        sizes = len(counts)
        means = np.bincount(size_n, residual_n) / counts
        pure = float(((residual_n - means[size_n]) ** 2).sum())
        lack = float((counts * means**2).sum())
        pure_df, lack_df = n - sizes, sizes - num_params
        if pure_df + lack_df < 1:
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


def draw_noise(sd_B2: Floats, size_n: NDArray[np.int64], rng: np.random.Generator) -> Floats:
    """Noise (B, n): independent for each run, plus a deviation that the runs of a size share."""
    draws, sizes = len(sd_B2), int(size_n.max()) + 1
    shared_BS = sd_B2[:, 1:] * rng.standard_normal((draws, sizes))
    own_Bn = sd_B2[:, :1] * rng.standard_normal((draws, len(size_n)))
    return np.asarray(own_Bn + shared_BS[:, size_n])


def interval(values_B: Floats, level: float) -> tuple[float, float]:
    """The central percentile interval."""
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(values_B, [tail, 1.0 - tail])
    return float(low), float(high)
