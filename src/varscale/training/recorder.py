"""The recorder: keeps a run's ``run.json`` and ``curve.csv`` while Lightning trains, and mirrors them.

Held-out loss is measured at steps spaced evenly in log, because a frontier is read off curves in log compute. Rows of
split ``val`` are of the weights that the run stands for, the average where there is one; ``val_raw`` are then those of
the raw weights. Rows of split ``train`` are of the steps since the last row: loss, health (``health.py``) and speed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from lightning.pytorch.utilities.exceptions import SIGTERMException

from varscale.evaluation.heldout import HeldOut
from varscale.models.storage import save_weights
from varscale.models.var import VAR
from varscale.records import RUN_FILE, CurveWriter, RecordError, Run, Status, read_curve, write_run
from varscale.training.device import peak_memory_bytes
from varscale.training.disk import Disk
from varscale.training.generator_task import GeneratorTask
from varscale.training.health import DivergedError
from varscale.training.mirror import Mirror
from varscale.training.progressive import StageCost, spent
from varscale.training.shards import whole_weights

log = logging.getLogger(__name__)


def evaluation_steps(steps: int, count: int, first_share: float = 0.04) -> tuple[int, ...]:
    """At most ``count`` distinct steps from ``first_share`` of the run to its end, evenly spaced in log."""
    if steps < 1 or count < 1:
        raise ValueError(f"cannot place {count} evaluations in {steps} steps; both must be at least 1")
    points = np.geomspace(max(1.0, first_share * steps), steps, count)
    return tuple(sorted({*np.rint(points).astype(int).tolist(), steps}))


class Recorder(lightning.Callback):
    """Writes the records of one run.

    Args:
        folder: the run's folder.
        run: its row, status ``running``.
        costs: tokens and training FLOPs an image (by ``run.flops_rule``) in every stage of the run.
        train_images: images in the training split, None when it never repeats.
        evaluate: measures the held-out loss of a model on the tokens of the task.
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
        evaluate: Callable[[GeneratorTask, VAR], HeldOut],
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
        self.first_step = 0
        self.rows_before: int | None = None
        self.disk = Disk(folder)
        self.unwritten: list[dict[str, Any]] = []  # rows of the curve

    def state_dict(self) -> dict[str, Any]:
        """The clock and the length of the curve."""
        rows = self.curve.rows if self.writes else None  # the checkpoint holds what rank 0 says
        return {"wall_s": self.wall_s, "training_s": self.training_s, "curve_rows": rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue them."""
        self.wall_before_s, self.train_before_s = state_dict["wall_s"], state_dict["training_s"]
        self.rows_before = state_dict["curve_rows"]

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
        """Write the record of a running run; drop the rows of the curve after the step it starts from.

        Raises ``RecordError`` when the curve lacks rows that the checkpoint knows of.
        """
        self.started = self.row_at = time.perf_counter()
        self.first_step = self.row_step = trainer.global_step
        self.writes = trainer.is_global_zero
        if not self.writes:
            return
        self.curve = CurveWriter(self.folder, self.run.run_id, keep=lambda row: int(row["step"]) <= trainer.global_step)
        if self.rows_before is not None and self.curve.rows != self.rows_before:
            raise RecordError(
                f"{self.curve.path} has {self.curve.rows} rows up to step {self.first_step}, but {self.rows_before} "
                f"had been written when its checkpoint was; bring the file back, or remove {self.folder} to start over"
            )
        self.mirror.catch_up(read_curve(self.curve.path))
        self.update(trainer, "running")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the chosen steps measure and write."""
        assert isinstance(pl_module, GeneratorTask)
        if trainer.global_step in self.steps_to_evaluate and self.row_step < trainer.global_step:
            self.measure(trainer, pl_module)

    def measure(self, trainer: lightning.Trainer, task: GeneratorTask) -> None:
        """Measure the held-out loss; append it, the mean training loss and the health since the last row.

        There is no training loss over all tokens where no step has trained all scales since. Raises ``DivergedError``
        when a number is not finite.
        """
        started = time.perf_counter()
        step, axes = trainer.global_step, self.progress(trainer.global_step)
        train_loss, trained = task.health.row()
        if train_loss is not None:
            trained.insert(0, ("nats_per_token_avg", None, train_loss))
        images = (step - self.row_step) * self.run.batch_images
        trained.append(("images_per_s", None, images / (started - self.row_at)))
        task.eval()
        held_out = self.evaluate(task, task.evaluated)
        measured = {"train": trained, "val": held_out.curve_values()}
        if task.average is not None:
            measured["val_raw"] = self.evaluate(task, task.model).curve_values()
        task.train()
        # Looked at by all processes: the curve, which refuses such a value, is written by the first one only.
        for split, name, value in ((split, name, value) for split, rows in measured.items() for name, _, value in rows):
            if not np.isfinite(value):
                raise DivergedError(
                    f"{name} ({split}) after step {step - 1} is {value}; lower {task.health.rate}",
                    **{"step": step - 1, "loss": None, "grad_norm": None},
                )
        if self.writes:
            self.unwritten.append({"step": step, **axes, "values": measured})
        self.write_rows()
        shown = {
            f"{split}/{name}" + ("" if k is None else f"_{k}"): value
            for split, values in measured.items()
            for name, k, value in values
        }
        self.mirror.log({"step": step, **axes, **shown})
        self.run = self.run.replace(
            val_nats_per_token_avg=held_out.nats_avg,
            val_nats_per_token_last=held_out.nats_last,
            val_error_avg=held_out.error_avg,
            val_error_last=held_out.error_last,
            val_sem=held_out.sem,
            val_images=float(held_out.images),
        )
        self.row_step, self.row_at = step, time.perf_counter()
        self.evaluating_s += self.row_at - started
        self.update(trainer, "running")

    def write_rows(self) -> bool:
        """Append the rows that the disk has not taken yet; whether there are none left."""
        while self.unwritten and self.disk.attempt(
            str(self.curve.path), lambda: self.curve.append(**self.unwritten[0])
        ):
            del self.unwritten[0]
        return not self.unwritten

    def update(self, trainer: lightning.Trainer, status: Status) -> None:
        """Replace ``run.json`` with what is known now; while training, a disk that refuses it is only said."""
        axes = self.progress(trainer.global_step)
        images = axes["images_seen"]
        done = axes["flops"] - self.progress(self.first_step)["flops"]
        seconds = self.training_s - self.train_before_s
        mfu = None
        if self.matrix_peak_flops and done and seconds > 0:
            mfu = done / seconds / (self.matrix_peak_flops * trainer.world_size)
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
        if not self.writes:
            return
        if status == "finished":
            write_run(self.folder, self.run)
        else:
            self.disk.attempt(str(self.folder / RUN_FILE), lambda: write_run(self.folder, self.run))

    def close(self, trainer: lightning.Trainer, status: Status) -> None:
        """Write the last state of the record and close the mirror."""
        self.update(trainer, status)
        self.mirror.finish(self.run.to_dict(), failed=status in ("failed", "diverged"))

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Store the weights, then say that the run is finished; ended early by Lightning, it is stopped.

        Raises ``OSError`` when something of a finished run cannot be written: launched again, it continues.
        """
        finished = trainer.global_step >= self.run.steps
        if finished:
            assert isinstance(pl_module, GeneratorTask)
            weights = whole_weights(pl_module.evaluated)  # of all processes: before one of them may fail
            if not self.write_rows():
                raise OSError(f"{self.curve.path} lacks its last rows; free some space and launch the run again")
            if self.writes:
                save_weights(self.folder, weights)
        self.close(trainer, "finished" if finished else "stopped")

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Interrupted, diverged or failed: say which."""
        if not hasattr(self, "writes") or self.run.status == "finished":
            return  # failed before training began, or after all was written
        self.write_rows()
        stopped = isinstance(exception, KeyboardInterrupt | SIGTERMException)
        self.close(trainer, "stopped" if stopped else "diverged" if isinstance(exception, DivergedError) else "failed")
