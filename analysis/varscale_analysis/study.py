"""StudyAnalysis: everything this package says about one study folder, from its run table and curves.

A part that the data cannot carry (two sizes have no saturating law) is absent with its reason; the rest stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from varscale_analysis.atomic import write_json
from varscale_analysis.fit import FitError
from varscale_analysis.frontier import Frontier
from varscale_analysis.holdout import HoldoutScore, Prediction, PredictionError, leave_largest_out
from varscale_analysis.laws import LawFit, PowerLaw, SaturatingPowerLaw
from varscale_analysis.offset import ExponentAtOffset, exponent_against_offset
from varscale_analysis.table import SIZES, RunTable

PREDICTION_FILE = "prediction.json"
FIT_FILE = "fit.json"
LOSSES = ("val_nats_per_token_avg", "val_nats_per_token_last")
_MEASURES = ("flops_train", "wall_s", *LOSSES, "val_error_avg", "val_error_last")


@dataclass(frozen=True)
class SizeRow:
    """One size of the ladder: counts of parameters, seed means, and the seeds' spread (None for a single seed).

    ``means`` and ``spreads`` are by column name, in the column's unit; a column empty in some run is None. A spread is
    the sample standard deviation over seeds.
    """

    n: float
    params: Mapping[str, float]
    depth: float
    width: float
    seeds: int
    means: Mapping[str, float | None]
    spreads: Mapping[str, float | None]


@dataclass(frozen=True, eq=False)
class StudyAnalysis:
    """The analysis of one study.

    Attributes:
        tokens: the D that was asked for, None where the table has a single one.
        table: all rows; ``usable`` those behind the fits.
        sizes: one row a size, ascending.
        fits: by "law/loss", such as "saturating/val_nats_per_token_avg".
        frontier: laws of compute; None if absent.
        exponents: alpha for each fixed E.
        per_scale: size -> mean nats per token of scales 0 .. K-1.
        prediction, score: the hold-out; the score is None until the size is measured.
        absent: part -> why it is not there.
    """

    folder: Path
    table: RunTable
    n: str
    y: str
    at: str
    tokens: float | None
    sizes: tuple[SizeRow, ...]
    fits: Mapping[str, LawFit]
    frontier: Frontier | None
    exponents: tuple[ExponentAtOffset, ...]
    per_scale: Mapping[float, tuple[float, ...]]
    prediction: Prediction | None
    score: HoldoutScore | None
    absent: Mapping[str, str]

    def summary(self) -> str:
        """The table a person pastes: sizes, laws with intervals, hold-out, frontier, what is absent and why."""
        runs = sum(row.seeds for row in self.sizes)
        rule = ", ".join(sorted(set(map(str, self.table.usable["flops_rule"]))))
        lines = [
            f"{len(self.table)} runs, {runs} in the fits, {len(self.sizes)} sizes, {self.at}, FLOP rule {rule}",
            "",
        ]
        lines.append(
            f"{self.n:>16}  {'FLOP':>9}  seeds  {'L_avg nat/token':>17}  {'L_last nat/token':>17}  {'error':>6}"
        )
        for row in self.sizes:
            losses = [
                f"{row.means[name]:.4f}"
                + (f" +- {row.spreads[name]:.4f}" if row.spreads[name] is not None else " " * 10)
                for name in LOSSES
            ]
            error = row.means["val_error_avg"]
            lines.append(
                f"{row.n:>16,.0f}  {row.means['flops_train']:>9.3g}  {row.seeds:>5}  {losses[0]:>17}  {losses[1]:>17}  "
                + (f"{error:>6.4f}" if error is not None else f"{'-':>6}")
            )
        for fit in self.fits.values():
            lines += ["", fit.summary()]
        if self.prediction is not None:
            lines += ["", self.prediction.summary(self.score)]
        if self.frontier is not None:
            lines += ["", self.frontier.summary()]
        if self.absent:
            lines += [""] + [f"absent: {part}: {why}" for part, why in self.absent.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "n": self.n,
            "y": self.y,
            "at": self.at,
            "sizes": [
                {**vars(row), "params": dict(row.params), "means": dict(row.means), "spreads": dict(row.spreads)}
                for row in self.sizes
            ],
            "fits": {name: fit.to_dict() for name, fit in self.fits.items()},
            "frontier": None if self.frontier is None else self.frontier.to_dict(),
            "exponents": [vars(row) for row in self.exponents],
            "per_scale": [{"n": n, "nats_per_token": list(values)} for n, values in self.per_scale.items()],
            "prediction": None if self.prediction is None else self.prediction.to_dict(),
            "score": None if self.score is None else vars(self.score),
            "absent": dict(self.absent),
        }

    def write(self, path: Path | str | None = None) -> Path:
        """Write ``to_dict`` as JSON, by default to ``fit.json`` in the study folder."""
        path = self.folder / FIT_FILE if path is None else Path(path)
        write_json(path, self.to_dict())
        return path


def analyse(
    folder: Path | str,
    *,
    n: str = "params_nonembed",
    y: str = "val_nats_per_token_avg",
    holdout: Prediction | None = None,
    tokens: float | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> StudyAnalysis:
    """Analyse a study folder that holds ``runs.csv`` and, for the frontier, ``curves.csv``.

    Args:
        n: convention of N, one of ``table.SIZES``.
        y: the loss of hold-out, frontier and exponents; the laws are fitted to it and to both losses in nats.
        holdout: a registered prediction; by default ``prediction.json`` of the folder, else leave-the-largest-out.
        tokens: take only runs trained on this many tokens (within 1 %); the frontier still uses all.
        bootstrap, seed: draws of each interval and their seed.

    Raises ``RunTableError`` for a table that cannot be used, ``ValueError`` for an unknown convention of N.
    """
    folder = Path(folder)
    if n not in SIZES:
        raise ValueError(f"n is {n!r}; the conventions of N are {', '.join(SIZES)}")
    table = RunTable.read(folder / "runs.csv")
    at_one_d = table if tokens is None else table.select(tokens_seen=tokens)
    used = at_one_d.comparable(fixed_tokens=True)
    absent: dict[str, str] = {}
    fits: dict[str, LawFit] = {}
    for loss in dict.fromkeys((y, *LOSSES)):
        for law in (SaturatingPowerLaw(n=n), PowerLaw(n=n)):
            name = f"{law.name}/{loss}"
            try:
                fits[name] = law.fit(used, loss, bootstrap=bootstrap, seed=seed)
            except FitError as error:
                absent[name] = str(error)
    frontier = None
    try:
        frontier = Frontier.from_envelope(table, n=n, y=y, bootstrap=bootstrap, seed=seed)
    except FitError as error:
        absent["frontier"] = str(error)
    exponents: tuple[ExponentAtOffset, ...] = ()
    try:
        exponents = exponent_against_offset(used.values(n), used.values(y))
    except FitError as error:
        absent["exponent against E"] = str(error)
    prediction, score = holdout, None
    try:
        if prediction is None and (folder / PREDICTION_FILE).exists():
            prediction = Prediction.read(folder / PREDICTION_FILE)
        if prediction is None:
            law = SaturatingPowerLaw(n=n)
            prediction, score = leave_largest_out(used, law, y=y, bootstrap=bootstrap, seed=seed)
        else:
            score = prediction.compare(at_one_d)
    except (FitError, PredictionError) as error:
        absent["hold-out"] = str(error)
    per_scale = _per_scale(used, n)
    if not per_scale:
        absent["nats per scale"] = "the curves hold no nats_per_token with a scale; collect them with the runs"
    return StudyAnalysis(
        folder=folder,
        table=table,
        n=n,
        y=y,
        at=used.at_tokens,
        tokens=tokens,
        sizes=_sizes(used, n),
        fits=fits,
        frontier=frontier,
        exponents=exponents,
        per_scale=per_scale,
        prediction=prediction,
        score=score,
        absent=absent,
    )


def _sizes(used: RunTable, n: str) -> tuple[SizeRow, ...]:
    size_n, out = used.values(n), []
    for size in np.unique(size_n):
        rows = used.rows[size_n == size]
        columns = {name: rows[name].to_numpy(np.float64) for name in _MEASURES}
        means = {k: None if np.isnan(v).any() else float(v.mean()) for k, v in columns.items()}
        spreads = {k: float(v.std(ddof=1)) if len(v) > 1 and means[k] is not None else None for k, v in columns.items()}
        params = {name: float(rows[name].iloc[0]) for name in SIZES}
        depth, width = (float(rows[name].iloc[0]) for name in ("depth", "width"))
        out.append(SizeRow(float(size), params, depth, width, len(rows), means, spreads))
    return tuple(out)


def _per_scale(used: RunTable, n: str) -> dict[float, tuple[float, ...]]:
    """Seed mean of the nats per token of each scale, by size; a size without them in every run is left out."""
    if used.curves is None:
        return {}
    of_run = used.curves.per_scale(map(str, used.rows["run_id"]))
    by_size: dict[float, list[np.ndarray[Any, Any]]] = {}
    for run, size in zip(used.rows["run_id"], used.values(n), strict=True):
        if str(run) in of_run:
            by_size.setdefault(float(size), []).append(of_run[str(run)])
    return {size: tuple(np.mean(by_size[size], axis=0).tolist()) for size in sorted(by_size)}
