"""The next sweep: which sizes, tokens and seeds narrow one number most, for a budget.

From a law (fitted, or guessed with a spread), the noise of a run and a list of possible runs, ``design_sweep`` chooses
runs by the information they bring (``exchange``), then simulates the chosen sweep and a plain geometric ladder for the
same budget (``rehearsal``), so that what is promised is an interval that was seen to hold the truth.

What it cannot know: whether the law holds at the new sizes. Five sizes are asked for by default, more than the law has
parameters, so that a bend would show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd

from varscale_analysis.belief import Belief, Guess
from varscale_analysis.bootstrap import percentiles
from varscale_analysis.candidates import Budget, Candidates
from varscale_analysis.exchange import Counts, Exchange, ladder
from varscale_analysis.fit import FitError
from varscale_analysis.goal import Goal
from varscale_analysis.laws.result import LawFit
from varscale_analysis.rehearsal import ExpectedInterval, rehearse
from varscale_analysis.table import LEVEL

SIZES = 5  # different sizes a law of N needs to be believed
OTHERS = 3  # different values of D and further columns: an exponent shows by a bend
SEEDS = 3
MOST_RUNS = 40


@dataclass(frozen=True)
class DesignedRun:
    """Runs of one size.

    Attributes:
        at: columns of the law by name.
        tokens, flops: of one run.
        seeds: how many runs.
        candidate: its place in the list that was offered.
    """

    at: Mapping[str, float]
    tokens: float
    flops: float
    seeds: int
    candidate: int


@dataclass(frozen=True)
class SweepDesign:
    """A proposed sweep.

    Attributes:
        law: its formula.
        goal: what it narrows, in words; ``value``: as known before; ``logarithmic``: whether half-widths are of its
            logarithm.
        runs: by cost, ascending.
        budget: what may be spent.
        seed_sd, size_sd: the noise assumed; ``runs_in_hand``: fitted together with the new ones.
        before: the interval as it is now, from the fit's draws; None without.
        after: of the proposed sweep; ``ladder``: of the best geometric ladder for the same budget, None if none fits.
        ladder_runs, ladder_flops: of that ladder.
        wall_s: seconds until the last run ends; None where no speed is known.
    """

    law: str
    goal: str
    value: float
    logarithmic: bool
    runs: tuple[DesignedRun, ...]
    budget: Budget
    seed_sd: float
    size_sd: float
    runs_in_hand: int
    before: tuple[float, float] | None
    after: ExpectedInterval
    ladder: ExpectedInterval | None
    ladder_runs: int
    ladder_flops: float
    wall_s: float | None

    @property
    def flops(self) -> float:
        """Of the whole sweep."""
        return sum(run.seeds * run.flops for run in self.runs)

    @property
    def num_runs(self) -> int:
        """Runs to be started."""
        return sum(run.seeds for run in self.runs)

    @property
    def gain(self) -> float | None:
        """Half-width of the ladder over that of the proposal; None without a ladder."""
        return None if self.ladder is None else self.ladder.half_width / self.after.half_width

    def summary(self) -> str:
        """The proposal as text: runs, cost, the interval now, expected, and of a plain ladder."""
        names = list(self.runs[0].at)
        tokens = ["tokens"] if any(run.tokens not in run.at.values() for run in self.runs) else []
        heads = [*names, *tokens, "seeds", "FLOP a run", "of budget"]
        rows = [heads]
        for run in self.runs:
            cells = [f"{value:.5g}" for value in run.at.values()]
            cells += [f"{run.tokens:.5g}" for _ in tokens]
            share = run.seeds * run.flops / self.budget.flops
            rows.append([*cells, str(run.seeds), f"{run.flops:.3g}", f"{share:.1%}"])
        widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
        basis = f" ({self.budget.basis})" if self.budget.basis else ""
        lines = [
            f"sweep to narrow {self.goal}, {self.law}: {self.num_runs} runs, {self.flops:.3g} of "
            f"{self.budget.flops:.3g} FLOP{basis}"
        ]
        lines += ["  " + "  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows]
        if self.wall_s is not None:
            lines.append(f"  {self.wall_s / 3600:.3g} hours with {self.budget.jobs} runs side by side")
        now = "" if self.before is None else f", {LEVEL:.0%} interval now [{self.before[0]:.4g}, {self.before[1]:.4g}]"
        lines.append(f"{self.goal} = {self.value:.4g}{now}")
        lines.append(f"  expected with this sweep: {self._words(self.after)}")
        if self.ladder is not None and self.gain is not None:
            plain = f"geometric {'ladder' if len(names) == 1 else 'grid'} of {self.ladder_runs} runs"
            lines.append(
                f"  with a {plain}, {self.ladder_flops:.3g} FLOP: "
                f"{self._words(self.ladder)}; {self.gain:.2f} times as wide"
            )
        else:
            lines.append("  no plain geometric sweep that identifies the law fits this budget")
        in_hand = f", with {self.runs_in_hand} runs in hand" if self.runs_in_hand else ""
        noise = f"noise of a run {self.seed_sd:.3g}, shared by a size {self.size_sd:.3g}{in_hand}; "
        lines.append(f"{noise}simulated intervals are a promise only as far as the law holds at these sizes")
        return "\n".join(lines)

    def _words(self, expected: ExpectedInterval) -> str:
        half = f"x/ {np.exp(expected.half_width):.3f}" if self.logarithmic else f"+- {expected.half_width:.3g}"
        return (
            f"[{expected.low:.4g}, {expected.high:.4g}] ({half}), which held the truth in {expected.coverage:.0%} of "
            f"{expected.tables} simulated sweeps"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a size: columns of the law, tokens, flops, seeds, candidate."""
        return pd.DataFrame([{**run.at, **{k: v for k, v in vars(run).items() if k != "at"}} for run in self.runs])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``. Raises ``FitError`` for a mapping that is something else."""
        try:
            items = dict(values)
            items["runs"] = tuple(DesignedRun(**run) for run in values["runs"])
            items["budget"] = Budget(**values["budget"])
            items["before"] = None if values["before"] is None else tuple(values["before"])
            items["after"] = ExpectedInterval(**values["after"])
            items["ladder"] = None if values["ladder"] is None else ExpectedInterval(**values["ladder"])
            return cls(**items)
        except (KeyError, TypeError) as error:
            raise FitError(f"not a sweep design ({error!r}); write one with SweepDesign.to_dict") from error


def design_sweep(
    prior: LawFit | Guess,
    candidates: Candidates,
    budget: Budget | float,
    goal: Goal | str,
    *,
    noise: float | None = None,
    size_noise: float | None = None,
    sizes: int = SIZES,
    max_seeds: int = SEEDS,
    max_runs: int = MOST_RUNS,
    tables: int = 200,
    draws: int = 100,
    seed: int = 0,
) -> SweepDesign:
    """The sweep among ``candidates`` that is expected to narrow ``goal`` most for ``budget``.

    Args:
        prior: a fit, whose runs are in hand and whose draws say what the law may be; or a guess.
        candidates: what may be run (see ``Candidates.of``, ``grid`` and ``within``).
        budget: FLOP in all, or a ``Budget`` from GPU-hours or money.
        goal: a ``Goal``, or the name of a parameter such as "alpha".
        noise, size_noise: sd of a run, and of what runs of one design share, on the scale of the objective (log loss:
            relative). By default those of the fit.
        sizes: how many different values of the first column are needed, runs in hand included; of the others 3.
        max_seeds: runs of one candidate. ``max_runs``: of the sweep.
        tables, draws, seed: of the simulation that checks it.

    Raises ``ValueError`` for missing noise, a guess with missing parameters, candidates or a budget that do not
    identify the law; ``FitError`` for a goal that the law does not have.
    """
    budget = budget if isinstance(budget, Budget) else Budget(float(budget))
    goal = goal if isinstance(goal, Goal) else Goal.parameter(goal)
    if sizes < 2 or max_seeds < 1 or max_runs < 1:
        raise ValueError(f"sizes={sizes} must be at least 2, max_seeds={max_seeds} and max_runs={max_runs} at least 1")
    belief = Belief.of(prior, candidates.x, noise=noise, size_noise=size_noise)
    value = float(goal.of(belief.law, belief.theta[None], belief.centre)[0])
    least = {role: min(OTHERS, len(np.unique(x_G))) for role, x_G in candidates.x.items()}
    least[next(iter(candidates.x))] = sizes
    spendable = budget.flops
    if budget.wall_s is not None:
        assert budget.speed is not None
        candidates = candidates.within(max_flops=budget.speed * budget.wall_s)
        spendable = min(spendable, budget.jobs * budget.speed * budget.wall_s)
    exchange = Exchange(belief, goal, candidates, spendable, least, max_seeds, max_runs)
    counts_G = exchange.search()
    while budget.wall_s is not None and (_wall(budget, candidates, counts_G) or 0.0) > budget.wall_s:
        # Runs do not divide evenly over the jobs: spend a little less until the last one ends in time.
        exchange = replace(exchange, budget=0.95 * exchange.cost(counts_G))
        counts_G = exchange.search()

    def expected(counts: Counts) -> ExpectedInterval | None:
        x = {role: np.repeat(values, counts) for role, values in candidates.x.items()}
        return rehearse(belief, goal, x, tables=tables, draws=draws, seed=seed)

    after = expected(counts_G)
    if after is None:
        raise ValueError(
            f"none of {tables} simulated sweeps could be fitted: the noise of {belief.seed_sd:g} hides the law at "
            "these sizes; raise the budget, or narrow another number first"
        )

    used = np.flatnonzero(counts_G)
    kinds = {role: len(np.unique(x_G[used])) for role, x_G in candidates.x.items()}
    plain_G = ladder(exchange, {role: max(count, least[role]) for role, count in kinds.items()})
    before = None
    if isinstance(prior, LawFit) and len(prior.draws) and not prior.intervals.startswith("jackknife"):
        drawn_B = goal.of(belief.law, prior.draws, belief.centre)
        ends = percentiles(drawn_B[~np.isnan(drawn_B)], LEVEL)
        restore = np.exp if goal.logarithmic(belief.law) else float
        before = float(restore(ends[0])), float(restore(ends[1]))
    roles = belief.law.roles
    return SweepDesign(
        law=belief.law.formula,
        goal=str(goal),
        value=float(np.exp(value)) if goal.logarithmic(belief.law) else value,
        logarithmic=goal.logarithmic(belief.law),
        runs=tuple(
            DesignedRun(
                at={roles[role]: float(x_G[g]) for role, x_G in candidates.x.items()},
                tokens=float(candidates.tokens[g]),
                flops=float(candidates.flops[g]),
                seeds=int(counts_G[g]),
                candidate=int(candidates.number[g]),
            )
            for g in used[np.argsort(candidates.flops[used], kind="stable")]
        ),
        budget=budget,
        seed_sd=belief.seed_sd,
        size_sd=belief.size_sd,
        runs_in_hand=0 if belief.points is None else len(belief.points),
        before=before,
        after=after,
        ladder=None if plain_G is None else expected(plain_G),
        ladder_runs=0 if plain_G is None else int(plain_G.sum()),
        ladder_flops=0.0 if plain_G is None else exchange.cost(plain_G),
        wall_s=_wall(budget, candidates, counts_G),
    )


def _wall(budget: Budget, candidates: Candidates, counts_G: Counts) -> float | None:
    return budget.makespan(np.repeat(candidates.flops, counts_G))
