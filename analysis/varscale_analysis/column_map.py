"""Any table of runs by a map of its columns: names, units and constants, to the typed rows of a ``RunTable``.

Our names stand on the left: ``{"params_total": "n_params"}``. Only what a law asks for must be there: a loss, and one
of sizes, tokens and FLOPs. Absent columns are empty, and named when something reads them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from varscale_analysis.columns import COLUMNS, LOSSES, SIZES, STATUSES, Column, RunTableError, row_numbers
from varscale_analysis.objective import Floats
from varscale_analysis.run_flags import STATUS_WORDS, flagged
from varscale_analysis.units import factor_of, odd_scale, two_units

# What a map may name besides the columns of runs.csv.
_MORE = (
    Column("params_nonembed", "1", "count", fitted=True),
    Column("trunk_id", "-", "text"),
    Column("branch_step", "step", "count"),
    Column("steps_done", "step", "count"),
    Column("budget_flops", "FLOP", "real"),
    Column("budget_tokens", "token", "real"),
)
MAPPED = {column.name: column for column in (*COLUMNS, *_MORE)}
_X = (*SIZES, "tokens_seen", "flops_train")


def parse_columns(pairs: Iterable[str]) -> dict[str, str]:
    """``["params_total=n_params", ...]`` as a mapping: columns, units or constants from a command line.

    Raises ``RunTableError`` for a pair without ``=`` or with an empty side, and for a name given twice.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        ours, equals, theirs = (part.strip() for part in pair.partition("="))
        if not (ours and equals and theirs):
            raise RunTableError([f"{pair!r} is no pair; write OURS=THEIRS, such as params_total=n_params"])
        if ours in found:
            raise RunTableError([f"{ours} is given twice, as {found[ours]!r} and {theirs!r}; give it once"])
        found[ours] = theirs
    return found


def mapped_rows(
    frame: pd.DataFrame,
    columns: Mapping[str, str],
    units: Mapping[str, str | float],
    constants: Mapping[str, str | float],
    source: str,
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The rows of ``RunTable.from_frame``, whose arguments these are, and the notes on them.

    Raises ``RunTableError`` with every problem found.
    """
    frame = frame.rename(columns=lambda name: str(name).strip()).reset_index(drop=True)
    empty = {name for name in MAPPED if name in frame and (frame[name].isna() | (frame[name] == "")).all()}
    taken = {name: name for name in MAPPED if name in frame and name not in empty} | dict(columns)
    taken = {ours: theirs for ours, theirs in taken.items() if ours not in constants}
    problems = [
        *_unknown_names(columns, units, constants),
        *(
            f"there is no column {theirs!r} (for {ours}).{_near(theirs, frame)} The columns are "
            f"{', '.join(map(str, frame))}"
            for ours, theirs in taken.items()
            if theirs not in frame
        ),
        *(f"{name} is given as a column and as a constant; give it once" for name in columns if name in constants),
        *(f"{name} has a unit and no column or constant" for name in units if name not in {*taken, *constants}),
    ]
    if not any(name in taken for name in LOSSES):
        problems.append(f"there is no loss; name its column as one of {', '.join(LOSSES)}")
    if not any(name in taken or name in constants for name in _X):
        problems.append(f"there are no sizes, tokens or FLOPs to fit against; name one of {', '.join(_X)}")
    if not len(frame):
        problems.append("there are no rows; give one a run")
    if problems:
        raise RunTableError([f"{source}: {problem}" for problem in problems])
    rows = _typed(frame, taken, units, constants, source)
    derived, notes = _derived(rows)
    rows = rows.assign(**derived)
    given = [name for name in MAPPED if name in taken or name in constants or name in derived]
    rows, flags = flagged(rows, given, _not_finite(rows, frame, taken))
    usable_n = np.asarray((rows["status"] == "finished") & (rows["exclude_reason"] == ""))
    problems = _outside(rows, given, usable_n)
    numbers = {name: rows[name].to_numpy(np.float64)[usable_n] for name in given if MAPPED[name].fitted}
    if not problems:
        measured = {name: values for name, values in numbers.items() if name not in derived}
        problems = two_units(measured, np.flatnonzero(usable_n))
    if problems:
        raise RunTableError([f"{source}: {problem}" for problem in problems])
    notes += [*flags, *([scale] if (scale := odd_scale(numbers)) else [])]
    return rows, tuple(notes)


def _unknown_names(*maps: Mapping[str, object]) -> list[str]:
    """Our names that do not exist: a mistyped one would silently be absent."""
    names = dict.fromkeys(name for given in maps for name in given)
    return [
        f"there is no column {name!r} in the run table.{_near(name, MAPPED)} It has {', '.join(MAPPED)}"
        for name in names
        if name not in MAPPED
    ]


def _typed(
    frame: pd.DataFrame,
    taken: Mapping[str, str],
    units: Mapping[str, str | float],
    constants: Mapping[str, str | float],
    source: str,
) -> pd.DataFrame:
    """Every column of ``MAPPED``, empty where absent, then the others of the frame. Raises ``RunTableError``."""
    problems: list[str] = []
    text: dict[str, list[str]] = {}
    numbers: dict[str, Floats] = {}
    for name, column in MAPPED.items():
        cells: list[object] = [constants.get(name)] * len(frame)
        if name in taken:
            cells = frame[taken[name]].tolist()
        if column.kind == "text":
            text[name] = ["" if _is_blank(cell) or cell != cell else str(cell).strip() for cell in cells]
            if name in units:
                problems.append(f"{name} is text and has no unit; leave it out of units")
            continue
        values, bad = _floats(cells)
        if bad:
            label = name if taken.get(name, name) == name else f"{name} (from {taken[name]})"
            problems.append(
                f"{label} is not a number in {len(bad)} rows ({row_numbers(bad)}: {cells[bad[0]]!r}); write plain "
                "numbers, and give their unit in units"
            )
        try:
            numbers[name] = values * factor_of(units.get(name, 1.0))
        except RunTableError as error:
            problems += [f"{name}: {problem}" for problem in error.problems]
    given = {*taken, *constants}
    words = [word.lower() for word in text["status"]] if "status" in given else ["finished"] * len(frame)
    text["status"] = [STATUS_WORDS.get(word, word) for word in words]
    for word in sorted(set(text["status"]) - set(STATUSES)):
        which = [i for i, found in enumerate(text["status"]) if found == word]
        known = ", ".join((*STATUSES, *STATUS_WORDS))
        problems.append(f"status {word!r} in {row_numbers(which)} is not known; it is one of {known}")
    if problems:
        raise RunTableError([f"{source}: {problem}" for problem in problems])
    text["run_id"] = [name or f"row{i}" for i, name in enumerate(text["run_id"])]
    if "study" not in given:
        text["study"] = [PurePath(source).stem] * len(frame)
    if "flops_rule" not in given:
        text["flops_rule"] = ["as given"] * len(frame)
    others = {str(name): _plain(frame[name]) for name in frame if name not in MAPPED}
    return pd.DataFrame({**text, **numbers, **others})


def _derived(rows: pd.DataFrame) -> tuple[dict[str, Floats], list[str]]:
    """Columns that follow from others, and notes on those that were asked for. Raises ``RunTableError``."""
    there = {name for name in MAPPED if MAPPED[name].kind != "text" and rows[name].notna().any()}
    derived: dict[str, Floats] = {}
    for name, parts, sign in (
        ("params_blocks", ("params_token", "params_image"), 1),
        ("params_nonembed", ("params_total", "params_embed"), -1),
    ):
        if name not in there and there.issuperset(parts):
            first, second = (rows[part].to_numpy(np.float64) for part in parts)
            derived[name] = first + sign * second
    if set(rows["flops_rule"]) == {"6nd"} and "flops_train" not in there:
        sizes = [name for name in SIZES if name in there or name in derived]
        if not sizes or "tokens_seen" not in there:
            raise RunTableError(["flops_rule 6nd computes C = 6 N D: name columns of a size and of tokens_seen"])
        n_n = derived[sizes[0]] if sizes[0] in derived else rows[sizes[0]].to_numpy(np.float64)
        derived["flops_train"] = 6 * n_n * rows["tokens_seen"].to_numpy(np.float64)
        return derived, [f"flops_train is computed: 6 {sizes[0]} tokens_seen (flops_rule 6nd)"]
    return derived, []


def _not_finite(rows: pd.DataFrame, frame: pd.DataFrame, taken: Mapping[str, str]) -> NDArray[np.bool_]:
    """Rows with a loss of infinity, or of NaN and none that is finite: NaN beside a finite one was not measured."""
    losses = [name for name in LOSSES if name in taken]
    values_nL = rows[losses].to_numpy(np.float64)
    blank_nL = np.array([[_is_blank(cell) for cell in frame[taken[name]]] for name in losses], dtype=bool).T
    nothing_n = ~np.isfinite(values_nL).any(axis=1) & ~blank_nL.all(axis=1)
    return np.asarray(nothing_n | np.isinf(values_nL).any(axis=1))


def _outside(rows: pd.DataFrame, given: Sequence[str], usable_n: NDArray[np.bool_]) -> list[str]:
    """Values of usable rows outside their limits, by column. A loss may be empty: a law that needs it says so."""
    problems = []
    for name in given:
        column = MAPPED[name]
        if column.kind == "text":
            continue
        values = rows[name].to_numpy(np.float64)
        limits = {
            "not a finite number": usable_n & column.fitted & ~np.isfinite(values) & (name not in LOSSES),
            "not above 0": usable_n & column.fitted & (values <= 0),
            "below 0": usable_n & (values < 0) & (not column.fitted),
            f"above {column.high}": usable_n & (values > (np.inf if column.high is None else column.high)),
        }
        for what, bad_n in limits.items():
            if bad_n.any():
                which = np.flatnonzero(bad_n)
                shown = ", ".join(f"{value:g}" for value in values[which[:5]])
                problems.append(
                    f"{name} is {what} in {len(which)} rows ({row_numbers(which)}: {shown}); correct these cells, or "
                    "give the rows an exclude_reason or the status diverged"
                )
    return problems


def _floats(cells: Sequence[object]) -> tuple[Floats, list[int]]:
    """The cells as numbers, NaN where blank, and the rows that hold something else."""
    numbers, bad = np.full(len(cells), np.nan), []
    for i, cell in enumerate(cells):
        if not _is_blank(cell):
            try:
                numbers[i] = float(cell)  # type: ignore[arg-type]
            except (TypeError, ValueError):
                bad.append(i)
    return numbers, bad


def _plain(column: pd.Series) -> pd.Series:
    """A column that was not mapped: numbers where every cell is one, else as it is."""
    if pd.api.types.is_numeric_dtype(column):
        return column
    numbers, bad = _floats(column.tolist())
    return column if bad else pd.Series(numbers)


def _is_blank(cell: object) -> bool:
    """No value: None, NA or an empty string; a float NaN is a value that is not finite."""
    return cell is None or cell is pd.NA or (isinstance(cell, str) and not cell.strip())


def _near(word: str, known: Iterable[object]) -> str:
    near = difflib.get_close_matches(word, [str(name) for name in known], n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
