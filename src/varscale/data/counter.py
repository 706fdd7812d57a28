"""Counter-based random numbers: a random value is a hash of the numbers that name it.

There is no state and no object per image: image 7's third radius is the same whichever batch, worker or process asks
for it. Integer arithmetic modulo 2^64 only, so the values are the same on every machine and with every numpy.
Source: the finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014), folded over the parts of a name.
"""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)


def _mix(x: np.ndarray) -> np.ndarray:
    """The bijection of splitmix64 on uint64, in place where ``x`` is a fresh array."""
    x += _GOLDEN
    x ^= x >> np.uint64(30)
    x *= _MULTIPLY_1
    x ^= x >> np.uint64(27)
    x *= _MULTIPLY_2
    x ^= x >> np.uint64(31)
    return x


def counter_hash(*parts: int | np.ndarray) -> np.ndarray:
    """64 random bits for each name ``(parts...)``; the parts are integers or integer arrays that broadcast.

    Returns:
        uint64 array of the broadcast shape (at least one-dimensional).
    """
    state = np.zeros(1, dtype=np.uint64)
    for part in parts:
        state = _mix(state ^ _mix(np.array(part, dtype=np.int64, ndmin=1).view(np.uint64)))
    return state


def uniform(*parts: int | np.ndarray) -> np.ndarray:
    """float64 in [0, 1) for each name ``(parts...)``: the upper 53 bits of its hash."""
    return (counter_hash(*parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(bound: int | np.ndarray, *parts: int | np.ndarray) -> np.ndarray:
    """int64 in [0, bound) for each name ``(parts...)``; the bias is below bound / 2^53."""
    return np.floor(uniform(*parts) * bound).astype(np.int64)
