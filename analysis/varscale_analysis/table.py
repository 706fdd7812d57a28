"""RunTable: the runs of a study, read from ``runs.csv``, validated as a whole before anything is fitted.

One row a run, the columns of the run table of varscale; this package reads them by name and knows the unit of each.
Rows are never deleted: those not finished, or with a reason for exclusion, stay in the table and out of the fits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from varscale_analysis.curves import Curves
from varscale_analysis.objective import Floats

LEVEL = 0.9  # of every interval that is reported
TOKENS_TOLERANCE = 0.01  # runs whose tokens differ by more than this are not on one law of N

STATUSES = ("running", "finished", "diverged", "failed", "stopped")


class RunTableError(ValueError):
    """A run table that cannot be used: lists every problem at once, each with its remedy."""

    def __init__(self, problems: Sequence[str]):
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class Column:
    """A column this package reads. ``fitted``: must be present and positive in every row that enters a fit."""

    name: str
    unit: str
    kind: Literal["text", "count", "real"]
    fitted: bool = False
    high: float | None = None


COLUMNS = (
    Column("run_id", "-", "text"),
    Column("created_utc", "-", "text"),
    Column("study", "-", "text"),
    Column("status", "-", "text"),
    Column("exclude_reason", "-", "text"),
    Column("family", "-", "text"),
    Column("tokenizer_id", "-", "text"),
    Column("dataset_id", "-", "text"),
    Column("seed", "1", "count"),
    Column("flops_train", "FLOP", "real", fitted=True),
    Column("flops_rule", "-", "text"),
    Column("resolution_px", "px", "count"),
    Column("schedule", "-", "text"),
    Column("num_tokens", "token/image", "count", fitted=True),
    Column("code", "-", "text"),
    Column("depth", "1", "count"),
    Column("width", "1", "count"),
    Column("params_token", "1", "count", fitted=True),
    Column("params_image", "1", "count"),
    Column("params_blocks", "1", "count", fitted=True),
    Column("params_embed", "1", "count"),
    Column("params_head", "1", "count"),
    Column("params_total", "1", "count", fitted=True),
    Column("images_seen", "image", "real", fitted=True),
    Column("unique_images", "image", "real"),
    Column("tokens_seen", "token", "real", fitted=True),
    Column("val_nats_per_token_avg", "nat", "real", fitted=True),
    Column("val_nats_per_token_last", "nat", "real", fitted=True),
    Column("val_error_avg", "1", "real", high=1.0),
    Column("val_error_last", "1", "real", high=1.0),
    Column("val_images", "image", "real"),
    Column("wall_s", "s", "real"),
    Column("device", "-", "text"),
    Column("precision", "-", "text"),
)
SIZES = ("params_nonembed", "params_token", "params_blocks", "params_total")
_UNITS = {column.name: column.unit for column in COLUMNS}
_UNITS |= dict.fromkeys(SIZES, "parameter") | {"val_nats_per_token_avg": "nat/token"}
_UNITS |= {"val_nats_per_token_last": "nat/token"}


def unit_of(name: str) -> str:
    """The unit as printed: parameter for the conventions of N, nat/token for losses, else the column's own, else 1."""
    return _UNITS.get(name, "1")


@dataclass(frozen=True, eq=False)
class RunTable:
    """The runs of a study. ``rows`` holds every run; ``usable`` marks those that enter fits."""

    rows: pd.DataFrame
    curves: Curves | None = None

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read ``runs.csv``, and ``curves.csv`` where it lies beside it. Raises ``RunTableError`` with all problems."""
        path = Path(path)
        try:
            raw = pd.read_csv(path, dtype=str, keep_default_na=False)
        except FileNotFoundError:
            raise RunTableError([f"{path} does not exist; write it with `varscale collect`"]) from None
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise RunTableError([f"{path} is not a CSV table ({error}); write it with `varscale collect`"]) from None
        curves_path = path.with_name("curves.csv")
        rows = _validated(raw, str(path))
        return cls(rows, Curves.read(curves_path) if curves_path.exists() else None)

    @property
    def usable(self) -> pd.DataFrame:
        """Rows that enter fits: finished and without a reason for exclusion."""
        return self.rows[self._usable]

    @property
    def _usable(self) -> NDArray[np.bool_]:
        status = self.rows["status"].to_numpy(dtype=str)
        reason = self.rows["exclude_reason"].to_numpy(dtype=str)
        return np.asarray((status == "finished") & (reason == ""))

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, **equal: object) -> RunTable:
        """Rows whose columns equal the given values; ``tokens_seen`` matches within 1 %.

        Raises ``RunTableError`` for an unknown column.
        """
        keep = np.ones(len(self.rows), dtype=bool)
        for name, value in equal.items():
            if name not in self.rows:
                raise RunTableError([f"there is no column {name!r}; the columns are {', '.join(map(str, self.rows))}"])
            column = self.rows[name].to_numpy()
            if name == "tokens_seen":
                wanted = float(str(value))
                keep &= np.abs(column.astype(np.float64) / wanted - 1) <= TOKENS_TOLERANCE
            else:
                keep &= np.asarray(column == value)
        return replace(self, rows=self.rows[keep])

    def where(self, keep: NDArray[np.bool_]) -> RunTable:
        """The rows marked by a mask over ``rows``."""
        return replace(self, rows=self.rows[keep])

    def comparable(self, *, fixed_tokens: bool) -> RunTable:
        """The usable rows, if they may enter one fit.

        Raises ``RunTableError`` when none is left, or when they mix FLOP rules, tokenizers or data sets, or (with
        ``fixed_tokens``) numbers of training tokens more than 1 % apart: names the values and the remedy.
        """
        table = replace(self, rows=self.usable)
        if len(table) == 0:
            states = ", ".join(sorted(set(map(str, self.rows["status"])))) or "none"
            raise RunTableError([f"no run to fit: none is finished and not excluded (status: {states}); run or resume"])
        problems = []
        for name, what in (("flops_rule", "FLOP rules"), ("tokenizer_id", "tokenizers"), ("dataset_id", "data sets")):
            values = sorted(set(map(str, table.rows[name])))
            if len(values) > 1:
                problems.append(
                    f"the rows mix {len(values)} {what} ({', '.join(values)}), whose numbers cannot be compared; fit "
                    f"each alone: table.select({name}={values[0]!r})"
                )
        tokens = table.values("tokens_seen")
        if fixed_tokens and tokens.max() > tokens.min() * (1 + TOKENS_TOLERANCE):
            found = ", ".join(f"{value:.4g}" for value in np.unique(tokens)[:6])
            problems.append(
                f"the rows were trained on different numbers of tokens ({found}), and E and alpha depend on D; fit "
                f"one D at a time, with table.select(tokens_seen={tokens.max():.6g}) or analyse(tokens=...)"
            )
        if problems:
            raise RunTableError(problems)
        return table

    def values(self, name: str) -> Floats:
        """A column as float64. Raises ``RunTableError`` for an unknown or incomplete column."""
        if name not in self.rows:
            raise RunTableError([f"there is no column {name!r}; the columns are {', '.join(map(str, self.rows))}"])
        try:
            values = self.rows[name].to_numpy(dtype=np.float64)
        except (TypeError, ValueError):
            raise RunTableError([f"column {name} does not hold numbers; name a column that does"]) from None
        if np.isnan(values).any():
            raise RunTableError(
                [f"column {name} is empty in {int(np.isnan(values).sum())} rows; measure or exclude them"]
            )
        return values

    @property
    def at_tokens(self) -> str:
        """The label of a fit at fixed tokens."""
        tokens = self.values("tokens_seen")
        repeats = tokens / self.values("num_tokens") / np.maximum(self.rows["unique_images"].to_numpy(np.float64), 1.0)
        epochs = "" if np.isnan(repeats).any() or repeats.max() < 1.005 else f", {repeats.mean():.3g} epochs"
        return f"at D = {tokens.mean():.4g} tokens{epochs}"

    def sha256(self, *columns: str) -> str:
        """Hash of run_id, tokens and the given columns of the rows, in the order of run_id."""
        ordered = self.rows.sort_values("run_id")
        lines = [
            ",".join([str(run), *(repr(float(value)) for value in values)])
            for run, *values in zip(
                ordered["run_id"],
                *(ordered[name].to_numpy(np.float64) for name in ("tokens_seen", *columns)),
                strict=True,
            )
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _validated(raw: pd.DataFrame, path: str) -> pd.DataFrame:
    """Typed columns with the derived ones. Raises ``RunTableError`` with every problem found."""
    missing = [column.name for column in COLUMNS if column.name not in raw]
    if missing:
        raise RunTableError([f"{path} lacks the columns {', '.join(missing)}; write it with `varscale collect`"])
    problems: list[str] = []
    ids = raw["run_id"].to_numpy(dtype=str)
    repeated = sorted({str(name) for name, count in zip(*np.unique(ids, return_counts=True), strict=True) if count > 1})
    if repeated:
        problems.append(f"run_id {', '.join(repeated)} stands in more than one row; keep one row a run")
    status = raw["status"].to_numpy(dtype=str)
    for value in sorted(set(map(str, status)) - set(STATUSES)):
        problems.append(f"status {value!r} in run {ids[status == value][0]}; it is one of {', '.join(STATUSES)}")
    fitted = (status == "finished") & (raw["exclude_reason"].to_numpy(dtype=str) == "")
    rows = raw.copy()
    for column in COLUMNS:
        if column.kind != "text":
            numbers, found = _numbers(column, raw[column.name].to_numpy(dtype=str), ids, fitted)
            rows[column.name] = numbers
            problems += found
    if not problems:
        parts = [rows[f"params_{role}"].to_numpy(np.float64) for role in ("token", "image", "blocks", "embed", "head")]
        token, image, blocks, embed, head = parts
        total = rows["params_total"].to_numpy(np.float64)
        for run in ids[fitted & ((token + image != blocks) | (blocks + embed + head != total))]:
            problems.append(f"run {run}: the parameters by role do not add up to params_blocks and params_total")
        rows["params_nonembed"] = total - embed
    if problems:
        raise RunTableError([f"{path}: {problem}" for problem in problems])
    return rows


def _numbers(
    column: Column, cells: NDArray[np.str_], ids: NDArray[np.str_], fitted: NDArray[np.bool_]
) -> tuple[Floats, list[str]]:
    """A column as float64, NaN where empty, and what is wrong with it."""
    numbers, problems = np.full(len(cells), np.nan), []
    for i, cell in enumerate(cells):
        if cell == "":
            if column.fitted and fitted[i]:
                problems.append(f"run {ids[i]}: {column.name} is empty though the run is finished")
            continue
        try:
            value = float(cell)
        except ValueError:
            problems.append(f"run {ids[i]}: {column.name} is {str(cell)!r}, not a number ({column.unit})")
            continue
        if not np.isfinite(value):
            if fitted[i]:
                problems.append(
                    f"run {ids[i]}: {column.name} is {cell} though the run is finished; set its status to diverged, or "
                    "give it an exclude_reason"
                )
            continue
        numbers[i] = value
        if fitted[i] and value <= 0 and column.fitted:
            problems.append(f"run {ids[i]}: {column.name} is {cell} {column.unit}; it must be above 0")
        elif value < 0 or (column.high is not None and value > column.high):
            top = "" if column.high is None else f" and at most {column.high:g}"
            problems.append(f"run {ids[i]}: {column.name} is {cell} {column.unit}; it must be at least 0{top}")
        elif column.kind == "count" and value != round(value):
            problems.append(f"run {ids[i]}: {column.name} is {cell}; it must be a whole number")
    return numbers, problems
