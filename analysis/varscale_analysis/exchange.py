"""Exchange: which runs of a list narrow a goal most within a budget.

The criterion is the expected half-width of the goal's interval, t_nu sqrt(c' M^-1 c), where M is the information of all
runs, those in hand included, c the goal's slope, nu the degrees of freedom that remain, averaged in the logarithm over
what the law may be (see ``belief``). Runs are added one by one, the one with the most gain per FLOP to some power
first; then each run in turn is taken out and the freed budget spent again, as long as that helps (Fedorov, 1972, with
costs). Three powers are tried. Not proven optimal: on lists small enough to try every sweep it comes within 2 % of the
best half-width (tests/analysis/test_design.py).

Shapes: G candidates, B draws, F free parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from varscale_analysis.belief import Belief, free_parameters
from varscale_analysis.candidates import Candidates
from varscale_analysis.certificate import LEAST_IDENTIFIABLE
from varscale_analysis.fit import Floats
from varscale_analysis.goal import Goal
from varscale_analysis.table import LEVEL

Counts = NDArray[np.int64]
POWERS = (0.0, 0.5, 1.0)
WORTH = 0.002  # in log variance: a run that narrows the interval by less than a tenth of a per cent is not started
_MISSING = 10.0  # in log variance, for each size that the law needs and the sweep lacks
_RIDGE = 1e-9
_MOST_ROUNDS = 60


@dataclass(frozen=True, eq=False)
class Exchange:
    """The question: what is known, what is wanted, what there is to choose from.

    Attributes:
        least: how many different values each role must have, runs in hand included.
        max_seeds: new runs of one candidate; ``max_runs`` of all.
    """

    belief: Belief
    goal: Goal
    candidates: Candidates
    budget: float
    least: Mapping[str, int]
    max_seeds: int
    max_runs: int

    @cached_property
    def in_hand(self) -> tuple[Floats, Mapping[str, Floats], Floats]:
        """Runs in hand at each candidate (G,), and the other designs in hand by role with their runs."""
        points = self.belief.points
        had_G: Floats = np.zeros(len(self.candidates))
        candidates = self.candidates.x
        if points is None:
            return had_G, {role: np.empty(0) for role in candidates}, np.empty(0)
        weight_n = points.w / points.w.mean()
        count_D: Floats = np.bincount(points.design, weight_n).astype(np.float64)
        first_D = np.unique(points.design, return_index=True)[1]
        x = {role: values[first_D] for role, values in points.x.items()}
        same_DG = np.ones((len(first_D), len(self.candidates)), dtype=bool)
        for role, values in x.items():
            same_DG &= np.isclose(values[:, None], candidates[role][None], rtol=1e-6, atol=0.0)
        had_G += count_D @ same_DG
        other = ~same_DG.any(1)
        return had_G, {role: values[other] for role, values in x.items()}, count_D[other]

    @cached_property
    def slopes(self) -> tuple[Floats, Floats, Floats]:
        """J (B, F, G) of the candidates, M (B, F, F) of designs that are in hand only, and c (B, F), conditioned.

        Raises ``ValueError`` when candidates and runs in hand together do not tell the parameters apart.
        """
        belief, (_, x, count_D) = self.belief, self.in_hand
        c_BF = self.goal.slope(belief.law, belief.draws, belief.centre)[:, free_parameters(belief.law)]
        j_BFG, held_BFD = belief.jacobian(belief.draws, self.candidates.x), belief.jacobian(belief.draws, x)
        every = np.concatenate([j_BFG, held_BFD], axis=2)
        mean_FF = np.einsum("bfn,bgn->fg", every, every) / (every.shape[0] * every.shape[2])
        length_F = np.sqrt(np.diag(mean_FF))
        value, vector = np.linalg.eigh(mean_FF / np.outer(length_F, length_F))
        if not value[0] > LEAST_IDENTIFIABLE**2:
            raise ValueError(
                "the candidates do not tell the law's parameters apart; offer a wider range of sizes, or (for a law of "
                "N and D) several D for each N"
            )
        # Slopes of law and goal change alike with the coordinates: here the average candidate tells the same of each.
        to_FF = (vector / np.sqrt(value)).T / length_F
        j_BFG, held_BFD, c_BF = to_FF @ j_BFG, to_FF @ held_BFD, c_BF @ to_FF.T
        ridge = _RIDGE * np.eye(len(to_FF))
        return j_BFG, np.einsum("bfd,bgd,d->bfg", held_BFD, held_BFD, self.precision(count_D)) + ridge, c_BF

    @cached_property
    def levels(self) -> tuple[tuple[NDArray[np.int64], NDArray[np.bool_], int], ...]:
        """For each role: the level (G,) of each candidate, which levels are in hand, how many are needed."""
        points, out = self.belief.points, []
        for role, x_G in self.candidates.x.items():
            x = x_G if points is None else np.concatenate([x_G, points.x[role]])
            ordered = np.unique(x)
            # A size measured before and the same one offered again may differ in the last digits.
            start_L = np.concatenate([[True], ordered[1:] > ordered[:-1] * (1 + 1e-6)])
            index = np.cumsum(start_L)[np.searchsorted(ordered, x)] - 1
            there = np.zeros(int(start_L.sum()), dtype=bool)
            there[index[len(x_G) :]] = True
            out.append((index[: len(x_G)], there, self.least.get(role, 1)))
        return tuple(out)

    def precision(self, count: Floats) -> Floats:
        """What so many runs of one design tell, in runs without a shared deviation."""
        ratio = (self.belief.size_sd / self.belief.seed_sd) ** 2
        return np.asarray(count / (1.0 + count * ratio))

    def freedom(self, counts_G: Counts) -> int:
        """Degrees of freedom of the noise: of runs, or of designs when these deviate from the law."""
        had_G, _, other_D = self.in_hand
        runs = 0 if self.belief.points is None else len(self.belief.points)
        designs = int(((had_G + counts_G) > 0).sum()) + len(other_D)
        total = designs if self.belief.size_sd > 0 else runs + int(counts_G.sum())
        return total - int(free_parameters(self.belief.law).sum())

    def missing(self, counts_G: Counts) -> int:
        """How many different sizes (tokens, ...) are still needed."""
        return sum(max(0, least - _present(level, there, counts_G)) for level, there, least in self.levels)

    def variance(self, counts_G: Counts) -> Floats:
        """c' M^-1 c (B,), times the seed variance: the goal's variance under each draw."""
        inverse, c_BF = self._inverse(counts_G), self.slopes[2]
        return np.asarray(np.einsum("bf,bfg,bg->b", c_BF, inverse, c_BF) * self.belief.seed_sd**2)

    def score(self, counts_G: Counts) -> float:
        """Twice the log of the expected half-width, and a penalty where the law is not identified: lower is better."""
        penalty = _MISSING * self.missing(counts_G)
        return float(np.log(self.variance(counts_G)).mean()) + _width(self.freedom(counts_G)) + penalty

    def cost(self, counts_G: Counts) -> float:
        """FLOPs of the new runs."""
        return float(self.candidates.flops @ counts_G)

    def search(self) -> Counts:
        """The best sweep found. Raises ``ValueError`` where the budget does not identify the law."""
        cheapest = float(self.candidates.flops.min())
        if cheapest > self.budget:
            raise ValueError(
                f"the budget of {self.budget:.4g} FLOP does not pay for one run: the cheapest candidate takes "
                f"{cheapest:.4g}; raise the budget, or offer smaller runs"
            )
        found = [self._pruned(self._improved(self.filled(self._none, p), p)) for p in POWERS]
        best = min(found, key=self.score)
        if self.missing(best) or self.freedom(best) < 1:
            needed = ", ".join(f"{self.least.get(role, 1)} values of {role}" for role in self.candidates.x)
            raise ValueError(
                f"{self.budget:.4g} FLOP and at most {self.max_runs} runs do not identify the law, which needs "
                f"{needed} and more runs than its {int(free_parameters(self.belief.law).sum())} parameters; raise the "
                "budget, offer smaller runs, or ask for fewer sizes"
            )
        return best

    @property
    def _none(self) -> Counts:
        return np.zeros(len(self.candidates), dtype=np.int64)

    def filled(self, counts_G: Counts, power: float, without: int | None = None) -> Counts:
        """With runs added while one is worth it, by gain per FLOP^power; ``without`` is a candidate left alone."""
        counts_G = counts_G.copy()
        while counts_G.sum() < self.max_runs:
            open_G = (counts_G < self.max_seeds) & (self.candidates.flops <= self.budget - self.cost(counts_G))
            if without is not None:
                open_G[without] = False
            if not open_G.any():
                break
            gain_G = self._gains(counts_G)
            open_G &= gain_G > WORTH
            if not open_G.any():
                break
            rate_G = np.where(open_G, gain_G / (self.candidates.flops / self.budget) ** power, -np.inf)
            counts_G[int(np.argmax(rate_G))] += 1
        return counts_G

    def _gains(self, counts_G: Counts) -> Floats:
        """How much one more run of each candidate lowers the score (G,)."""
        j_BFG, _, c_BF = self.slopes
        had_G = self.in_hand[0] + counts_G
        inverse = self._inverse(counts_G)
        direction_BF = np.einsum("bfg,bg->bf", inverse, c_BF)
        variance_B1 = np.einsum("bf,bf->b", direction_BF, c_BF)[:, None]
        along_BG = np.einsum("bf,bfg->bg", direction_BF, j_BFG)
        length_BG = ((inverse @ j_BFG) * j_BFG).sum(1)
        more_G = self.precision(had_G + 1) - self.precision(had_G)
        after_BG = variance_B1 - more_G * along_BG**2 / (1 + more_G * length_BG)
        gain_G = np.log(variance_B1 / np.maximum(after_BG, 1e-12 * variance_B1)).mean(0)
        new_design_G = (had_G == 0) | (self.belief.size_sd == 0)
        freedom = self.freedom(counts_G)
        gain_G += np.where(new_design_G, _width(freedom) - _width(freedom + 1), 0.0)
        for level_G, there_L, least in self.levels:
            have_L = there_L.copy()
            have_L[level_G[counts_G > 0]] = True
            if have_L.sum() < least:
                gain_G += np.where(have_L[level_G], 0.0, _MISSING)
        return np.asarray(gain_G)

    def _inverse(self, counts_G: Counts) -> Floats:
        j_BFG, held_BFF, _ = self.slopes
        had_G = self.in_hand[0] + counts_G
        use = had_G > 0
        there = j_BFG[:, :, use]
        return np.asarray(np.linalg.inv(held_BFF + (there * self.precision(had_G[use])) @ there.mT), dtype=np.float64)

    def _improved(self, counts_G: Counts, power: float) -> Counts:
        """Each run in turn is taken out and its FLOPs spent otherwise, until nothing helps."""
        least = self.score(counts_G)
        for _ in range(_MOST_ROUNDS):
            tried = []
            for g in np.flatnonzero(counts_G):
                fewer = counts_G.copy()
                fewer[g] -= 1
                tried.append(self.filled(fewer, power, without=int(g)))
            scores = [self.score(other) for other in tried]
            if not tried or min(scores) > least - WORTH / 2:
                break
            least, counts_G = min(scores), tried[int(np.argmin(scores))]
        return counts_G

    def _pruned(self, counts_G: Counts) -> Counts:
        """Without runs that turned out not to be worth their start."""
        while True:
            here, losses = self.score(counts_G), []
            for g in np.flatnonzero(counts_G):
                fewer = counts_G.copy()
                fewer[g] -= 1
                losses.append((self.score(fewer) - here, int(g)))
            if not losses or min(losses)[0] >= WORTH:
                return counts_G
            counts_G = counts_G.copy()
            counts_G[min(losses)[1]] -= 1


def ladder(exchange: Exchange, sizes: Mapping[str, int]) -> Counts | None:
    """The plain design: ``sizes`` values of each role evenly in the logarithm, all combined, equally many seeds.

    Its largest run is as large as the budget allows. Of one to ``max_seeds`` seeds the best is taken. None if no such
    ladder fits the budget.
    """
    candidates, found = exchange.candidates, []
    for seeds in range(1, exchange.max_seeds + 1):
        for cap in np.unique(candidates.flops)[::-1]:
            chosen = candidates.flops <= cap
            for role, x_G in candidates.x.items():
                offered = np.unique(x_G[chosen]) if chosen.any() else np.empty(0)
                if len(offered):
                    even = np.linspace(np.log(offered[0]), np.log(offered[-1]), sizes[role])
                    nearest = np.argmin(np.abs(np.log(offered) - even[:, None]), axis=1)
                    chosen &= np.isin(x_G, offered[nearest])
            counts_G = seeds * chosen.astype(np.int64)
            if 0 < exchange.cost(counts_G) <= exchange.budget and counts_G.sum() <= exchange.max_runs:
                found.append(counts_G)
                break
    usable = [counts for counts in found if not exchange.missing(counts) and exchange.freedom(counts) >= 1]
    return min(usable, key=exchange.score, default=None)


def _width(freedom: int) -> float:
    """Twice the log of Student's factor; without a degree of freedom as many penalties as are missing."""
    return 2 * float(np.log(stdtrit(max(freedom, 1), (1 + LEVEL) / 2))) + _MISSING * max(0, 1 - freedom)


def _present(level_G: NDArray[np.int64], there_L: NDArray[np.bool_], counts_G: Counts) -> int:
    have_L = there_L.copy()
    have_L[level_G[counts_G > 0]] = True
    return int(have_L.sum())
