"""IsoFLOP profiles: published exponents, minima, refusals by name, noise and intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.interpolate import Akima1DInterpolator

from varscale_analysis import FitError, Frontier, Optimum, RunTable, akima

E, A, B, ALPHA, BETA = 1.8, 482.0, 2085.0, 0.348, 0.366
A_EXPONENT = BETA / (ALPHA + BETA)
COLUMNS = {"flops": "C", "n": "N", "d": "D", "y": "L"}
STAGES = ["1_kaplan_reproduction", "2_last_layer_flops", "3_warmup", "4_cosine_decay", "5_tuned_optimizer"]


def profiles(
    budgets: int = 7, sizes: int = 7, noise: float = 0.003, seeds: int = 1, span: float = 4.0, seed: int = 0
) -> pd.DataFrame:
    """Runs of a Chinchilla law around the optimum of each budget, off it by a random shift."""
    rng = np.random.default_rng(seed)
    g = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    rows = []
    for c in np.geomspace(1e17, 1e20, budgets):
        centre = g * (c / 6) ** A_EXPONENT * np.exp(rng.uniform(-0.3, 0.3))
        for n in centre * np.geomspace(1 / span, span, sizes):
            for s in range(seeds):
                loss = E + A * n**-ALPHA + B * (c / 6 / n) ** -BETA + noise * rng.standard_normal()
                rows.append((c, n, c / 6 / n, loss, s))
    return pd.DataFrame(rows, columns=["C", "N", "D", "L", "seed"])


@pytest.mark.parametrize("dataset", ["rw", "owt2"])
@pytest.mark.parametrize("stage", STAGES)
def test_porian_exponents_are_reproduced(test_data: Path, dataset: str, stage: str) -> None:
    laws = test_data / "laws"
    names = ("optimal_pairs", "isoflop_points", "published_exponents")
    pairs, points, published = (
        table[(table["dataset"] == dataset) & (table["stage"] == stage)]
        for table in (pd.read_csv(laws / f"porian2024_{name}.csv") for name in names)
    )
    exponent, count = float(published["published_weighted"].iloc[0]), int(published["npairs"].iloc[0])
    columns = ("c_flops", "n_opt_params", "d_opt_tokens", "loss_opt_nats", "log_n_opt_std")
    optima = [Optimum(*row) for row in pairs[list(columns)].itertuples(index=False)]
    ours = Frontier.from_optima(optima, bootstrap=0)
    assert ours.n_opt is not None
    assert ours.n_opt.exponent == pytest.approx(exponent, abs=5e-5)
    noise = {"rw": 0.002, "owt2": 0.01}[dataset]  # as the published code sets it
    named = {"flops": "c_flops", "n": "n_params", "d": "d_tokens", "y": "loss_nats"}
    stated = Frontier.from_isoflop(points, **named, noise=noise)
    assert stated.n_exponent is not None
    assert stated.n_exponent.value == pytest.approx(exponent, abs=0.004)
    assert len(stated.optima) == count
    assert stated.n_exponent.low is not None and stated.n_exponent.high is not None
    assert stated.n_exponent.low < exponent < stated.n_exponent.high
    estimated = Frontier.from_isoflop(points, **named)
    assert estimated.n_exponent is not None
    assert estimated.n_exponent.value == pytest.approx(exponent, abs=0.006)
    parabola = Frontier.from_isoflop(points, **named, minimum="parabola", bootstrap=0)
    assert parabola.n_exponent is not None
    assert abs(parabola.n_exponent.value - exponent) < 0.12  # a parabola is no match for profiles this wide


@pytest.mark.parametrize("minimum", ["parabola", "cubic", "akima"])
def test_a_known_law_is_recovered(minimum) -> None:  # type: ignore[no-untyped-def]
    frontier = Frontier.from_isoflop(profiles(seeds=2), **COLUMNS, minimum=minimum)
    assert len(frontier.optima) == 7
    for parameter, true in ((frontier.n_exponent, A_EXPONENT), (frontier.d_exponent, 1 - A_EXPONENT)):
        assert parameter is not None and parameter.low is not None and parameter.high is not None
        assert parameter.low < true < parameter.high
        assert parameter.high - parameter.low < 0.06
    assert frontier.l_exponent is not None
    assert frontier.l_exponent.value == pytest.approx(-ALPHA * A_EXPONENT, abs=0.02)
    assert frontier.profiles[0].noise == pytest.approx(0.003, rel=0.3)


def test_intervals_cover_the_exponent() -> None:
    hits = 0
    for seed in range(40):
        table = profiles(budgets=6, noise=0.005, seed=seed)
        a = Frontier.from_isoflop(table, **COLUMNS, minimum="cubic", bootstrap=120, seed=seed).n_exponent
        assert a is not None and a.low is not None and a.high is not None
        hits += a.low <= A_EXPONENT <= a.high
    assert hits >= 32  # 36 expected at 90 %


def test_the_noise_is_estimated_from_seeds_or_from_the_shape() -> None:
    for noise in (0.002, 0.01):
        for seeds in (1, 3):
            table = profiles(budgets=12, sizes=9, noise=noise, seeds=seeds)
            found = Frontier.from_isoflop(table, **COLUMNS, bootstrap=0).profiles[0].noise
            assert found == pytest.approx(noise, rel=0.4)
    none = Frontier.from_isoflop(profiles(sizes=4), **COLUMNS, minimum="parabola")
    assert none.profiles[0].noise is None
    a = none.n_exponent  # then the scatter of the optima is their noise
    assert a is not None and a.low is not None and a.high is not None
    assert a.low < a.value < a.high
    assert a.value == pytest.approx(A_EXPONENT, abs=0.01)


def test_akima_is_that_of_scipy_and_its_minimum_is_the_least() -> None:
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(0, 10, 9))
    y = rng.standard_normal((9, 40))
    y[:, 0] = 2 * x  # straight
    y[:, 1] = np.maximum(0, x - 5)  # half flat
    spline = Akima1DInterpolator(x, y)
    grid = np.linspace(x[0], x[-1], 5001)
    np.testing.assert_allclose(akima.evaluate(x, y, grid), spline(grid), atol=1e-11)
    place, value = akima.minimum(x, y)
    np.testing.assert_allclose(value, spline(place)[np.arange(40), np.arange(40)], atol=1e-11)
    assert (value <= spline(grid).min(axis=0) + 1e-12).all()


def test_the_unit_of_n_moves_the_prefactor_only() -> None:
    table = profiles()
    one = Frontier.from_isoflop(table, **COLUMNS).n_opt
    million = Frontier.from_isoflop(table.assign(N=table["N"] / 1e6), **COLUMNS).n_opt
    assert one is not None and million is not None
    assert million.exponent == pytest.approx(one.exponent, abs=1e-9)
    assert million.coefficient == pytest.approx(one.coefficient / 1e6, rel=1e-6)
    shuffled = Frontier.from_isoflop(table.sample(frac=1.0, random_state=1), **COLUMNS).n_opt
    assert shuffled is not None
    assert shuffled.exponent == pytest.approx(one.exponent, abs=1e-9)


def test_profiles_at_an_edge_or_not_convex_are_refused_by_name() -> None:
    table = profiles(sizes=11, noise=0.0005)
    budgets = np.unique(table["C"])
    optimum = Frontier.from_isoflop(table, **COLUMNS, bootstrap=0).optima
    small = (table["C"] == budgets[0]) & (table["N"] < optimum[0].n * 1.2)
    large = (table["C"] == budgets[1]) & (table["N"] > optimum[1].n / 1.2)
    third = table.index[table["C"] == budgets[2]]
    broken = table.copy()
    broken.loc[third[1], "L"] -= 0.9  # a second valley far from the first
    broken.loc[table.index[table["C"] == budgets[3]], "L"] = 8 - table["L"]  # a hill
    frontier = Frontier.from_isoflop(broken[~(small | large)], **COLUMNS)
    assert len(frontier.optima) == 3
    reasons = [profile.refusal for profile in frontier.refused]
    assert all(reason is not None for reason in reasons)
    text = " | ".join(str(reason) for reason in reasons)
    assert "the smallest size" in text and "train a smaller one" in text
    assert "the largest size" in text and "train a larger one" in text
    assert "second valley" in text
    assert "not convex: the loss does not fall to a minimum" in text
    assert frontier.n_opt is not None
    assert frontier.n_opt.exponent == pytest.approx(A_EXPONENT, abs=0.03)
    summary = frontier.summary()
    assert summary.count("refused:") == 4


def test_a_minimum_that_noise_moves_to_the_edge_is_refused() -> None:
    table = profiles(span=1.3, noise=0.0)
    with pytest.raises(FitError, match=r"of the resamples the minimum lies at an edge.*noise of 0\.5 a run"):
        Frontier.from_isoflop(table[table["C"] == table["C"].min()], **COLUMNS, minimum="parabola", noise=0.5)


def test_when_every_profile_is_refused_the_error_names_each() -> None:
    table = profiles(sizes=13, noise=0.0)
    rising = table[table.index > table.groupby("C")["L"].transform("idxmin")]
    with pytest.raises(FitError, match=r"none of the 7 IsoFLOP profiles has a minimum: 1e\+17 FLOP: .*edge"):
        Frontier.from_isoflop(rising, **COLUMNS)


def test_a_ladder_at_fixed_tokens_is_no_isoflop_sweep(study: Path) -> None:
    with pytest.raises(FitError, match=r"none of the 7 IsoFLOP profiles has a minimum: .*1 sizes, a minimum by akima"):
        Frontier.from_isoflop(RunTable.read(study / "runs.csv"))


def test_one_budget_gives_an_optimum_and_no_line() -> None:
    table = profiles()
    one = Frontier.from_isoflop(table[table["C"] == table["C"].max()], **COLUMNS)
    assert len(one.optima) == 1
    assert one.n_opt is None
    assert "2 budgets" in one.absent["N_opt"]


def test_budgets_are_grouped_within_the_tolerance() -> None:
    table = profiles()
    rng = np.random.default_rng(3)
    wobbly = table.assign(C=table["C"] * (1 + rng.uniform(-0.02, 0.02, len(table))))
    assert len(Frontier.from_isoflop(wobbly, **COLUMNS, bootstrap=0).profiles) == 7


def test_tables_that_are_no_isoflop_sweep_are_refused() -> None:
    table = profiles()
    with pytest.raises(FitError, match="every run has N"):
        Frontier.from_isoflop(table.assign(N=1e8, D=table["C"] / 6e8), **COLUMNS)
    c = np.geomspace(1e17, 1e18, len(table))
    with pytest.raises(FitError, match="cannot be grouped by budget"):
        Frontier.from_isoflop(table.assign(C=c, D=c / 6 / table["N"]), **COLUMNS)
    c = np.geomspace(1e15, 1e25, len(table))
    with pytest.raises(FitError, match="no two of the 49 runs share a budget"):
        Frontier.from_isoflop(table.assign(C=c, D=c / 6 / table["N"]), **COLUMNS)
    mixed = table.copy()
    mixed.loc[10:20, "D"] = mixed.loc[10:20, "D"] / 500
    with pytest.raises(FitError, match="two units"):
        Frontier.from_isoflop(mixed, **COLUMNS)
    with pytest.raises(FitError, match="two units"):
        Frontier.from_isoflop(table.assign(N=np.where(table.index < 20, table["N"], table["N"] / 1e6)), **COLUMNS)
    for bad in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(FitError, match="1 values that are not positive numbers"):
            Frontier.from_isoflop(table.assign(L=np.where(table.index == 5, bad, table["L"])), **COLUMNS)
    with pytest.raises(FitError, match="no column 'loss'"):
        Frontier.from_isoflop(table, **(COLUMNS | {"y": "loss"}))
