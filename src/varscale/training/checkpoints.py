"""Checkpoints that are whole or absent: written aside, fsynced, renamed; the newest replaces the one before.

Lightning's own writer leaves a cut-off file when the process dies while writing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from varscale.records import atomic_write

LAST = "last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file and renames it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to ``path``, or leave what was there."""
        with atomic_write(Path(path)) as file:
            torch.save(checkpoint, file)


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the run in ``folder``, if it has one."""
    path = folder / LAST
    return path if path.exists() else None


def checkpoint_step(path: Path | None) -> int:
    """Steps done when the checkpoint was written; 0 without one."""
    if path is None:
        return 0
    return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def keep_last(folder: Path, every_steps: int) -> ModelCheckpoint:
    """A callback that replaces ``last.ckpt`` every ``every_steps`` steps, and when the run is interrupted."""
    return ModelCheckpoint(
        dirpath=folder,
        filename=LAST.removesuffix(".ckpt"),
        every_n_train_steps=every_steps,
        save_top_k=1,
        enable_version_counter=False,
        save_on_exception=True,
    )
