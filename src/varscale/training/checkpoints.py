"""Checkpoints that are whole or absent: written aside, fsynced, renamed; the newest replaces the one before.

Lightning's own writer leaves a cut-off file when the process dies while writing.
"""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

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


class KeepLast(lightning.Callback):
    """Replaces ``last.ckpt`` every so often, and when the run is interrupted; always between two steps.

    In the middle of a step the weights may be new and the codebook or the records old, so nothing is written there: the
    first Ctrl-C or SIGTERM is heard at the start of the next step, a second one at once.

    Args:
        folder: the run's folder.
        every_steps: steps between checkpoints.
    """

    def __init__(self, folder: Path, every_steps: int):
        if every_steps < 1:
            raise ValueError(f"checkpoint_every is {every_steps}; it must be at least 1 step")
        self.path, self.every_steps = folder / LAST, every_steps
        self.saved_step = 0
        self.interrupted = False
        self.handlers: dict[int, Any] = {}

    def save(self, trainer: lightning.Trainer) -> None:
        """Write a checkpoint of the steps done, once."""
        if trainer.global_step > self.saved_step:
            trainer.save_checkpoint(self.path)
            self.saved_step = trainer.global_step

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """From here on an interruption waits for the end of the step."""
        self.saved_step = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            self.handlers = {number: signal.signal(number, self.request) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Save when a step of the rhythm is done, or stop after the step in which an interruption came."""
        if self.interrupted:
            self.save(trainer)
            raise KeyboardInterrupt
        if trainer.global_step % self.every_steps == 0:
            self.save(trainer)

    def release(self) -> None:
        """Give the signals back."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Interruptions are immediate again."""
        self.release()

    def on_exception(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Interruptions are immediate again."""
        self.release()
