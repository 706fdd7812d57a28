"""ScaleSchedule: counts, slices, parsing, and what it refuses."""

from __future__ import annotations

import pytest

from varscale.schedule import VAR_256, VAR_512, ScaleSchedule


def test_published_counts() -> None:
    assert (VAR_256.num_scales, VAR_256.num_tokens, VAR_256.attended_pairs) == (10, 680, 286_434)
    assert (VAR_512.num_tokens, VAR_512.attended_pairs) == (2240, 3_269_850)


@pytest.mark.parametrize("text", ["1-2-4", "1x1-2x3-4x6", "1x1x1-2x4x4", "16"])
def test_parse_is_the_inverse_of_str(text: str) -> None:
    assert str(ScaleSchedule.parse(text)) == text


def test_slices_tile_the_tokens() -> None:
    schedule = ScaleSchedule.square(1, 2, 4)
    assert [(s.start, s.stop) for s in schedule.slices] == [(0, 1), (1, 5), (5, 21)]
    assert schedule.attended_pairs == 1 * 1 + 4 * 5 + 16 * 21


def test_is_a_value() -> None:
    assert len({ScaleSchedule.square(1, 2), ScaleSchedule.parse("1-2")}) == 1


@pytest.mark.parametrize(("text", "names"), [("", "''"), ("1-two", "'two'"), ("0-2", "at least 1"), ("4-2", "coarse")])
def test_refuses(text: str, names: str) -> None:
    with pytest.raises(ValueError, match=names):
        ScaleSchedule.parse(text)


def test_last_side_must_be_the_latent_grid() -> None:
    with pytest.raises(ValueError, match=r"ends at 1x4x4.*is 1x8x8"):
        ScaleSchedule.square(1, 2, 4).check_latent_grid((8, 8))
    ScaleSchedule.square(1, 2, 8).check_latent_grid((8, 8))
