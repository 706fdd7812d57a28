"""Bad input through every door: each refusal names what is wrong, the numbers, and what to do.

Beside these, by what is wrong: rows that stand twice, two units in a column (test_points, test_units), a table's
losses and ids (test_table, test_run_flags), profiles (test_isoflop), curves (test_envelope), a bootstrap that cannot
certify (test_intervals), a W&B project that cannot be reached (test_wandb_runs).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from varscale_analysis import (
    BrokenPowerLaw,
    ChinchillaLaw,
    CurveSet,
    ErrorOfLossLaw,
    ErrorPowerLaw,
    ErrorSaturatingLaw,
    FitError,
    Frontier,
    JointLaw,
    Law,
    PowerLaw,
    PrefactorLaw,
    RepeatedDataLaw,
    SaturatingPowerLaw,
    exponent_against_offset,
    flatness_of,
    rolling_holdout,
    sensitivity_of,
)
from varscale_analysis.figures import routes_figure

N = np.geomspace(1e7, 1e9, 8)
D = np.geomspace(1e9, 1e11, 8)[::-1]
Y = (3.0 + (1e-8 * N) ** -0.3) * np.exp(0.01 * np.random.default_rng(0).standard_normal(8))
COLUMNS = {"n": N, "d": D, "u": np.full(8, 2e9), "loss": Y, "error": Y / 10, "seed": np.arange(8.0)}
LAWS: dict[str, Law] = {
    "power": PowerLaw("n"),
    "prefactor": PrefactorLaw("n"),
    "saturating": SaturatingPowerLaw("n"),
    "broken": BrokenPowerLaw("n"),
    "chinchilla": ChinchillaLaw("n", "d"),
    "chinchilla, tied": ChinchillaLaw("n", "d", tied=True),
    "repeated": RepeatedDataLaw("n", "d", u="u"),
    "error-power": ErrorPowerLaw("n"),
    "error-saturating": ErrorSaturatingLaw("n"),
    "error-of-loss": ErrorOfLossLaw("loss"),
    "joint": JointLaw(("loss", "error"), "n"),
}


def rows(count: int) -> dict[str, np.ndarray]:
    """The first rows of the columns."""
    return {name: values[:count] for name, values in COLUMNS.items()}


@pytest.mark.parametrize("name", LAWS)
def test_fewer_points_than_parameters_names_both_numbers_and_what_to_do(name: str) -> None:
    law = LAWS[name]
    count = (law.num_params - 1) // 2 if isinstance(law, JointLaw) else law.num_params - 1
    with pytest.raises(FitError, match=rf"has {law.num_params} parameters, but there are \d.*measure at least \d more"):
        law.fit(rows(count), "error" if law.rate else "loss")


@pytest.mark.parametrize("name", [name for name, law in LAWS.items() if "n" in law.roles])
def test_one_size_carries_no_law(name: str) -> None:
    law = LAWS[name]
    data = {**COLUMNS, "n": np.full(8, 1e8)}
    with pytest.raises(FitError, match=r"measure (at a second one|at least \d more|more)"):
        law.fit(data, "error" if law.rate else "loss")


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize(
    "door",
    [
        lambda n, y: SaturatingPowerLaw("n").fit((n, y), "loss"),
        lambda n, y: JointLaw(("a", "b"), "n").fit({"n": n, "a": Y, "b": y}),
        lambda n, y: Frontier.from_isoflop(
            pd.DataFrame({"c": np.full(8, 1e18), "n": n, "loss": y}), flops="c", n="n", d=None, y="loss"
        ),
        lambda n, y: exponent_against_offset(n, y),
        lambda n, y: sensitivity_of(PowerLaw("n"), (n, y), "loss"),
        lambda n, y: rolling_holdout((n, y), PowerLaw("n"), "loss"),
    ],
    ids=["fit", "joint", "isoflop", "offset", "sensitivity", "rolling"],
)
def test_losses_that_are_not_positive_numbers_are_named_with_their_row(
    door: Callable[[np.ndarray, np.ndarray], object], value: float
) -> None:
    y = Y.copy()
    y[2] = value
    with pytest.raises(
        FitError, match=rf"1 values that are not positive numbers \(rows 2: {value:g}\); leave them out"
    ):
        door(N, y)


@pytest.mark.parametrize(
    ("law", "y"),
    [
        (SaturatingPowerLaw("n", fixed={"E": 4.0}), "loss"),
        (ChinchillaLaw("n", "d", fixed={"E": 4.0}), "loss"),
        (ErrorSaturatingLaw("n", fixed={"E": 0.4}), "error"),
        (JointLaw(("loss", "error"), "n", fixed={"E[loss]": 4.0}), "loss"),
    ],
    ids=["saturating", "chinchilla", "error", "joint"],
)
def test_a_loss_below_the_given_offset_says_how_many_and_how_far(law: Law, y: str) -> None:
    column = COLUMNS[y]
    below = int((column <= next(iter(law.fixed.values()))).sum())
    assert 0 < below < len(column)
    with pytest.raises(
        FitError, match=rf"{below} values of {y} lie at or below .*\(the furthest {column.min():g}\).*fix"
    ):
        law.fit(COLUMNS, y)


def test_a_loss_that_the_law_never_reaches_is_no_question_to_solve() -> None:
    fit = SaturatingPowerLaw("n").fit(COLUMNS, "loss", bootstrap=0)
    with pytest.raises(FitError, match=r"never reaches 2 .*its offset E is .*ask for a loss above"):
        fit.solve(2.0)


def test_curves_that_cross_nowhere_answer_no_question_about_the_best_size() -> None:
    starts, tops = (1e15, 1e17, 1e19), (4.0, 3.5, 3.0)
    flops = tuple(np.geomspace(c, 10 * c, 50) for c in starts)
    curves = CurveSet(np.array([1e7, 1e8, 1e9]), flops, tuple(np.linspace(y, y - 0.3, 50) for y in tops), None)
    frontier = Frontier.from_envelope(curves, bootstrap=0)
    assert frontier.n_opt is None
    assert "needs 2 crossings of curves, there are 0" in frontier.summary()
    with pytest.raises(
        FitError, match=r"no N_opt\(C\): .*there are 0 .*validate earlier, or train the sizes on different"
    ):
        frontier.allocate(1e17)
    with pytest.raises(FitError, match="no profile has an optimum"):
        flatness_of(frontier)
    with pytest.raises(ValueError, match=r"no frontier has an N_opt\(C\).*validate earlier"):
        routes_figure([frontier])


def test_points_without_a_break_do_not_drive_it_to_infinity() -> None:
    n = np.array([6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 30.0]) ** 3 * 73728
    n += 9089 * np.cbrt(n / 73728) ** 2 + 372672 * np.cbrt(n / 73728) + 4096
    y = (5.0 + (2.5e-9 * n) ** -0.2) * np.exp(0.0034 * np.random.default_rng(35).standard_normal(12))
    fit = BrokenPowerLaw("n", per=1e9, offset=False).fit((n, y), "loss", bootstrap=0, certify=False)  # no overflow
    assert np.isfinite(fit.predict(np.geomspace(1e6, 1e12, 9))).all()
    assert fit.diagnostics.rms < 0.01
