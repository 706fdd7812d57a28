"""Lack of fit: whether a law misses the means of its designs by more than runs of one design differ.

The F test of replicated points (Draper & Smith, Applied Regression Analysis, 3rd ed., sec. 2.1): a small rms says
little when seeds differ by less still. Intervals take what the law misses for noise; they do not know that it has a
pattern.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import fdtrc

from varscale_analysis.laws import LawFit
from varscale_analysis.objective import FitError

DOUBT = 0.01  # p below which the law is said not to describe the runs


@dataclass(frozen=True)
class LackOfFit:
    """What a law misses beside what seeds differ by, as shares of y.

    Attributes:
        seed_sd: standard deviation between runs of one design (size and, where the law has it, tokens).
        missed_sd: standard deviation of the designs about the law beyond that; 0 where the means vary no more.
        f, p: the test's statistic and p value.
        lack_df, seed_df: degrees of freedom of the two. Branches of one trunk share its seed, so there are no more of
            the second than trunks beyond the first of each size.
    """

    seed_sd: float
    missed_sd: float
    f: float
    p: float
    lack_df: int
    seed_df: int

    @property
    def doubtful(self) -> bool:
        """Whether seeds hardly explain what the law misses."""
        return self.p < DOUBT

    def summary(self) -> str:
        """One line."""
        words = f"lack of fit: runs of one design differ by {self.seed_sd:.2%}, the law misses designs by "
        words += f"{self.missed_sd:.2%} beyond that, F({self.lack_df}, {self.seed_df}) = {self.f:.3g}, p = {self.p:.2g}"
        return words + ("; the law does not describe these runs: look at the residuals" if self.doubtful else "")


def lack_of_fit(fit: LawFit) -> LackOfFit:
    """The test for the law ``fit``.

    Raises ``FitError`` for unequal weights, without runs of one design, and with no more designs than parameters.
    """
    points, design_n = fit.points, fit.points.design
    if np.ptp(points.w) > 0:
        raise FitError("points have unequal weights; fit without them")
    counts = np.bincount(design_n)
    lack_df, seed_df = len(counts) - fit.form.num_params, len(points) - len(counts)
    if points.trunk is not None:
        size_n = points.group("sizes")
        seed_df = min(seed_df, len(np.unique(points.trunk)) - len(np.unique(size_n)))
    if seed_df < 1:
        raise FitError(
            "no design was run with several seeds; run some twice, so that seeds and the law can be told apart"
        )
    if lack_df < 1:
        raise FitError(
            f"{len(counts)} designs and {fit.form.num_params} parameters: nothing is left that could be missed"
        )
    residual_n = np.log(points.y / fit.predict(**points.x))
    means = np.bincount(design_n, residual_n) / counts
    seeds = float(((residual_n - means[design_n]) ** 2).sum()) / (len(points) - len(counts))
    lack = float((counts * means**2).sum()) / lack_df
    if seeds == 0:
        raise FitError("runs of one design have the same loss to the last digit; are they copies?")
    missed = np.sqrt(max(0.0, lack - seeds) / counts.mean())
    f = lack / seeds
    return LackOfFit(float(np.sqrt(seeds)), float(missed), f, float(fdtrc(lack_df, seed_df, f)), lack_df, seed_df)
