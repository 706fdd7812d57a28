"""The next sweep: found against exhaustive search, its promise kept in simulation, limits and bad questions."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from varscale_analysis import (
    Budget,
    Candidates,
    ChinchillaLaw,
    ComputeCost,
    FitError,
    Goal,
    Guess,
    JointLaw,
    LawFit,
    PowerLaw,
    SaturatingPowerLaw,
    SweepDesign,
    design_sweep,
)
from varscale_analysis.belief import Belief
from varscale_analysis.exchange import Exchange

LAW = SaturatingPowerLaw("n")
GUESS = Guess(LAW, {"E": 3.2, "beta": 2.8e-4, "alpha": -0.5})
TOKENS = 2.5e6
CHINCHILLA = Guess(ChinchillaLaw("n", "d"), {"E": 1.82, "A": 482.0, "B": 2085.0, "alpha": 0.348, "beta": 0.366})
GRID = Candidates.grid(CHINCHILLA.law, np.geomspace(1e7, 3e9, 10), np.geomspace(2e8, 6e10, 8))


def sizes(count: int = 12) -> Candidates:
    return Candidates.grid(LAW, np.geomspace(5e3, 1e6, count), TOKENS)


def fitted(seeds: int = 2, noise: float = 0.004, bootstrap: int = 200) -> LawFit:
    rng = np.random.default_rng(3)
    n = np.repeat(np.geomspace(5e3, 1.8e5, 6), seeds)
    y = (3.2 + (2.8e-4 * n) ** -0.5) * np.exp(noise * rng.standard_normal(len(n)))
    return LAW.fit((n, y), bootstrap=bootstrap)


@pytest.mark.parametrize(("name", "budget"), [("alpha", 4e13), ("E", 4e13), ("alpha", 9e12)])
def test_the_search_comes_near_the_best_of_all_sweeps(name: str, budget: float) -> None:
    candidates = Candidates.grid(LAW, np.geomspace(5e3, 8e5, 6), TOKENS)
    belief = Belief.of(GUESS, candidates.x, noise=0.004)
    exchange = Exchange(belief, Goal.parameter(name), candidates, budget, {"n": 4}, max_seeds=2, max_runs=40)
    best = np.inf
    for counts in itertools.product(range(3), repeat=6):
        counts_G = np.array(counts)
        if exchange.cost(counts_G) <= budget and not exchange.missing(counts_G) and exchange.freedom(counts_G) >= 1:
            best = min(best, exchange.score(counts_G))
    assert np.isfinite(best)
    found = exchange.score(exchange.search())
    assert best - 1e-9 <= found <= best + 2 * np.log(1.02)  # twice the log of the half-width


def test_gains_are_differences_of_scores() -> None:
    candidates = sizes(6)
    for prior, lack in ((GUESS, 0.0), (fitted(), 0.0), (fitted(), 0.003)):
        belief = Belief.of(prior, candidates.x, noise=0.004, size_noise=lack)
        exchange = Exchange(belief, Goal.parameter("E"), candidates, 1e15, {"n": 5}, max_seeds=3, max_runs=40)
        counts_G = np.array([2, 0, 1, 0, 1, 0])
        more = [exchange.score(counts_G + unit) for unit in np.eye(6, dtype=np.int64)]
        np.testing.assert_allclose(
            exchange.score(counts_G) - np.array(more), exchange._gains(counts_G), rtol=1e-6, atol=1e-7
        )


def test_a_sweep_for_alpha_keeps_its_promise_and_beats_the_ladder() -> None:
    design = design_sweep(GUESS, sizes(), 2e13, "alpha", noise=0.003)
    assert design.flops <= 2e13 and design.flops == pytest.approx(sum(r.seeds * r.flops for r in design.runs))
    assert len(design.runs) >= 5 and max(run.seeds for run in design.runs) <= 3
    assert all(run.flops == pytest.approx(6 * run.at["n"] * TOKENS) for run in design.runs)
    assert design.before is None and design.runs_in_hand == 0
    after, ladder = design.after, design.ladder
    assert 0.83 <= after.coverage <= 0.96 and after.tables == after.asked == 200
    assert after.half_width == pytest.approx(after.delta_half_width, rel=0.15)
    assert (after.low, after.high) == pytest.approx((-0.5 - after.half_width, -0.5 + after.half_width))
    assert ladder is not None and design.gain is not None and design.gain > 1.05
    # What is promised is what a fit of such a sweep says.
    rng, n = np.random.default_rng(0), np.repeat([r.at["n"] for r in design.runs], [r.seeds for r in design.runs])
    halves = []
    for _ in range(20):
        y = (3.2 + (2.8e-4 * n) ** -0.5) * np.exp(0.003 * rng.standard_normal(len(n)))
        low, high = LAW.fit((n, y), bootstrap=100).interval("alpha")
        halves.append((high - low) / 2)
    assert np.median(halves) == pytest.approx(after.half_width, rel=0.25)
    assert SweepDesign.from_dict(json.loads(json.dumps(design.to_dict()))) == design
    text = design.summary()
    assert "alpha = -0.5" in text and "geometric ladder" in text and "held the truth" in text


def test_runs_in_hand_count_and_need_not_be_repeated() -> None:
    fit = fitted()
    with_fit = design_sweep(fit, sizes(), 2e13, "alpha", tables=60)
    alone = design_sweep(GUESS, sizes(), 2e13, "alpha", noise=fit.diagnostics.seed_sd, tables=60)
    assert with_fit.runs_in_hand == 12 and with_fit.before == pytest.approx(fit.interval("alpha"), rel=1e-6)
    assert with_fit.after.half_width < alone.after.half_width
    assert with_fit.before is not None
    assert 2 * with_fit.after.half_width < with_fit.before[1] - with_fit.before[0]
    # Seeds of a size that is there already lie in the same design: a shared deviation makes them worth less.
    shared = design_sweep(fit, sizes(), 2e13, "alpha", noise=0.002, size_noise=0.004, tables=60)
    assert shared.num_runs / len(shared.runs) < with_fit.num_runs / len(with_fit.runs)
    assert shared.after.half_width > with_fit.after.half_width


def test_more_budget_narrows_and_each_goal_is_narrowed_most_by_its_own_sweep() -> None:
    halves = [
        design_sweep(GUESS, sizes(), flops, "E", noise=0.003, tables=20).after.delta_half_width
        for flops in (8e12, 3e13, 1e14)
    ]
    assert halves[0] > halves[1] > halves[2]
    goals = {"alpha": Goal.parameter("alpha"), "loss": Goal.loss(n=1e8)}
    belief = Belief.of(GUESS, sizes().x, noise=0.003)
    own = {}
    for name, goal in goals.items():
        exchange = Exchange(belief, goal, sizes(), 3e13, {"n": 5}, max_seeds=3, max_runs=40)
        own[name] = exchange, exchange.search()
    for name, other in (("alpha", "loss"), ("loss", "alpha")):
        exchange, best = own[name]
        assert exchange.score(best) <= exchange.score(own[other][1]) + 1e-9


def test_the_compute_optimal_size_of_a_law_of_n_and_d() -> None:
    budget = Budget(3e20)
    design = design_sweep(CHINCHILLA, GRID, budget, Goal.n_opt(1e22), noise=0.003, tables=100)
    a = 0.366 / (0.348 + 0.366)
    g = (0.348 * 482.0 / (0.366 * 2085.0)) ** (1 / (0.348 + 0.366))
    assert design.value == pytest.approx(g * (1e22 / 6) ** a, rel=1e-3)
    assert design.logarithmic and design.after.low < design.value < design.after.high
    assert design.value / design.after.low == pytest.approx(np.exp(design.after.half_width), rel=1e-3)
    assert len({run.at["n"] for run in design.runs}) >= 5 and len({run.at["d"] for run in design.runs}) >= 3
    assert 0.8 <= design.after.coverage <= 0.97 and design.gain is not None and design.gain > 1
    assert all(run.flops == pytest.approx(6 * run.at["n"] * run.at["d"]) for run in design.runs)
    assert [run.candidate for run in design.runs] == [
        int(np.flatnonzero((GRID.x["n"] == run.at["n"]) & (GRID.x["d"] == run.at["d"]))[0]) for run in design.runs
    ]
    steep = Goal.n_opt(1e22, ComputeCost(6.0, 0.1))
    assert design_sweep(CHINCHILLA, GRID, budget, steep, noise=0.003, tables=5, max_runs=12).value != pytest.approx(
        design.value
    )


def test_limits_hold() -> None:
    limited = GRID.within(max_size=1e9, max_tokens=1e10, unique_tokens=1e9, max_epochs=4.0)
    assert limited.x["n"].max() <= 1e9 and limited.tokens.max() <= 4e9
    np.testing.assert_array_equal(GRID.x["n"][limited.number], limited.x["n"])
    with pytest.raises(ValueError, match="no candidate is left"):
        GRID.within(max_size=1.0)
    budget = Budget.gpu_hours(2000, peak_flops=989e12, mfu=0.4, jobs=4, wall_hours=60)
    assert budget.flops == pytest.approx(2000 * 3600 * 989e12 * 0.4)
    design = design_sweep(CHINCHILLA, GRID, budget, "alpha", noise=0.003, tables=20)
    assert design.wall_s is not None and design.wall_s <= 60 * 3600
    assert max(run.flops for run in design.runs) <= 60 * 3600 * 989e12 * 0.4
    assert design.flops <= 4 * 60 * 3600 * 989e12 * 0.4
    money = Budget.money(5000, 2.5, peak_flops=989e12, mfu=0.4)
    assert money.flops == pytest.approx(budget.flops) and "2000 GPU-hours at 40%" in money.basis
    assert Budget(1.0, speed=1.0, jobs=2).makespan(np.array([3.0, 2.0, 2.0])) == 4.0
    few = design_sweep(CHINCHILLA, GRID, 1e21, "alpha", noise=0.003, max_runs=8, max_seeds=1, tables=5)
    assert few.num_runs <= 8 and all(run.seeds == 1 for run in few.runs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": None}, "noise=0.003"),
        ({"noise": -1.0}, "noise of a run is -1"),
        ({"budget": 1e3}, "does not pay for one run"),
        ({"budget": 5e11}, "do not identify the law"),
        ({"budget": np.inf}, "finite number of FLOP"),
        ({"sizes": 13}, "do not identify the law"),
        ({"max_seeds": 0}, "max_seeds=0"),
    ],
)
def test_a_question_without_an_answer_is_refused(options: dict[str, object], message: str) -> None:
    question: dict[str, object] = {"budget": 2e13, "goal": "alpha", "noise": 0.003} | options
    with pytest.raises(ValueError, match=message):
        design_sweep(GUESS, sizes(), **question)  # type: ignore[arg-type]


def test_bad_guesses_goals_and_candidates_are_refused() -> None:
    with pytest.raises(ValueError, match="alpha have no value"):
        Guess(LAW, {"E": 3.2, "beta": 1e-4})
    with pytest.raises(ValueError, match="has no parameter"):
        design_sweep(Guess(LAW, {**GUESS.values, "gamma": 1.0}), sizes(), 1e13, "alpha", noise=0.003)
    with pytest.raises(ValueError, match="check signs and units"):
        design_sweep(Guess(LAW, {**GUESS.values, "alpha": 0.5}), sizes(), 1e13, "alpha", noise=0.003)
    with pytest.raises(ValueError, match="share from 0"):
        Guess(LAW, GUESS.values, spread=2.0)
    with pytest.raises(ValueError, match="placed among the candidates"):
        one_d = Candidates.grid(CHINCHILLA.law, np.geomspace(1e7, 1e9, 8), 1e9)
        design_sweep(CHINCHILLA, one_d, 1e20, "alpha", noise=0.003)
    for goal, message in ((Goal.n_opt(1e20), "N_opt follows"), ("gamma", "has no 'gamma'")):
        with pytest.raises(FitError, match=message):
            design_sweep(GUESS, sizes(), 1e13, goal, noise=0.003)
    given = Guess(SaturatingPowerLaw("n", fixed={"E": 3.2}), GUESS.values)
    with pytest.raises(FitError, match="E is given"):
        design_sweep(given, sizes(), 1e13, "E", noise=0.003)
    assert design_sweep(given, sizes(), 2e13, "alpha", noise=0.003, tables=20).after.half_width < 0.02
    with pytest.raises(ValueError, match="several targets"):
        joint = Guess(JointLaw(("a", "b"), "n"), dict.fromkeys(JointLaw(("a", "b"), "n").names, 1.0))
        design_sweep(joint, sizes(), 1e13, "alpha", noise=0.003)
    with pytest.raises(ValueError, match="one number of training tokens"):
        Candidates.of(LAW, {"n": [1e4, 1e5]}, flops=1e12, tokens=[1e6, 2e6])
    with pytest.raises(ValueError, match="twice"):
        Candidates.of(PowerLaw("n"), {"n": [1e4, 1e4]}, flops=1e12, tokens=1e6)
    with pytest.raises(ValueError, match="share of the peak"):
        Budget.gpu_hours(1, peak_flops=1e12, mfu=40)
    with pytest.raises(ValueError, match="wall time"):
        Budget(1e12, wall_s=60.0)
    with pytest.raises(FitError, match="not a sweep design"):
        SweepDesign.from_dict({"runs": []})
