"""CodeSpec: the nats of a uniform guess, and text forms."""

from __future__ import annotations

import math

import pytest

from varscale.codes import CodeSpec


def test_nats_of_a_uniform_guess() -> None:
    assert CodeSpec.index(4096).nats == pytest.approx(math.log(4096))
    assert CodeSpec.bits(16).nats == pytest.approx(16 * math.log(2))
    with pytest.raises(ValueError, match="continuous"):
        _ = CodeSpec.continuous(8).nats


@pytest.mark.parametrize("code", [CodeSpec.index(4096), CodeSpec.bits(16), CodeSpec.continuous(8)])
def test_text_round_trip(code: CodeSpec) -> None:
    assert CodeSpec.parse(str(code)) == code


@pytest.mark.parametrize("text", ["index", "index(x)", "words(3)", "index(0)"])
def test_refuses(text: str) -> None:
    with pytest.raises(ValueError):
        CodeSpec.parse(text)
