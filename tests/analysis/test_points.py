"""Points: the same from a table, a frame, a mapping or arrays, and bad input named with its remedy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from varscale_analysis import ChinchillaLaw, FitError, PowerLaw, SaturatingPowerLaw, squares

N = np.geomspace(1e7, 1e9, 8)
Y = 3.0 + (1e-8 * N) ** -0.3 * np.exp(0.01 * np.random.default_rng(0).standard_normal(8))


def test_a_frame_a_mapping_and_arrays_are_one_fit() -> None:
    law = SaturatingPowerLaw("size")
    by_arrays = law.fit((N, Y), "loss")
    by_mapping = law.fit({"size": N.tolist(), "loss": Y.tolist()}, "loss")
    by_frame = law.fit(pd.DataFrame({"loss": Y, "size": N, "note": "text"}), "loss")
    assert by_arrays.params == by_mapping.params == by_frame.params


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("column", ["n", "loss"])
def test_values_that_are_not_positive_numbers_are_named_with_their_rows(column: str, value: float) -> None:
    columns = {"n": N.copy(), "loss": Y.copy()}
    columns[column][3] = value
    with pytest.raises(
        FitError, match=rf"{column}.* 1 values that are not positive numbers \(rows 3: {value:g}\).*leave"
    ):
        PowerLaw("n").fit(columns, "loss")


def test_a_column_that_is_missing_or_text_is_named() -> None:
    with pytest.raises(FitError, match="no column 'd'; the columns are n, loss"):
        ChinchillaLaw("n", "d").fit({"n": N, "loss": Y}, "loss")
    with pytest.raises(FitError, match="loss does not hold numbers"):
        PowerLaw("n").fit(pd.DataFrame({"n": N, "loss": ["much"] * 8}), "loss")
    with pytest.raises(FitError, match=r"3 arrays given, 2 needed: n, loss"):
        PowerLaw("n").fit((N, N, Y), "loss")
    with pytest.raises(FitError, match="one y for each x"):
        PowerLaw("n").fit((N[1:], Y), "loss")


def test_rows_that_stand_twice_are_refused_unless_told_apart() -> None:
    frame = pd.DataFrame({"n": N, "loss": Y})
    with pytest.raises(FitError, match="1 rows stand in the data twice"):
        PowerLaw("n").fit(pd.concat([frame, frame.iloc[:1]]), "loss")
    told = pd.concat([frame, frame.iloc[:1]]).assign(seed=[0] * 8 + [1])
    assert PowerLaw("n").fit(told, "loss", bootstrap=0).rows == 9


def test_two_units_in_one_column_are_suspected() -> None:
    mixed = N.copy()
    mixed[:3] /= 1e9
    with pytest.raises(FitError, match=r"n leaps from .* two units in one column"):
        PowerLaw("n").fit((mixed, Y), "loss")


def test_a_ladder_of_decades_is_one_unit() -> None:
    c = np.array([1e15, 1e18, 1e21, 1e24])
    assert PowerLaw("c").fit((c, c**-0.05), "loss", bootstrap=0).values()["alpha"] == pytest.approx(-0.05)


def test_no_points_are_refused() -> None:
    with pytest.raises(FitError, match="there are no points"):
        PowerLaw("n").fit(([], []), "loss")


def test_a_loss_at_or_below_the_given_offset_is_refused() -> None:
    with pytest.raises(FitError, match=r"2 values of loss lie at or below the fixed E = .*let it be fitted"):
        SaturatingPowerLaw("n", fixed={"E": float(np.sort(Y)[1])}).fit((N, Y), "loss")


def test_weights_that_are_not_weights_are_refused() -> None:
    law = PowerLaw("n", objective=squares(weights="w"))
    for bad in (-1.0, np.nan):
        with pytest.raises(FitError, match="weights w must be 8 finite numbers"):
            law.fit((N, Y, np.array([bad, *np.ones(7)])), "loss")
