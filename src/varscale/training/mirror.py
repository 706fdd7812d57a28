"""Weights & Biases as a mirror of a run's records: grouped by sweep, with tokens and FLOPs as x axes.

``run.json`` and ``curve.csv`` are the source; a mirror that fails is said once and never stops a run. A continued run
is continued online in the same W&B run. Offline, W&B cannot append: the curve so far is written again into a new
offline run of the same id and the one before is removed, so that the last one always holds the whole run, each step
once.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np

AXES = ("step", "images_seen", "tokens_seen", "flops")
INIT_TIMEOUT_S, FINISH_TIMEOUT_S = 30.0, 60.0
log = logging.getLogger(__name__)


class Mirror(Protocol):
    """Where a run's measurements are shown besides its own files."""

    def log(self, values: Mapping[str, float]) -> None:
        """Measurements at one point, the axes among them."""
        ...

    def catch_up(self, rows: Sequence[Mapping[str, str]]) -> None:
        """The rows of the curve that a continued run keeps, as `varscale.records.read_curve` gives them."""
        ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table; a cell that is an image, uint8 (R, R, 3), is shown as one."""
        ...

    def finish(self, summary: Mapping[str, Any], *, failed: bool) -> None:
        """The end of the run, with the values of its record."""
        ...


class NoMirror:
    """Nothing is shown elsewhere."""

    def log(self, values: Mapping[str, float]) -> None:
        """Ignore the measurements."""

    def catch_up(self, rows: Sequence[Mapping[str, str]]) -> None:
        """Ignore the curve."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Ignore the table."""

    def finish(self, summary: Mapping[str, Any], *, failed: bool) -> None:
        """Ignore the end."""


class WandbMirror:
    """One W&B run a varscale run: same id, group = sweep, job type, own x axes.

    Args:
        mode: ``offline`` (files beside the run, for ``wandb sync`` or ``wandb leet``) or ``online``.
    """

    def __init__(
        self,
        *,
        folder: Path,
        project: str,
        mode: str,
        run_id: str,
        name: str,
        group: str,
        job_type: str,
        tags: list[str],
        config: Mapping[str, Any],
    ):
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self.wandb = wandb
        self.superseded = sorted((folder / "wandb").glob(f"offline-run-*-{run_id}")) if mode == "offline" else []
        self.run = wandb.init(
            project=project,
            mode=mode,  # type: ignore[arg-type]
            dir=str(folder),
            id=run_id,
            name=name,
            group=group,
            job_type=job_type,
            tags=tags,
            config=dict(config),
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(
                console="off",
                x_disable_meta=False,
                x_disable_stats=True,
                init_timeout=INIT_TIMEOUT_S,
                finish_timeout=FINISH_TIMEOUT_S,  # a server that has gone must not hold the process
            ),
        )
        self.silenced = False
        # Of a run continued online the server has points already, perhaps from beyond the checkpoint.
        self.known_step = int(self.run.summary.get("step") or 0) if self.run.resumed else 0
        self.patterns: set[str] = set()
        for axis in AXES:
            self.run.define_metric(axis)

    def log(self, values: Mapping[str, float]) -> None:
        """Log one point, unless the server has it; an error is said and swallowed."""
        if values.get("step", self.known_step + 1) > self.known_step:
            self._attempt(f"the point at step {values.get('step')}", lambda: self._log(values))

    def catch_up(self, rows: Sequence[Mapping[str, str]]) -> None:
        """Log the points of a curve that the server or the new offline run lacks, and drop offline runs before it."""
        for point in curve_points(rows):
            self.log(point)
        for folder in self.superseded:
            shutil.rmtree(folder, ignore_errors=True)
        self.superseded = []

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table; an error is said and swallowed."""
        self._attempt(f"the table {name}", lambda: self.run.log({name: self._table(columns, rows)}))

    def finish(self, summary: Mapping[str, Any], *, failed: bool) -> None:
        """Write the record's values as the summary and close the run, so that the next job gets its own."""
        # None too, which W&B takes as absent: of a run continued online the server may have a value from before.
        self._attempt("the summary", lambda: self.run.summary.update(dict(summary)))
        self._attempt("the end of the run", lambda: self.run.finish(exit_code=int(failed)))

    def _log(self, values: Mapping[str, float]) -> None:
        for split in sorted({key.partition("/")[0] for key in values if "/" in key} - self.patterns):
            # W&B's own step restarts with every offline continuation, so every metric gets an axis of ours.
            axis = "tokens_seen" if "tokens_seen" in values else "step"  # stage 1 sees no tokens
            self.run.define_metric(f"{split}/*", step_metric=axis)
            self.patterns.add(split)
        self.run.log(dict(values))

    def _table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
        def cell(value: Any) -> Any:
            return self.wandb.Image(value) if isinstance(value, np.ndarray) else value

        return self.wandb.Table(columns=list(columns), data=[[cell(value) for value in row] for row in rows])

    def _attempt(self, what: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            if not self.silenced:
                log.warning("W&B did not take %s (%s); the run goes on, its records are in its own files", what, error)
            self.silenced = True


def curve_points(rows: Sequence[Mapping[str, str]]) -> Iterator[dict[str, float]]:
    """The points of a curve as they are logged: the axes, and ``split/metric`` or ``split/metric_scale`` for values."""
    for step, group in groupby(rows, key=lambda row: row["step"]):
        measured = list(group)
        point = {axis: float(measured[0][axis]) for axis in AXES[1:]}
        for row in measured:
            point[f"{row['split']}/{row['metric']}" + (f"_{row['scale']}" if row["scale"] else "")] = float(
                row["value"]
            )
        yield {"step": int(step), **point}


def _forget() -> None:
    """End W&B's own process, which still holds the id of a run that could not start."""
    import wandb

    wandb.teardown()


def open_mirror(mode: str, **arguments: Any) -> Mirror:
    """The mirror of a run: none when ``mode`` is ``disabled`` or W&B cannot start, offline when it cannot be reached.

    Either is said.
    """
    if mode == "disabled":
        return NoMirror()
    try:
        return WandbMirror(mode=mode, **arguments)
    except Exception as error:
        if mode == "online":
            where = Path(arguments["folder"]) / "wandb"
            log.warning("W&B cannot be reached (%s); this run is mirrored offline, in %s (wandb sync)", error, where)
            _forget()
            return open_mirror("offline", **arguments)
        log.warning("W&B could not start (%s); the run goes on, its records are in its own files", error)
        return NoMirror()
