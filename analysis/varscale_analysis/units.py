"""Units a column may be given in, and the signs that one column holds two of them.

A table pasted together from two sources often counts parameters in ones here and in billions there. A fit does not
fail on that, it only moves. Where N, D and C are all given they check each other: C / (N D) is near 6 by the usual
count (Kaplan et al., arXiv:2001.08361, sec. 2.1) and never far from it. A ladder that is only wide is not suspected.

Shapes: n runs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from varscale_analysis.columns import NATS, SIZES, RunTableError, row_numbers
from varscale_analysis.objective import Floats

_DAY_S = 86_400.0
NAMED_UNITS: Mapping[str, float] = {
    "1": 1.0,
    "k": 1e3,
    "M": 1e6,
    "B": 1e9,
    "G": 1e9,
    "T": 1e12,
    "FLOP": 1.0,
    "GFLOP": 1e9,
    "TFLOP": 1e12,
    "PFLOP": 1e15,
    "EFLOP": 1e18,
    "ZFLOP": 1e21,
    "PF-day": 1e15 * _DAY_S,
    "nat": 1.0,
    "bit": float(np.log(2.0)),
    "%": 0.01,
}
THOUSAND_FOLD = 900.0  # C / (N D) of one count never differs by as much as a thousand-fold unit
FEW_PARAMETERS = 1e4  # sizes below it, and none between them and others a thousand times as large, are millions
LOSS_LEAP = 100.0  # losses of one unit lie closer than this, even those of a uniform guess and of the best model
PLAUSIBLE_PER = (0.05, 2000.0)  # C / (N D): forward multiply-adds give 1, tiny models with large heads hundreds


def factor_of(unit: str | float) -> float:
    """What one unit is in the unit of the run table: a factor as it is, or one of ``NAMED_UNITS``.

    Raises ``RunTableError`` for a name that is not among them and a factor that is not a positive number.
    """
    if isinstance(unit, str) and unit in NAMED_UNITS:
        return NAMED_UNITS[unit]
    try:
        factor = float(unit)
    except ValueError:
        factor = np.nan
    if not (np.isfinite(factor) and factor > 0):
        raise RunTableError([f"the unit {unit!r} is not known; give a factor or one of {', '.join(NAMED_UNITS)}"])
    return factor


def two_units(columns: Mapping[str, Floats], index_n: NDArray[np.int64]) -> list[str]:
    """Columns of positive numbers (n,) that must hold two units, each told with its rows; empty if there is none.

    ``index_n`` are the rows the values stand in.
    """
    problems = []
    size = next((name for name in SIZES if name in columns), None)
    together = [name for name in (size or "", "tokens_seen", "flops_train") if name in columns]
    if len(together) == 3:
        n_n, d_n, c_n = (columns[name] for name in together)
        per_n = c_n / (n_n * d_n)
        low, high, above_n = _leap(per_n)
        if high >= THOUSAND_FOLD * low:
            leaps = {name: _leap(columns[name]) for name in together}
            suspect = max(together, key=lambda name: leaps[name][1] / leaps[name][0])
            few_n = above_n if above_n.sum() * 2 <= len(above_n) else ~above_n
            problems.append(
                f"C / (N D) is at most {low:.4g} in some rows and at least {high:.4g} in others "
                f"({row_numbers(index_n[few_n])}): one of {', '.join(together)} holds two units, most likely "
                f"{suspect}; convert these rows to the unit of the others"
            )
    elif size is not None:
        low, high, above_n = _leap(columns[size])
        if low < FEW_PARAMETERS and high >= THOUSAND_FOLD * low:
            problems.append(
                f"{size} leaps from {low:.4g} ({row_numbers(index_n[~above_n])}) to {high:.4g} with nothing between: "
                "two units in one column; convert these rows to the unit of the others"
            )
    for name in NATS:
        if name in columns:
            low, high, above_n = _leap(columns[name])
            if high >= LOSS_LEAP * low:
                problems.append(
                    f"{name} leaps from {low:.4g} to {high:.4g} ({row_numbers(index_n[above_n])}) with nothing "
                    "between: two units in one column (nats an image are num_tokens times nats a token), or runs that "
                    "diverged; convert these rows, or give them an exclude_reason"
                )
    return problems


def odd_scale(columns: Mapping[str, Floats]) -> str | None:
    """A note where C / (N D) of every run is far from any count of FLOPs; None where it is not, or cannot be told."""
    size = next((name for name in SIZES if name in columns), None)
    if size is None or "tokens_seen" not in columns or "flops_train" not in columns:
        return None
    per_n = columns["flops_train"] / (columns[size] * columns["tokens_seen"])
    middle, (low, high) = float(np.median(per_n)), PLAUSIBLE_PER
    if not len(per_n) or low <= middle <= high:
        return None
    return (
        f"C / (N D) is {middle:.3g}, where {low:g} to {high:g} would be expected: is a unit missing? Give it as "
        f"units={{'{size}': ..., 'tokens_seen': ..., 'flops_train': ...}}"
    )


def _leap(values_n: Floats) -> tuple[float, float, NDArray[np.bool_]]:
    """The neighbours, in order of size, that lie the largest factor apart, and which values (n,) lie above it."""
    ordered = np.unique(values_n[np.isfinite(values_n)])
    if len(ordered) < 2:
        return 1.0, 1.0, np.zeros(len(values_n), dtype=bool)
    at = int(np.argmax(ordered[1:] / ordered[:-1]))
    return float(ordered[at]), float(ordered[at + 1]), values_n > ordered[at]
