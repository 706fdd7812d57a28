"""One frontier by three routes: the closed form of a law, the common result, and where the routes disagree."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from varscale_analysis import (
    ComputeCost,
    CurveSet,
    FitError,
    Frontier,
    Optimum,
    PowerLaw,
    RunTable,
    compare_frontiers,
    figures,
)
from varscale_analysis.laws import ChinchillaLaw
from varscale_analysis.parametric import LossLaw

E, A, B, ALPHA, BETA = 1.8, 482.0, 2085.0, 0.348, 0.366
A_EXPONENT = BETA / (ALPHA + BETA)
G = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
NAMES = {"n": "N", "y": "L"}


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    """Runs of a Chinchilla law, seven sizes around the optimum of seven budgets."""
    rng = np.random.default_rng(0)
    rows = []
    for c in np.geomspace(1e17, 1e20, 7):
        for n in G * (c / 6) ** A_EXPONENT * np.geomspace(0.25, 4, 7) * np.exp(rng.uniform(-0.3, 0.3)):
            loss = E + A * n**-ALPHA + B * (c / 6 / n) ** -BETA + 0.002 * rng.standard_normal()
            rows.append((c, n, c / 6 / n, loss))
    return pd.DataFrame(rows, columns=["C", "N", "D", "L"])


@pytest.fixture(scope="module")
def routes(runs: pd.DataFrame) -> dict[str, Frontier]:
    """The same law by three routes."""
    n_R = np.geomspace(1e7, 1e9, 8)
    flops = tuple(np.geomspace(1 / 30, 8, 200) * 6 * (n / G) ** (1 / A_EXPONENT) for n in n_R)
    loss = tuple(E + A * n**-ALPHA + B * (c / 6 / n) ** -BETA for n, c in zip(n_R, flops, strict=True))
    fit = ChinchillaLaw(n="N", d="D").fit(runs, "L", bootstrap=300)
    return {
        "envelope": Frontier.from_envelope(CurveSet(n_R, flops, loss, 1 / (6 * n_R)), **NAMES, bootstrap=300),
        "isoflop": Frontier.from_isoflop(runs, flops="C", d="D", **NAMES, minimum="cubic", bootstrap=300),
        "law": Frontier.from_law(fit),
    }


def test_every_route_recovers_the_law_and_says_so_alike(routes: dict[str, Frontier]) -> None:
    for route, frontier in routes.items():
        assert frontier.route == route
        for parameter, true in (
            (frontier.n_exponent, A_EXPONENT),
            (frontier.d_exponent, 1 - A_EXPONENT),
            (frontier.l_exponent, -ALPHA * A_EXPONENT),
        ):
            assert parameter is not None and parameter.low is not None and parameter.high is not None
            assert parameter.low <= parameter.value <= parameter.high
            assert parameter.value == pytest.approx(true, abs=0.012)
        best = frontier.allocate(1e19)
        n = G * (1e19 / 6) ** A_EXPONENT
        assert best.n == pytest.approx(n, rel=0.05)
        assert best.d == pytest.approx(1e19 / 6 / n, rel=0.05)
        assert best.loss == pytest.approx(E + A * n**-ALPHA + B * (1e19 / 6 / n) ** -BETA, abs=0.01)
        assert best.n_interval is not None and best.n_interval[0] < best.n < best.n_interval[1]
        assert best.extrapolation == 1.0
        assert frontier.flops_range is not None
        assert frontier.allocate(10 * frontier.flops_range[1]).extrapolation == pytest.approx(10)
        assert f"frontier by {route}" in frontier.summary()


def test_a_frontier_survives_json(routes: dict[str, Frontier]) -> None:
    for frontier in routes.values():
        again = Frontier.from_dict(json.loads(json.dumps(frontier.to_dict())))
        assert again.summary() == frontier.summary()
        assert again.allocate(3e18) == frontier.allocate(3e18)
        assert json.dumps(again.to_dict()) == json.dumps(frontier.to_dict())
    with pytest.raises(FitError, match="not a saved frontier"):
        Frontier.from_dict({"route": "law"})


@pytest.mark.parametrize("g", [0.0, -0.12])
def test_the_closed_form_is_the_minimum(g: float) -> None:
    theta = np.array([E, A, B, ALPHA, BETA])
    law = LossLaw(theta, np.empty((0, 5)), ComputeCost(9.0, g))
    n_opt, d_opt, l_opt = law.trends("parameter", "token", "nat")
    for c in (1e17, 1e20, 1e23):
        n = np.geomspace(1e5, 1e13, 400_001)
        loss = law.loss(c, n)
        best = int(np.argmin(loss))
        assert float(n_opt.predict(c)) == pytest.approx(n[best], rel=1e-3)
        assert float(l_opt.predict(c)) == pytest.approx(loss[best], rel=1e-9)
        assert float(law.cost.flops(n_opt.predict(c), d_opt.predict(c))) == pytest.approx(c, rel=1e-9)


def test_the_published_law_allocates_as_published(test_data: Path) -> None:
    rows = pd.read_csv(test_data / "laws" / "besiroglu2024_chinchilla_svg.csv")
    kept = rows[rows["kept_by_besiroglu"] == 1]
    law = ChinchillaLaw(n="n_params", d="d_tokens", per=1e6)  # A counted in millions: the allocation is the same
    fit = law.fit(kept, "loss_nats_per_token", bootstrap=0)
    n_opt, per_one = (
        Frontier.from_law(f).n_opt for f in (fit, dataclasses.replace(law, per=1.0).fit(kept, fit.y, bootstrap=0))
    )
    assert n_opt is not None and per_one is not None
    p = fit.values()
    assert n_opt.exponent == pytest.approx(p["beta"] / (p["alpha"] + p["beta"]), abs=1e-12)
    assert float(n_opt.predict(5.76e23)) == pytest.approx(float(per_one.predict(5.76e23)), rel=1e-6)


def test_the_cost_is_read_from_columns(runs: pd.DataFrame) -> None:
    cost = ComputeCost.from_columns(runs["C"], runs["N"], runs["D"])
    assert cost.k == pytest.approx(6.0)
    assert cost.g == 0.0
    bent = ComputeCost.from_columns(runs["C"] * runs["N"] ** -0.1, runs["N"], runs["D"])
    assert bent.g == pytest.approx(-0.1)
    with pytest.raises(FitError, match="two units"):
        ComputeCost.from_columns(np.where(runs.index < 9, runs["C"], runs["C"] / 1e15), runs["N"], runs["D"])


def test_a_law_without_two_terms_has_no_allocation(runs: pd.DataFrame) -> None:
    fit = PowerLaw(n="N").fit((runs["N"], runs["L"]), "L", bootstrap=0)
    with pytest.raises(FitError, match="fit ChinchillaLaw"):
        Frontier.from_law(fit)


def test_optima_without_noise_take_it_from_their_scatter() -> None:
    rng = np.random.default_rng(0)
    c = np.geomspace(1e17, 1e20, 8)
    n = 0.1 * c**0.5 * np.exp(0.05 * rng.standard_normal(8))
    frontier = Frontier.from_optima([Optimum(x, z, None, None) for x, z in zip(c, n, strict=True)])
    a = frontier.n_exponent
    assert a is not None and a.low is not None and a.high is not None
    assert a.low < 0.5 < a.high
    assert 0.01 < a.high - a.low < 0.1
    assert set(frontier.absent) == {"D_opt", "L_opt"}
    with pytest.raises(FitError, match="no optima"):
        Frontier.from_optima([])


def test_routes_are_compared_with_intervals(routes: dict[str, Frontier], runs: pd.DataFrame) -> None:
    comparison = compare_frontiers(list(routes.values()))
    rows = {(row.route, row.quantity): row for row in comparison.rows}
    assert {route for route, _ in rows} == set(routes)
    assert len([row for row in comparison.differences if row.quantity == "exponent of N_opt"]) == 3
    ratio = next(r for r in comparison.differences if r.route == "law / isoflop" and r.quantity.startswith("N_opt"))
    assert ratio.low is not None and ratio.high is not None
    assert ratio.low < 1 < ratio.high
    assert not ratio.disagrees
    moved = Frontier.from_isoflop(runs.assign(N=runs["N"] * 3), flops="C", d="D", **NAMES, minimum="cubic")
    apart = compare_frontiers([routes["isoflop"], moved], [1e18], names=["one", "three"])
    ratio = next(r for r in apart.differences if r.quantity == "N_opt at 1e+18 FLOP")
    assert ratio.value == pytest.approx(3, rel=1e-3)  # the weights of the optima are drawn
    assert ratio.disagrees
    assert "three / one" in apart.summary() and apart.summary().count(" *") >= 1
    frame = apart.to_frame()
    assert len(frame) == len(apart.rows) + len(apart.differences)
    assert json.dumps(apart.to_dict())


def test_frontiers_that_cannot_be_compared_are_refused(routes: dict[str, Frontier]) -> None:
    law = routes["law"]
    with pytest.raises(FitError, match="needs two frontiers"):
        compare_frontiers([law])
    with pytest.raises(FitError, match="different N"):
        compare_frontiers([law, dataclasses.replace(routes["isoflop"], n="params_total")])
    with pytest.raises(FitError, match="as many different names"):
        compare_frontiers([law, law])


def test_figures_are_drawn(routes: dict[str, Frontier]) -> None:
    assert isinstance(figures.routes_figure(list(routes.values())), Figure)
    figure = figures.isoflop_figure(routes["isoflop"])
    assert len(figure.axes[0].lines) == 3 * len(routes["isoflop"].profiles)
    with pytest.raises(ValueError, match="holds no profiles"):
        figures.isoflop_figure(routes["law"])


def test_a_study_carries_a_frontier(make_study: Callable[..., Path], truth) -> None:  # type: ignore[no-untyped-def]
    wide = dataclasses.replace(truth, token_scale=1.0e6, images=250_000.0)
    table = RunTable.read(make_study(truth=wide, noise=0.001) / "runs.csv")
    frontier = Frontier.from_envelope(table, bootstrap=200)
    a, d = frontier.n_exponent, frontier.d_exponent
    assert a is not None and d is not None and a.low is not None and a.high is not None
    assert a.value == pytest.approx(0.556, abs=0.06)
    assert a.low < 0.556 < a.high
    assert d.value == pytest.approx(1 - a.value)
    assert frontier.saturating is not None
    # L = E' + A C^-(alpha beta / (alpha + beta)) on the optimum of the additive law: .4 * .5 / .9 = .222.
    alpha = frontier.saturating.params["alpha"]
    assert alpha.low is not None and alpha.high is not None
    assert alpha.low < -0.222 < alpha.high
