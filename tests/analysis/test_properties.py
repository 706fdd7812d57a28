"""Properties that hold for any table: units, the order of rows, monotone predictions, inverses, nested intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from varscale_analysis import (
    ChinchillaLaw,
    Frontier,
    Law,
    LawFit,
    Optimum,
    PowerLaw,
    SaturatingPowerLaw,
    exponent_against_offset,
)

# The same examples in every run: a property that fails must fail again.
settings.register_profile("varscale", derandomize=True, deadline=None, database=None, max_examples=12)
settings.load_profile("varscale")

LAWS: dict[str, Law] = {
    "power": PowerLaw("n"),
    "saturating": SaturatingPowerLaw("n"),
    "chinchilla": ChinchillaLaw("n", "d"),
}


@dataclass(frozen=True)
class Table:
    """A noisy table of a law with a known truth, and a generator for choices about it."""

    law: Law
    frame: pd.DataFrame
    rng: np.random.Generator

    def fit(self, frame: pd.DataFrame | None = None, bootstrap: int = 0) -> LawFit:
        """Fit the law."""
        return self.law.fit(self.frame if frame is None else frame, "loss", bootstrap=bootstrap)

    def inside(self) -> dict[str, np.ndarray]:
        """Places within the points."""
        at = self.rng.uniform(0, 1, 20)
        return {role: self.frame[role].min() ** (1 - at) * self.frame[role].max() ** at for role in self.law.roles}


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Six to nine sizes over one to four decades anywhere between 1e4 and 1e12, noise up to half a per cent."""
    name = draw(st.sampled_from(sorted(LAWS)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    decades = draw(st.floats(1.5, 4.0))
    sizes = draw(st.integers(6, 9))
    n = 10 ** (draw(st.floats(4.0, 8.0)) + np.linspace(0.0, decades, sizes))
    offset = 0.0 if name == "power" else draw(st.floats(0.5, 5.0))
    alpha = draw(st.floats(0.1, 0.6))
    columns = {"n": n}
    if name == "chinchilla":
        d = 10 ** (draw(st.floats(7.0, 10.0)) + np.linspace(0.0, 2.0, 4))
        columns = {"n": np.tile(n, len(d)), "d": np.repeat(d, len(n))}
        second = draw(st.floats(0.5, 2.0)) * (columns["d"] / d.min()) ** -draw(st.floats(0.1, 0.6))
    else:
        second = np.zeros(sizes)
    loss = offset + draw(st.floats(0.5, 3.0)) * (columns["n"] / n.min()) ** -alpha + second
    noise = draw(st.floats(1e-4, 5e-3))
    frame = pd.DataFrame({**columns, "loss": loss * np.exp(noise * rng.standard_normal(len(loss)))})
    return Table(LAWS[name], frame, rng)


def same(a: LawFit, b: LawFit, skip: tuple[str, ...] = ()) -> None:
    """The same parameters, as far as the points tell them."""
    for name, value in a.values().items():
        if name not in skip:
            assert b.values()[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@given(tables(), st.floats(-9.0, 9.0))
def test_a_unit_of_the_size_moves_only_its_prefactor(table: Table, decades: float) -> None:
    factor = 10.0**decades
    one, other = table.fit(), table.fit(table.frame.assign(n=table.frame["n"] * factor))
    prefactor = "A" if "A" in one.values() else "beta"
    same(one, other, skip=(prefactor,))
    at = table.inside()
    np.testing.assert_allclose(other.predict(**{**at, "n": at["n"] * factor}), one.predict(**at), rtol=1e-7)
    assert other.diagnostics.objective == pytest.approx(one.diagnostics.objective, rel=1e-7)


@given(tables(), st.floats(-3.0, 3.0))
def test_a_unit_of_the_loss_moves_offset_and_predictions_alike(table: Table, decades: float) -> None:
    factor = 10.0**decades
    one, other = table.fit(), table.fit(table.frame.assign(loss=table.frame["loss"] * factor))
    for name in {"alpha", "beta", "a"} & set(one.values()) - (set() if "A" in one.values() else {"beta"}):
        assert other.values()[name] == pytest.approx(one.values()[name], rel=1e-4), name
    for name in {"E", "A", "B"} & set(one.values()):
        assert other.values()[name] == pytest.approx(factor * one.values()[name], rel=1e-3, abs=1e-5 * factor), name
    at = table.inside()
    np.testing.assert_allclose(other.predict(**at), factor * one.predict(**at), rtol=1e-7)


@given(tables())
def test_the_order_of_rows_does_not_matter(table: Table) -> None:
    one = table.fit()
    other = table.fit(table.frame.iloc[table.rng.permutation(len(table.frame))])
    same(one, other)
    np.testing.assert_allclose(other.predict(**(at := table.inside())), one.predict(**at), rtol=1e-8)


@given(tables())
def test_predictions_and_their_bounds_fall_with_size(table: Table) -> None:
    fit = table.fit(bootstrap=120)
    n = np.geomspace(0.1 * table.frame["n"].min(), 100 * table.frame["n"].max(), 40)
    at = {role: n if role == "n" else np.full(40, table.frame[role].median()) for role in table.law.roles}
    for values in (fit.predict(**at), *fit.curve_interval(**at)):
        assert (np.diff(values) <= 1e-12 * values[:-1]).all()


@given(tables(), st.floats(0.2, 0.9))
def test_a_wider_level_is_a_wider_interval_and_a_new_run_is_wider_than_the_law(table: Table, level: float) -> None:
    fit, at = table.fit(bootstrap=120), table.inside()
    narrow, wide = fit.curve_interval(level=level, **at), fit.curve_interval(level=level + 0.09, **at)
    assert (wide[0] <= narrow[0]).all() and (narrow[1] <= wide[1]).all()
    run = fit.predict_interval(level=0.9, **at)
    law = fit.curve_interval(level=0.9, **at)
    assert ((run[1] - run[0]) > (law[1] - law[0])).mean() > 0.9


@given(tables())
def test_solve_is_the_inverse_of_predict(table: Table) -> None:
    fit, at = table.fit(), table.inside()
    known = {role: float(values[0]) for role, values in at.items() if role != "n"}
    y = float(fit.predict(n=at["n"][0], **known))
    assert fit.solve(y, **known) == pytest.approx(at["n"][0], rel=1e-6)


@given(tables())
def test_a_larger_offset_is_a_steeper_exponent(table: Table) -> None:
    rows = exponent_against_offset(table.frame["n"], table.frame["loss"]) if "d" not in table.frame else ()
    assert (np.diff([row.alpha for row in rows]) < 0).all()


@given(st.integers(0, 2**32 - 1), st.floats(-6.0, 6.0), st.floats(-6.0, 6.0))
def test_units_and_order_of_optima_leave_the_exponent(seed: int, n_decades: float, c_decades: float) -> None:
    rng = np.random.default_rng(seed)
    c = np.geomspace(1e17, 1e21, 6)
    n = 0.1 * c**0.5 * np.exp(0.1 * rng.standard_normal(6))
    sd = rng.uniform(0.02, 0.2, 6)
    plain = [Optimum(*row, None, None, s) for *row, s in zip(c, n, sd, strict=True)]
    scaled = [
        Optimum(x.flops * 10**c_decades, x.n * 10**n_decades, None, None, x.log_n_sd)
        for x in (plain[i] for i in rng.permutation(6))
    ]
    one, other = (Frontier.from_optima(optima, d=None, bootstrap=0) for optima in (plain, scaled))
    assert one.n_opt is not None and other.n_opt is not None
    assert other.n_opt.exponent == pytest.approx(one.n_opt.exponent, rel=1e-9)
    there = other.n_opt.predict(1e19 * 10**c_decades)
    assert there == pytest.approx(float(one.n_opt.predict(1e19)) * 10**n_decades, rel=1e-9)


@given(st.integers(0, 2**32 - 1), st.floats(-6.0, 6.0))
def test_units_and_order_of_isoflop_runs_leave_the_frontier(seed: int, decades: float) -> None:
    rng = np.random.default_rng(seed)
    rows = []
    for c in np.geomspace(1e17, 1e20, 4):
        best = 0.12 * (c / 6) ** 0.5126
        for n in best * np.geomspace(0.2, 5.0, 7) * np.exp(rng.uniform(-0.3, 0.3)):
            loss = 1.8 + 482 * n**-0.348 + 2085 * (c / 6 / n) ** -0.366 + 0.002 * rng.standard_normal()
            rows.append((c, n, c / 6 / n, loss))
    frame = pd.DataFrame(rows, columns=["c", "n", "d", "loss"])
    other = frame.iloc[rng.permutation(len(frame))]
    other = other.assign(n=other["n"] * 10**decades, d=other["d"] / 10**decades)
    names = {"flops": "c", "n": "n", "d": "d", "y": "loss", "minimum": "cubic", "bootstrap": 0}
    plain, scaled = Frontier.from_isoflop(frame, **names), Frontier.from_isoflop(other, **names)
    assert len(plain.optima) == len(scaled.optima)
    assert plain.n_opt is not None and scaled.n_opt is not None
    assert scaled.n_opt.exponent == pytest.approx(plain.n_opt.exponent, rel=1e-6)
    for a, b in zip(plain.optima, scaled.optima, strict=True):
        assert (b.n, b.loss) == pytest.approx((a.n * 10**decades, a.loss), rel=1e-7)
