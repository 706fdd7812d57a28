"""The recorder: keeps a run's ``run.json`` and ``curve.csv`` while Lightning trains, and mirrors them.

Held-out loss is measured at steps spaced evenly in log, because a frontier is read off curves in log compute.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from varscale.evaluation.heldout import HeldOut
from varscale.models.storage import save_weights
from varscale.records import CurveWriter, Run, Status, write_run
from varscale.training.generator_task import DivergedError, GeneratorTask
from varscale.training.mirror import Mirror
from varscale.training.progressive import StageCost, spent

log = logging.getLogger(__name__)


def evaluation_steps(steps: int, count: int, first_share: float = 0.04) -> tuple[int, ...]:
    """At most ``count`` distinct steps from ``first_share`` of the run to its end, evenly spaced in log."""
    if steps < 1 or count < 1:
        raise ValueError(f"cannot place {count} evaluations in {steps} steps; both must be at least 1")
    points = np.geomspace(max(1.0, first_share * steps), steps, count)
    return tuple(sorted({*np.rint(points).astype(int).tolist(), steps}))


def peak_memory_bytes(device: torch.device) -> float:
    """Peak memory of the device, or on a CPU of this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else 1024 * peak)


class Recorder(lightning.Callback):
    """Writes the records of one run.

    Args:
        folder: the run's folder.
        run: its row, status ``running``.
        costs: tokens and training FLOPs an image (by ``run.flops_rule``) in every stage of the run.
        train_images: images in the training split, None when it never repeats.
        evaluate: measures the held-out loss of the task's model.
        steps_to_evaluate: when, counted in steps done.
        matrix_peak_flops: measured peak of the device, FLOP/s, for the run's ``mfu``.
    """

    def __init__(
        self,
        folder: Path,
        run: Run,
        *,
        costs: tuple[StageCost, ...],
        train_images: int | None,
        evaluate: Callable[[GeneratorTask], HeldOut],
        steps_to_evaluate: tuple[int, ...],
        mirror: Mirror,
        matrix_peak_flops: float | None = None,
    ):
        self.folder, self.run, self.mirror = folder, run, mirror
        self.costs, self.train_images = costs, train_images
        self.evaluate, self.steps_to_evaluate = evaluate, frozenset(steps_to_evaluate)
        self.matrix_peak_flops = matrix_peak_flops
        self.wall_before_s = self.train_before_s = 0.0
        self.evaluating_s = 0.0
        self.loss_sum: torch.Tensor | None = None
        self.loss_count = 0
        self.first_step = 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to write the same rows."""
        total = None if self.loss_sum is None else float(self.loss_sum)
        return {"loss_sum": total, "loss_count": self.loss_count, "wall_s": self.wall_s, "training_s": self.training_s}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the window of the training loss and the clock."""
        total = state_dict["loss_sum"]
        self.loss_sum = None if total is None else torch.tensor(total, dtype=torch.float64)
        self.loss_count = state_dict["loss_count"]
        self.wall_before_s, self.train_before_s = state_dict["wall_s"], state_dict["training_s"]

    @property
    def wall_s(self) -> float:
        """Wall seconds of the run, resumptions added up."""
        return self.wall_before_s + time.perf_counter() - self.started

    @property
    def training_s(self) -> float:
        """Wall seconds without the held-out measurements."""
        return self.train_before_s + time.perf_counter() - self.started - self.evaluating_s

    def progress(self, step: int) -> dict[str, float]:
        """The axes of a curve after ``step`` steps."""
        tokens, flops = spent(self.costs, step, self.run.batch_images)
        return {"images_seen": float(step * self.run.batch_images), "tokens_seen": tokens, "flops": flops}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the record of a running run; drop the rows of the curve after the step it starts from."""
        self.started = time.perf_counter()
        self.first_step = trainer.global_step
        self.curve = CurveWriter(self.folder, self.run.run_id, keep=lambda row: int(row["step"]) <= trainer.global_step)
        self.update(trainer, "running")
        if self.first_step in self.steps_to_evaluate and self.curve.last_step < self.first_step:
            assert isinstance(pl_module, GeneratorTask)
            self.measure(trainer, pl_module)  # interrupted between the step and its measurement

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up the training loss over all tokens; at the chosen steps measure and write."""
        assert isinstance(pl_module, GeneratorTask)
        if pl_module.last_loss is not None:
            loss = pl_module.last_loss.double()
            self.loss_sum = loss if self.loss_sum is None else self.loss_sum + loss
            self.loss_count += 1
        if trainer.global_step in self.steps_to_evaluate and self.curve.last_step < trainer.global_step:
            self.measure(trainer, pl_module)

    def measure(self, trainer: lightning.Trainer, task: GeneratorTask) -> None:
        """Measure the held-out loss, append it and the mean training loss since the last time.

        There is no training loss over all tokens where no step has trained all scales since.
        """
        started = time.perf_counter()
        step, axes = trainer.global_step, self.progress(trainer.global_step)
        train_loss = None if self.loss_sum is None else float(self.loss_sum) / self.loss_count
        if train_loss is not None and not np.isfinite(train_loss):
            raise DivergedError(
                f"the training loss is {train_loss} before step {step}; lower optim.lr ({task.lr_peak:.3g})"
            )
        task.eval()
        held_out = self.evaluate(task)
        task.train()
        trained = [] if train_loss is None else [("nats_per_token_avg", None, train_loss)]
        measured = {"train": trained, "val": held_out.curve_values()}
        self.curve.append(step=step, **axes, values=measured)
        shown = {f"val/{name}" + ("" if k is None else f"_{k}"): v for name, k, v in held_out.curve_values()}
        shown |= {f"train/{name}": value for name, _, value in trained}
        self.mirror.log({"step": step, **axes, **shown})
        self.loss_sum, self.loss_count = None, 0
        self.run = self.run.replace(
            val_nats_per_token_avg=held_out.nats_avg,
            val_nats_per_token_last=held_out.nats_last,
            val_error_avg=held_out.error_avg,
            val_error_last=held_out.error_last,
            val_sem=held_out.sem,
            val_images=float(held_out.images),
        )
        self.evaluating_s += time.perf_counter() - started
        self.update(trainer, "running")

    def update(self, trainer: lightning.Trainer, status: Status) -> None:
        """Replace ``run.json`` with what is known now."""
        axes = self.progress(trainer.global_step)
        images = axes["images_seen"]
        done = axes["flops"] - self.progress(self.first_step)["flops"]
        seconds = self.training_s - self.train_before_s
        mfu = None
        if self.matrix_peak_flops and done and seconds > 0:
            mfu = done / seconds / self.matrix_peak_flops
        self.run = self.run.replace(
            status=status,
            flops_train=axes["flops"],
            images_seen=images,
            unique_images=images if self.train_images is None else min(images, float(self.train_images)),
            tokens_seen=axes["tokens_seen"],
            wall_s=self.wall_s,
            mfu=mfu,
            peak_mem_bytes=peak_memory_bytes(trainer.strategy.root_device),
        )
        write_run(self.folder, self.run)

    def close(self, trainer: lightning.Trainer, status: Status) -> None:
        """Write the last state of the record and close the mirror."""
        self.update(trainer, status)
        self.mirror.finish(self.run.to_dict(), failed=status in ("failed", "diverged"))

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Store the weights, then say that the run is finished; ended early by Lightning, it is stopped."""
        finished = trainer.global_step >= self.run.steps
        if finished:
            assert isinstance(pl_module, GeneratorTask)
            save_weights(self.folder, pl_module.model)
        self.close(trainer, "finished" if finished else "stopped")

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Interrupted, diverged or failed: say which."""
        if not hasattr(self, "curve"):
            return  # failed before training began
        stopped = isinstance(exception, KeyboardInterrupt | SIGTERMException)
        self.close(trainer, "stopped" if stopped else "diverged" if isinstance(exception, DivergedError) else "failed")
