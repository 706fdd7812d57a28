"""RunTable: the runs of a study, validated as a whole before anything is fitted.

One row a run, the columns of the run table of varscale; this package reads them by name and knows the unit of each.
``read`` takes the ``runs.csv`` that varscale writes and holds it to that contract; ``from_csv`` and ``from_frame`` take
any table by a map of its columns (`varscale_analysis.column_map`), where most may be absent.
Rows are never deleted: those not finished, or with a reason for exclusion, stay in the table and out of the fits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from varscale_analysis.column_map import mapped_rows
from varscale_analysis.columns import COLUMNS, SIZES, STATUSES, Column, RunTableError, unit_of, validated
from varscale_analysis.curves import Curves
from varscale_analysis.objective import Floats

__all__ = [
    "COLUMNS",
    "LEVEL",
    "SIZES",
    "STATUSES",
    "TOKENS_TOLERANCE",
    "Column",
    "RunTable",
    "RunTableError",
    "unit_of",
]

LEVEL = 0.9  # of every interval that is reported
TOKENS_TOLERANCE = 0.01  # runs whose tokens differ by more than this are not on one law of N


@dataclass(frozen=True, eq=False)
class RunTable:
    """The runs of a study. ``rows`` holds every run; ``usable`` marks those that enter fits.

    ``curves``: the measurements along them, if there are any. ``notes`` say what was computed, flagged or
    left out while a table was read by a map of its columns.
    """

    rows: pd.DataFrame
    curves: Curves | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read ``runs.csv``, and ``curves.csv`` where it lies beside it. Raises ``RunTableError`` with all problems."""
        path = Path(path)
        rows = validated(_cells(path, "write it with `varscale collect`"), str(path))
        return cls(rows, _curves_beside(path))

    @classmethod
    def from_csv(
        cls,
        path: Path | str,
        columns: Mapping[str, str] | None = None,
        *,
        units: Mapping[str, str | float] | None = None,
        constants: Mapping[str, str | float] | None = None,
    ) -> Self:
        """Read any CSV with a header, one row a run, by a map of its columns.

        Args:
            columns: our column names to the file's, such as ``{"params_total": "n_params", "tokens_seen": "tokens"}``,
                where they differ; a column that bears one of our names is taken as it is. All others stay in the table
                under their own names.
            units: by our name, what the file counts in: a factor, or one of ``units.NAMED_UNITS`` such as ``"B"``
                (1e9), ``"PFLOP"``, ``"bit"`` (of a loss) or ``"%"``.
            constants: by our name, one value for every row, such as ``{"tokenizer_id": "gpt-neox"}``. With
                ``{"flops_rule": "6nd"}`` and no column of FLOPs, C = 6 N D is computed, N being ``params_nonembed``
                or else the one that is given.

        A loss and one of sizes, tokens and FLOPs are needed; whatever else is absent is named once a law asks for it.
        Repeated, diverged and partial runs are flagged (`varscale_analysis.run_flags`), never deleted, and ``notes``
        lists them; rows are counted from 0, as in ``rows.iloc``. ``curves.csv`` beside a ``runs.csv`` is read with it.
        Raises ``RunTableError`` with every problem found: a column or name that does not exist, cells that are not
        numbers, values outside their limits, two units in one column.
        """
        path = Path(path)
        cells = _cells(path, "give a CSV file with a header and one row a run")
        table = cls.from_frame(cells, columns, units=units, constants=constants, source=str(path))
        return replace(table, curves=_curves_beside(path) if path.name == "runs.csv" else None)

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        columns: Mapping[str, str] | None = None,
        *,
        units: Mapping[str, str | float] | None = None,
        constants: Mapping[str, str | float] | None = None,
        source: str = "the table",
    ) -> Self:
        """As ``from_csv``, from a data frame; ``source`` names it in messages, and the study where none is given.

        A run whose losses are all NaN has diverged; None and NA are cells without a value.
        """
        rows, notes = mapped_rows(frame, columns or {}, units or {}, constants or {}, source)
        return cls(rows, None, notes)

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

    def has(self, name: str) -> bool:
        """Whether a column is there and filled in at least one row."""
        return name in self.rows and not bool((self.rows[name].isna() | (self.rows[name] == "")).all())

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
        tokens = table.values("tokens_seen") if fixed_tokens and table.has("tokens_seen") else np.ones(1)
        if tokens.max() > tokens.min() * (1 + TOKENS_TOLERANCE):
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
            problem = f"column {name} is empty in {int(np.isnan(values).sum())} rows; measure or exclude them"
            if not self.has(name):
                problem += f", or name the column that holds it: RunTable.from_csv(..., columns={{{name!r}: ...}})"
                if name in SIZES and (given := [size for size in SIZES if self.has(size)]):
                    problem += f"; the sizes of this table are {', '.join(given)} (n={given[0]!r})"
            raise RunTableError([problem])
        return values

    @property
    def at_tokens(self) -> str:
        """The label of a fit at fixed tokens."""
        if not self.has("tokens_seen"):
            return "at a D that is not given"
        tokens = self.values("tokens_seen")
        tokens_image, unique = (self.rows[name].to_numpy(np.float64) for name in ("num_tokens", "unique_images"))
        repeats = tokens / tokens_image / np.maximum(unique, 1.0)
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


def _cells(path: Path, remedy: str) -> pd.DataFrame:
    """The cells of a CSV as text. Raises ``RunTableError`` for a file that is absent or no table."""
    try:
        cells = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError:
        raise RunTableError([f"{path} does not exist; {remedy}"]) from None
    except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise RunTableError([f"{path} is not a CSV table ({error}); {remedy}"]) from None
    if not isinstance(cells.index, pd.RangeIndex):  # pandas would take the first cells as labels and shift the others
        raise RunTableError([f"{path} is not a CSV table (its rows have more cells than its header); {remedy}"])
    return cells


def _curves_beside(path: Path) -> Curves | None:
    curves_path = path.with_name("curves.csv")
    return Curves.read(curves_path) if curves_path.exists() else None
