"""A sign of life beside the run: ``progress.json`` with step, loss and speed, replaced every few seconds.

For ``varscale status`` only: held-out measurements are spaced evenly in log, so the records of a long run are hours
old. It is no record, and a run goes on when it cannot be written.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import lightning

from varscale.records import PROGRESS_FILE
from varscale.training.generator_task import GeneratorTask

EVERY_S = 5.0
log = logging.getLogger(__name__)


class Heartbeat(lightning.Callback):
    """Writes ``progress.json`` in the run's folder: time (Unix, s), step, steps, loss (nat/token), images/s.

    Args:
        folder: the run's folder.
        steps: planned steps of the run.
        batch: images a step.
        every_s: least seconds between two writes; reading the loss waits for the device.
    """

    def __init__(self, folder: Path, *, steps: int, batch: int, every_s: float = EVERY_S) -> None:
        self.path, self.steps, self.batch, self.every_s = folder / PROGRESS_FILE, steps, batch, every_s
        self.said = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The speed is that since the last write."""
        self.last_time, self.last_step = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write when it is time and a step was done."""
        now = time.monotonic()
        if now - self.last_time < self.every_s or trainer.global_step == self.last_step or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, GeneratorTask)
        speed = (trainer.global_step - self.last_step) * self.batch / (now - self.last_time)
        loss = None if pl_module.last_loss is None else float(pl_module.last_loss)
        values = {"step": trainer.global_step, "steps": self.steps, "loss": loss, "images_per_s": speed}
        self.last_time, self.last_step = now, trainer.global_step
        temporary = self.path.with_suffix(".tmp")
        try:  # without fsync: after a crash of the machine nobody needs it
            temporary.write_text(json.dumps({"time": time.time(), **values}))
            os.replace(temporary, self.path)
        except OSError as error:
            if not self.said:
                log.warning("%s cannot be written (%s); the run goes on", self.path, error)
            self.said = True
