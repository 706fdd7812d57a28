"""``varscale collect``: merges the records of all runs into ``runs.csv``, and their curves into ``curves.csv``.

The records are those in the runs' folders, or with ``source=wandb`` those in a W&B project.

A row is never lost without a word: a run that cannot be read is listed with the reason, and so is one that another run
of the same ``run_id`` replaces. The files hold the runs in the order of their folders' names.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig
from tqdm import tqdm

from varscale.app.config import ConfigError
from varscale.records import (
    CURVE_COLUMNS,
    CURVE_FILE,
    RUN_FILE,
    RecordError,
    Run,
    atomic_write,
    read_curve,
    read_run,
)

if TYPE_CHECKING:
    from varscale.app.wandb_runs import WandbRuns

RUNS_FILE = "runs.csv"
CURVES_FILE = "curves.csv"


class CollectError(RecordError):
    """Some runs could not be read; the files hold all others."""


@dataclass(frozen=True)
class CollectResult:
    """What was merged.

    Attributes:
        runs: the rows of ``runs.csv``.
        replaced: folders left out for another run of the same ``run_id``, with the folder that stands for them.
        unreadable: folders that could not be read, with the reason.
    """

    runs: tuple[Run, ...]
    replaced: tuple[tuple[Path, Path], ...]
    unreadable: tuple[tuple[Path, str], ...]


def collect(runs_dir: Path, out_dir: Path) -> CollectResult:
    """Merge ``runs_dir/*/run.json`` and the curves beside them into ``runs.csv`` and ``curves.csv`` in ``out_dir``.

    Of several folders with one ``run_id`` the newest finished one counts, or the newest if none is finished. A run
    whose curve cannot be read is left out as a whole. Raises ``RecordError`` when there is no run to read.
    """
    folders = sorted(path.parent for path in runs_dir.glob(f"*/{RUN_FILE}")) if runs_dir.is_dir() else []
    if not folders:
        raise RecordError(f"there is no {RUN_FILE} in the folders of {runs_dir}; train a run first (varscale train)")
    runs: dict[Path, Run] = {}
    curves: dict[Path, list[dict[str, str]]] = {}
    unreadable: list[tuple[Path, str]] = []
    for folder in tqdm(folders, desc="collecting runs", leave=False, disable=None):
        try:
            run = read_run(folder)
            curve_path = folder / CURVE_FILE
            curve = read_curve(curve_path) if curve_path.exists() else []
            strangers = {row["run_id"] for row in curve} - {run.run_id}
            if strangers:
                raise RecordError(f"{curve_path} holds rows of another run, {min(strangers)}; the run is {run.run_id}")
        except (RecordError, OSError, TypeError, UnicodeDecodeError) as error:
            unreadable.append((folder, str(error)))
        else:
            runs[folder], curves[folder] = run, curve
    chosen = {run.run_id: _newest(run.run_id, runs) for run in runs.values()}
    replaced = [(folder, chosen[run.run_id]) for folder, run in runs.items() if chosen[run.run_id] != folder]
    kept = [folder for folder in runs if chosen[runs[folder].run_id] == folder]
    names = [field.name for field in dataclasses.fields(Run)]
    _write(out_dir / CURVES_FILE, CURVE_COLUMNS, (row for folder in kept for row in curves[folder]))
    _write(out_dir / RUNS_FILE, names, (runs[folder].to_dict() for folder in kept))
    return CollectResult(tuple(runs[folder] for folder in kept), tuple(replaced), tuple(unreadable))


def collect_wandb(cfg: DictConfig) -> WandbRuns:
    """Merge the runs of a W&B project into ``runs.csv`` and ``curves.csv`` of the study.

    Everything is read before anything is written. Raises ``WandbError`` when the project cannot be read.
    """
    from varscale.app.wandb_runs import read_project  # with the analysis, which the folders do not need

    found = read_project(
        cfg.project, study=cfg.study, columns=dict(cfg.collect.columns or {}), curves=dict(cfg.collect.curves or {})
    )
    out_dir = Path(cfg.paths.study)
    _write(out_dir / CURVES_FILE, CURVE_COLUMNS, found.curves)
    _write(out_dir / RUNS_FILE, found.columns, found.rows)
    return found


def main(cfg: DictConfig) -> None:
    """The verb: prints what was merged. Raises ``CollectError`` after writing when a run could not be read."""
    table = Path(cfg.paths.study) / RUNS_FILE
    if cfg.source == "wandb":
        found = collect_wandb(cfg)
        for name, why in found.left_out:
            print(f"{name} is left out: {why}", file=sys.stderr)
        print(f"{_told([row['status'] for row in found.rows])} of {cfg.project} in {table}")
        if found.foreign:
            print(f"{found.foreign} of them varscale did not write; read them with RunTable.from_csv('{table}')")
        return
    if cfg.source != "runs":
        raise ConfigError(f"source is {cfg.source}; it is runs (the study's folders) or wandb (a project)")
    result = collect(Path(cfg.paths.runs), Path(cfg.paths.study))
    for folder, other in result.replaced:
        print(f"{folder.name} is left out: {other.name} is the same run, finished or newer", file=sys.stderr)
    print(f"{_told([run.status for run in result.runs])} in {table}")
    if result.unreadable:
        reasons = "\n".join(f"  {folder}: {reason}" for folder, reason in result.unreadable)
        raise CollectError(
            f"{len(result.unreadable)} of the runs could not be read and are not in {RUNS_FILE}:\n{reasons}\n"
            "Launch them again, or move their folders out of the study."
        )


def _told(statuses: Sequence[str]) -> str:
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in sorted(set(statuses)))
    return f"{len(statuses)} runs ({counts or 'none'})"


def _newest(run_id: str, runs: dict[Path, Run]) -> Path:
    same = [folder for folder, run in runs.items() if run.run_id == run_id]
    return max(same, key=lambda folder: (runs[folder].status == "finished", runs[folder].created_utc, folder.name))


def _write(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: repr(value) if isinstance(value, float) else value for name, value in row.items()})
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
