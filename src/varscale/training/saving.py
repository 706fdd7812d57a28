"""When a run writes its checkpoints, and how it stops: by rhythm, by the clock, when a signal asks, at its time limit.

Always between two steps: in the middle of one the weights may be new and the codebook, the average or the records old.
Neither the rhythm nor the clock changes a result.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import lightning
import torch

from varscale.training.checkpoints import Checkpoints
from varscale.training.ranks import largest

SHARE = 0.01  # of the time that checkpoints may take
LEAST_S = 10.0  # seconds between two of them
_GO_ON, _SAVE, _STOP = range(3)  # what a process wants at the start of a step; the most that one wants is done
log = logging.getLogger(__name__)


class Saving(lightning.Callback):
    """Writes the checkpoints of a run. Comes after the callbacks whose state they hold.

    The first Ctrl-C or SIGTERM is heard at the start of the next step, which writes a checkpoint and ends the run as
    interrupted; so is the time limit, when another step and a checkpoint might pass it. A second Ctrl-C is heard at
    once; other signals are not, because a scheduler and a launcher that end the same run each send one.

    Args:
        checkpoints: where they go; also the trainer's plugin.
        every_steps: steps between two; None for as often as costs at most 1 % of the time, and never within 10 s.
        started: when the limit began to run, of ``time.monotonic()``.
        limit_hours: hours until the run stops by itself; None for no limit.
        ready: whether a checkpoint may be written now: rows that the disk refused come first.
        key: the section of the configuration, for messages.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        *,
        every_steps: int | None = None,
        started: float | None = None,
        limit_hours: float | None = None,
        ready: Callable[[], bool] = lambda: True,
        key: str = "train",
    ):
        if every_steps is not None and every_steps < 1:
            raise ValueError(
                f"{key}.checkpoint_every is {every_steps}; it must be at least 1 step (null: by the clock)"
            )
        if limit_hours is not None and not limit_hours > 0:
            raise ValueError(f"{key}.time_limit is {limit_hours} hours; it must be above 0 (null: none)")
        self.checkpoints, self.every_steps, self.ready = checkpoints, every_steps, ready
        self.limit_hours, self.limit_key = limit_hours, f"{key}.time_limit"
        self.started = time.monotonic() if started is None else started
        self.saved_step = 0
        self.saved_at = self.step_at = 0.0
        self.slowest_step_s = self.slowest_save_s = self.last_save_s = 0.0
        self.interrupted = self.by_hand = False
        self.random: dict[str, torch.Tensor] = {}
        self.handlers: dict[int, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Torch's random streams, of the CPU and the device."""
        streams = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_initialized():
            streams["cuda"] = torch.cuda.get_rng_state()
        return {"random": streams}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """They are set when training starts: until then others draw."""
        self.random = state_dict["random"]

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Lightning has counted the batch of the next step as fetched; resumed, it is fetched again.

        It would be counted twice, and stage 1 would validate one step early from then on. Its count of steps for
        loggers, which are not used, depends on where a run was interrupted.
        """
        loop = checkpoint["loops"]["fit_loop"]
        progress = loop["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts["ready"] = counts["started"]
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """From here on an interruption waits for the end of the step."""
        self.saved_step = trainer.global_step
        self.saved_at = self.step_at = time.monotonic()
        if "cpu" in self.random:
            torch.set_rng_state(self.random["cpu"].cpu())
        if "cuda" in self.random and trainer.strategy.root_device.type == "cuda":
            torch.cuda.set_rng_state(self.random["cuda"].cpu())
        if threading.current_thread() is threading.main_thread():
            self.handlers = {number: signal.signal(number, self.request) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if number == signal.SIGINT and self.by_hand:
            raise KeyboardInterrupt
        self.interrupted, self.by_hand = True, self.by_hand or number == signal.SIGINT

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """At the start of a step: save when it is time, or save and stop."""
        if batch_idx % trainer.accumulate_grad_batches:
            return  # gradients of a part of the batch are in no checkpoint
        now = time.monotonic()
        self.slowest_step_s, self.step_at = max(self.slowest_step_s, now - self.step_at), now
        late = self.out_of_time(now)
        due = self.checkpoints.stays(trainer.global_step) or self.due(trainer.global_step, now)
        wish = largest(_STOP if self.interrupted or late else _SAVE if due else _GO_ON)
        if wish == _STOP:
            self.save(trainer)
            if late and not self.interrupted:
                log.warning(
                    "stopped at step %d: %s is %g hours; the same command continues",
                    *(trainer.global_step, self.limit_key, self.limit_hours),
                )
            raise KeyboardInterrupt
        if wish == _SAVE:
            self.save(trainer)
            self.step_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """No step follows the last one, and branches may start there."""
        if trainer.global_step >= trainer.max_steps and self.checkpoints.stays(trainer.global_step):
            self.save(trainer)

    def due(self, step: int, now: float) -> bool:
        """Whether it is time for a checkpoint."""
        if self.every_steps is not None:
            return step % self.every_steps == 0
        return now - self.saved_at >= max(LEAST_S, self.last_save_s / SHARE)

    def out_of_time(self, now: float) -> bool:
        """Whether another step and a checkpoint might pass the limit; twice the slowest of either is allowed for."""
        if self.limit_hours is None:
            return False
        return now - self.started + 2 * (self.slowest_step_s + self.slowest_save_s) >= 3600 * self.limit_hours

    def save(self, trainer: lightning.Trainer) -> None:
        """Write a checkpoint of the steps done, once. Raises ``DivergedError`` when their state is not healthy."""
        if trainer.global_step <= self.saved_step or largest(not self.ready()):
            return
        started = time.monotonic()
        trainer.save_checkpoint(self.checkpoints.path(trainer.global_step))
        self.saved_step, self.saved_at = trainer.global_step, time.monotonic()
        self.last_save_s = self.saved_at - started
        self.slowest_save_s = max(self.slowest_save_s, self.last_save_s)

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
