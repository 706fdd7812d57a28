"""Weights & Biases as a mirror of a run's records: grouped by sweep, with tokens and FLOPs as x axes.

``run.json`` and ``curve.csv`` are the source; a mirror that fails is said once and never stops a run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

AXES = ("step", "images_seen", "tokens_seen", "flops")
log = logging.getLogger(__name__)


class Mirror(Protocol):
    """Where a run's measurements are shown besides its own files."""

    def log(self, values: Mapping[str, float]) -> None:
        """Measurements at one point, the axes among them."""
        ...

    def finish(self, summary: Mapping[str, Any], *, failed: bool) -> None:
        """The end of the run, with the values of its record."""
        ...


class NoMirror:
    """Nothing is shown elsewhere."""

    def log(self, values: Mapping[str, float]) -> None:
        """Ignore the measurements."""

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
            settings=wandb.Settings(console="off", x_disable_meta=False, x_disable_stats=True),
        )
        for axis in AXES:
            self.run.define_metric(axis)
        # An offline resumption restarts wandb's own step, so every metric gets an axis of ours.
        for pattern in ("val/*", "train/*"):
            self.run.define_metric(pattern, step_metric="tokens_seen")

    def log(self, values: Mapping[str, float]) -> None:
        """Log one point; an error is said and swallowed."""
        try:
            self.run.log(dict(values))
        except Exception as error:
            log.warning("W&B did not take the point at step %s: %s", values.get("step"), error)

    def finish(self, summary: Mapping[str, Any], *, failed: bool) -> None:
        """Write the record's values as the summary and close the run, so that the next job gets its own."""
        try:
            self.run.summary.update({key: value for key, value in summary.items() if value is not None})
            self.run.finish(exit_code=int(failed))
        except Exception as error:
            log.warning("W&B did not close the run: %s", error)


def open_mirror(mode: str, **arguments: Any) -> Mirror:
    """The mirror of a run: none when ``mode`` is ``disabled`` or W&B cannot start, which is said."""
    if mode == "disabled":
        return NoMirror()
    try:
        return WandbMirror(mode=mode, **arguments)
    except Exception as error:
        log.warning("W&B could not start (%s); the run goes on, its records are in its own files", error)
        return NoMirror()
