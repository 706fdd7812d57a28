"""Every law: a known truth recovered, its Jacobian, and what must not matter: units, order of the points, JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from varscale_analysis import (
    BrokenPowerLaw,
    ChinchillaLaw,
    ErrorOfLossLaw,
    ErrorPowerLaw,
    ErrorSaturatingLaw,
    FitError,
    JointLaw,
    Law,
    LawFit,
    PowerLaw,
    PrefactorLaw,
    RepeatedDataLaw,
    SaturatingPowerLaw,
    base_parameters,
)
from varscale_analysis.fit import Problem

N = np.repeat(np.geomspace(2e7, 2e9, 8), 2)
GRID_N, GRID_D = (axis.ravel() for axis in np.meshgrid(np.geomspace(5e7, 5e9, 5), np.geomspace(1e9, 1e11, 4)))
UNIQUE = np.repeat([1e8, 4e8, 1.6e9], 12)
EPOCHS = np.tile([1.0, 2.0, 4.0, 8.0, 16.0, 44.0], 6)
REPEATED_N = np.tile(np.repeat([1e8, 1e9], 6), 3)
LONG_N = np.geomspace(1e6, 1e10, 40)


def worth(repeats: np.ndarray, half: float) -> np.ndarray:
    """Muennighoff's effective passes, 1 + R* (1 - exp(-R / R*))."""
    return 1.0 + half * (1.0 - np.exp(-repeats / half))


@dataclass(frozen=True)
class Case:
    """A law, noise-free data of it, and the parameters behind them."""

    law: Law
    data: dict[str, np.ndarray]
    params: dict[str, float]


USEFUL_N = base_parameters(UNIQUE, REPEATED_N, A=521.0, B=1488.0, alpha=0.353, beta=0.353)
D_WORTH = UNIQUE * worth(EPOCHS - 1.0, 15.4)
CASES = {
    "power": Case(PowerLaw("n"), {"n": N, "y": (2e-5 * N) ** -0.15}, {"beta": 2e-5, "alpha": -0.15}),
    "prefactor": Case(PrefactorLaw("n"), {"n": N, "y": 0.3 * N**0.52}, {"a": 0.3, "b": 0.52}),
    "saturating": Case(
        SaturatingPowerLaw("n"), {"n": N, "y": 3.2 + (2e-8 * N) ** -0.3}, {"E": 3.2, "beta": 2e-8, "alpha": -0.3}
    ),
    "saturating, E given": Case(
        SaturatingPowerLaw("n", fixed={"E": 3.2}),
        {"n": N, "y": 3.2 + (2e-8 * N) ** -0.3},
        {"beta": 2e-8, "alpha": -0.3},
    ),
    "saturating, beta given": Case(
        SaturatingPowerLaw("n", fixed={"beta": 2e-8}),
        {"n": N, "y": 3.2 + (2e-8 * N) ** -0.3},
        {"E": 3.2, "alpha": -0.3},
    ),
    "chinchilla": Case(
        ChinchillaLaw("n", "d"),
        {"n": GRID_N, "d": GRID_D, "y": 1.69 + 406.4 * GRID_N**-0.34 + 410.7 * GRID_D**-0.28},
        {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
    ),
    "chinchilla, tied": Case(
        ChinchillaLaw("n", "d", tied=True, objective="raw"),
        {"n": GRID_N, "d": GRID_D, "y": 1.8 + 200 * GRID_N**-0.3 + 300 * GRID_D**-0.3},
        {"E": 1.8, "A": 200.0, "B": 300.0, "alpha": 0.3},
    ),
    "chinchilla, the N term given": Case(
        ChinchillaLaw("n", "d", fixed={"A": 406.4, "alpha": 0.34}),
        {"n": GRID_N, "d": GRID_D, "y": 1.69 + 406.4 * GRID_N**-0.34 + 410.7 * GRID_D**-0.28},
        {"E": 1.69, "B": 410.7, "beta": 0.28},
    ),
    "error-power": Case(
        ErrorPowerLaw("n", per=1e9), {"n": N, "y": (4.9e2 * N / 1e9) ** -0.016}, {"beta": 4.9e2, "alpha": -0.016}
    ),
    "error-saturating": Case(
        ErrorSaturatingLaw("n"), {"n": N, "y": 0.3 + (1e-5 * N) ** -0.2}, {"E": 0.3, "beta": 1e-5, "alpha": -0.2}
    ),
    "error-of-loss": Case(
        ErrorOfLossLaw("loss", objective="raw"),
        {"loss": np.linspace(2.2, 5.0, 9), "y": 0.857 - 2.2 * np.exp(-0.71 * np.linspace(2.2, 5.0, 9))},
        {"epsilon": 0.857, "k": 2.2, "gamma": 0.71},
    ),
    "broken": Case(
        BrokenPowerLaw("n"),
        {"n": LONG_N, "y": 2.0 + 12 * LONG_N**-0.1 * (1 + (LONG_N / 1e8) ** (1 / 0.4)) ** (-0.3 * 0.4)},
        {"E": 2.0, "b": 12.0, "c0": 0.1, "c1": 0.3, "d1": 1e8, "f1": 0.4},
    ),
    "joint": Case(
        JointLaw(("avg", "last"), "n"),
        {"n": N, "avg": 3.0 + (2e-8 * N) ** -0.2, "last": 3.6 + (5e-8 * N) ** -0.2, "seed": np.tile([0.0, 1.0], 8)},
        {"E[avg]": 3.0, "E[last]": 3.6, "beta[avg]": 2e-8, "beta[last]": 5e-8, "alpha": -0.2},
    ),
    "joint, free exponents": Case(
        JointLaw(("avg", "last"), "n", shared=False),
        {"n": N, "avg": 3.0 + (2e-8 * N) ** -0.2, "last": 3.6 + (5e-8 * N) ** -0.35, "seed": np.tile([0.0, 1.0], 8)},
        {"E[avg]": 3.0, "beta[last]": 5e-8, "alpha[avg]": -0.2, "alpha[last]": -0.35},
    ),
    "repeated": Case(
        RepeatedDataLaw("n", "d", u="u", tied=True),
        {
            "n": REPEATED_N, "d": UNIQUE * EPOCHS, "u": UNIQUE,
            "y": 1.87 + 521 * REPEATED_N**-0.353 + 1488 * D_WORTH**-0.353,
        },
        {"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.353, "R*": 15.4},
    ),
    "repeated, N too": Case(
        RepeatedDataLaw(
            "n", "d", u="u", u_n="useful", fixed={"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.353, "beta": 0.353}
        ),
        {
            "n": REPEATED_N, "d": UNIQUE * EPOCHS, "u": UNIQUE, "useful": USEFUL_N,
            "y": 1.87 + 521 * (USEFUL_N * worth(REPEATED_N / USEFUL_N - 1.0, 5.3)) ** -0.353 + 1488 * D_WORTH**-0.353,
        },
        {"R*": 15.4, "R*_N": 5.3},
    ),
}  # fmt: skip


def told_apart(case: Case) -> dict[str, np.ndarray]:
    """The data with a column that makes every row its own."""
    columns = {**case.data}
    columns.setdefault("seed", np.arange(len(next(iter(columns.values()))), dtype=float))
    return columns


def noisy(case: Case, sd: float = 0.003, seed: int = 0) -> dict[str, np.ndarray]:
    """The data with relative noise in every fitted column."""
    rng = np.random.default_rng(seed)
    inputs = {*case.law.roles.values(), "seed"}
    return {
        name: values
        if name in inputs
        else np.minimum(values * np.exp(sd * rng.standard_normal(len(values))), 0.999)
        if case.law.rate
        else values * np.exp(sd * rng.standard_normal(len(values)))
        for name, values in told_apart(case).items()
    }


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def test_a_known_truth_is_recovered_by_agreeing_starts(case: Case) -> None:
    fit = case.law.fit(told_apart(case), "y", bootstrap=0)
    for name, value in case.params.items():
        assert fit.params[name].value == pytest.approx(value, rel=2e-5), name
    assert fit.certificate.certified
    assert fit.certificate.starts_agreeing >= 2
    assert fit.diagnostics.rms < 1e-8
    assert all(parameter.given == (name in case.law.fixed) for name, parameter in fit.params.items())


def test_the_jacobian_is_the_derivative(case: Case) -> None:
    problem = Problem(case.law, case.law.read(noisy(case), "y"))
    theta = problem.optimum()[0] * (1 + 1e-3)
    jacobian = problem.form.evaluate(theta[None], problem.u)[1][0]
    for p in range(len(theta)):
        step = np.zeros_like(theta)
        step[p] = 1e-6 * max(1.0, abs(theta[p]))
        numeric = (problem.values((theta + step)[None]) - problem.values((theta - step)[None]))[0] / (2 * step[p])
        np.testing.assert_allclose(jacobian[p], numeric, rtol=2e-6, atol=2e-8 * np.abs(numeric).max() + 1e-12)


def test_the_order_of_the_points_does_not_matter(case: Case) -> None:
    data = noisy(case)
    order = np.random.default_rng(1).permutation(len(next(iter(data.values()))))
    one = case.law.fit(data, "y", bootstrap=0)
    other = case.law.fit({name: values[order] for name, values in data.items()}, "y", bootstrap=0)
    assert other.diagnostics.objective == pytest.approx(one.diagnostics.objective, rel=1e-9)
    for name, value in one.values().items():
        assert other.values()[name] == pytest.approx(value, rel=1e-5), name


SCALABLE = [  # not: laws without N, with a second column in its unit, or with a prefactor given in its unit
    name
    for name, case in CASES.items()
    if "n" in case.law.roles and not isinstance(case.law, RepeatedDataLaw) and not set(case.law.fixed) & {"A", "beta"}
]


@pytest.mark.parametrize("factor", [1e-6, 1e9])
@pytest.mark.parametrize("name", SCALABLE)
def test_the_unit_of_n_moves_only_prefactors(name: str, factor: float) -> None:
    case = CASES[name]
    data = noisy(case)
    one = case.law.fit(data, "y", bootstrap=0)
    other = case.law.fit({**data, "n": data["n"] * factor}, "y", bootstrap=0)
    moved = {"beta", "a", "A", "b" if isinstance(case.law, BrokenPowerLaw) else "", "d1"}
    for name, value in one.values().items():
        if name.split("[")[0] not in moved or (name == "beta" and isinstance(case.law, ChinchillaLaw)):
            assert other.values()[name] == pytest.approx(value, rel=1e-6), name
    at = {key: 1.7e8 for key in case.law.roles if key != "target"} | (
        {"target": "avg"} if "target" in case.law.roles else {}
    )
    assert other.predict(**{**at, "n": 1.7e8 * factor}) == pytest.approx(one.predict(**at), rel=1e-8)
    per = replace(case.law, per=1e6).fit(data, "y", bootstrap=0)
    assert per.predict(**at) == pytest.approx(one.predict(**at), rel=1e-12)


def test_predictions_are_monotone(case: Case) -> None:
    fit = case.law.fit(noisy(case), "y", bootstrap=0)
    role, column = next(iter(case.law.roles.items()))
    x = np.geomspace(0.2 * case.data[column].min(), 5 * case.data[column].max(), 60)
    others = {r: float(np.median(case.data[c])) for r, c in case.law.roles.items() if r not in (role, "target")}
    others |= {"target": "last"} if "target" in case.law.roles else {}
    if isinstance(case.law, RepeatedDataLaw) and case.law.u_n is not None:
        x = x[x > others["u_n"]]
    step = np.diff(fit.predict(**{role: x, **others}))
    assert (step >= 0).all() if case.law.name in ("prefactor", "error-of-loss") else (step <= 0).all()


def test_a_fit_with_draws_survives_json(case: Case) -> None:
    fit = case.law.fit(noisy(case), "y", bootstrap=40)
    again = LawFit.from_dict(json.loads(json.dumps(fit.to_dict(), allow_nan=False)))
    assert again.form == fit.form
    assert again.params == fit.params
    assert again.certificate == fit.certificate
    assert again.summary() == fit.summary()
    np.testing.assert_array_equal(again.draws, fit.draws)


def test_solve_is_the_inverse_in_each_column() -> None:
    case = CASES["chinchilla"]
    fit = case.law.fit(noisy(case), "y", bootstrap=100)
    y = float(fit.predict(n=3e8, d=7e9))
    assert fit.solve(y, n=3e8) == pytest.approx(7e9, rel=1e-9)
    assert fit.solve(y, d=7e9) == pytest.approx(3e8, rel=1e-9)
    low, high = fit.solve_interval(y, n=3e8)
    assert low < 7e9 < high
    with pytest.raises(FitError, match="never reaches"):
        fit.solve(1.0, n=3e8)
    with pytest.raises(ValueError, match="all but one"):
        fit.solve(y)
    with pytest.raises(ValueError, match="law of n, d"):
        fit.predict(3e8)


def test_the_compute_exponent_is_reported_with_an_interval() -> None:
    case = CASES["chinchilla"]
    fit = case.law.fit(noisy(case), "y", bootstrap=300)
    a = fit.derived["a"]
    assert a.value == pytest.approx(fit.values()["beta"] / (fit.values()["alpha"] + fit.values()["beta"]))
    assert a.low is not None and a.high is not None and a.low < 0.28 / 0.62 < a.high
    assert (a.low, a.high) == pytest.approx(fit.interval(lambda p: p["beta"] / (p["alpha"] + p["beta"])))
    assert "a =" in fit.summary()


def test_error_rates_are_held_to_one() -> None:
    case = CASES["error-power"]
    fit = case.law.fit(noisy(case, 1e-3), "y", bootstrap=100)
    assert float(fit.predict(1e5)) == 1.0
    assert float(fit.predict_interval(1e6)[1]) <= 1.0
    with pytest.raises(FitError, match="1 - accuracy"):
        case.law.fit((N, 100 * case.data["y"]), bootstrap=0)


def test_joint_targets_share_what_they_know() -> None:
    data = noisy(CASES["joint"])
    joint, apart = (JointLaw(("avg", "last"), "n", shared=shared).fit(data, bootstrap=200) for shared in (True, False))
    width = joint.params["alpha"]
    alone = apart.params["alpha[avg]"]
    assert width.low is not None and width.high is not None and alone.low is not None and alone.high is not None
    assert width.high - width.low < alone.high - alone.low
    single = SaturatingPowerLaw("n").fit(data, "avg", bootstrap=0)
    assert apart.params["alpha[avg]"].value == pytest.approx(single.params["alpha"].value, rel=1e-5)
    assert float(apart.predict(n=1e9, target="avg")) == pytest.approx(float(single.predict(1e9)), rel=1e-7)
    with pytest.raises(ValueError, match="no target 'first'"):
        joint.predict(n=1e9, target="first")


def test_what_a_law_cannot_be_told_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameter"):
        ChinchillaLaw(fixed={"gamma": 0.3})
    with pytest.raises(ValueError, match="at least 0"):
        ChinchillaLaw(fixed={"E": -1.0})
    with pytest.raises(ValueError, match="'log' or 'raw'"):
        PowerLaw(objective="squares")
    with pytest.raises(FitError, match="nothing is repeated"):
        columns = {"n": GRID_N, "d": GRID_D, "u": GRID_D, "y": CASES["chinchilla"].data["y"]}
        RepeatedDataLaw("n", "d", u="u").fit(columns, "y")
