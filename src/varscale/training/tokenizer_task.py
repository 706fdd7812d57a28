"""Stage-1 training: a Lightning task around a tokenizer.

Mixed precision is the Trainer's (``precision="bf16-mixed"``): it reaches the trunk only, the quantiser and the losses
stay in float32. All state is in the checkpoint (weights, masses of the codes, optimiser, weight average, measurements),
and random choices are functions of (seed, step), so a resumed run continues exactly.
Shapes: B batch, R side of the image in px, V codebook size.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from varscale.data.source import ImageBatch
from varscale.evaluation.reconstruction import ReconstructionMeter, ReconstructionReport
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.tokenizers.losses import TokenizerLoss
from varscale.training.device import seed_device
from varscale.training.generator_task import step_seed
from varscale.training.health import READ_EVERY, Health
from varscale.training.optim import Optimisation, clip_gradients, scheduled_adamw
from varscale.training.ranks import mean_of_all

DEAD_SHARE = 0.03  # of 1 / V: below it a code is dead, where the quantiser itself states no limit
# A scale has collapsed when its perplexity is below this share of what it could be: the smaller of V and its tokens.
COLLAPSE_SHARE = 0.05

log = logging.getLogger(__name__)


class TokenizerTask(lightning.LightningModule):
    """Trains a tokenizer on ``ImageBatch``es and measures its reconstruction on the validation batches.

    Args:
        tokenizer: trained in place.
        steps: optimiser steps of the whole run; the learning rate ends there.
        optim: of AdamW; its ``lr_rule`` must be constant. Biases, norms and the codebook are never decayed.
        ema_decay: of the average of the weights, which is then what is validated; ``None`` for none.
        seed: of the restarts and the k-means start.
        reconstruction_terms: further losses of ``(reconstruction, pixels)``; see ``varscale.tokenizers.losses``.

    Attributes:
        metrics: every measurement so far, one dict a number: ``step, split, metric, scale`` (``None`` for all scales)
            and ``value``; kept in the checkpoint.
        report: the latest validation, ``None`` before the first.
    """

    def __init__(
        self,
        tokenizer: VQAutoencoder,
        *,
        steps: int,
        optim: Optimisation,
        ema_decay: float | None = None,
        seed: int = 0,
        reconstruction_terms: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"stage1.steps is {steps}; a run needs at least 1")
        if optim.lr_rule != "constant":
            raise ValueError(f"stage1.optim.lr_rule is {optim.lr_rule!r}; a tokenizer takes a constant rate")
        self.tokenizer = tokenizer
        self.steps, self.optim = steps, optim
        self.seed = seed
        self.reconstruction_terms = nn.ModuleList(reconstruction_terms)
        self.average = None
        if ema_decay is not None:
            self.average = AveragedModel(tokenizer, multi_avg_fn=get_ema_multi_avg_fn(ema_decay)).requires_grad_(False)
        self.metrics: list[dict[str, Any]] = []
        self.report: ReconstructionReport | None = None
        self.health = Health(f"stage1.optim.lr (now {optim.lr})")
        self.restarted = 0  # codes, since the last row
        self.row_at: tuple[float, int] | None = None  # when the last row was written, and at which step
        self._loss: TokenizerLoss | None = None
        self._meter: ReconstructionMeter | None = None

    @property
    def evaluated(self) -> VQAutoencoder:
        """The tokenizer that is validated and should be kept: the average of the weights where there is one."""
        return self.tokenizer if self.average is None else self.average.module

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW over two groups, and the learning rate by step."""
        codebook = self.tokenizer.pyramid.quantizer.codebook
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for parameter in self.tokenizer.parameters():
            if parameter.requires_grad:
                groups[parameter.ndim > 1 and parameter is not codebook].append(parameter)
        decays = (self.optim.weight_decay, 0.0)
        parameters = [
            {"params": group, "weight_decay": decay}
            for group, decay in zip((groups[True], groups[False]), decays, strict=True)
        ]
        optimizer, schedule = scheduled_adamw(parameters, self.optim, lr_peak=self.optim.lr, steps=self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """Loss of a batch."""
        seed_device(self.device, step_seed(self.seed, self.global_step))
        self.tokenizer.start_codebook(batch.pixels, self.seed)
        loss = self._loss = self.tokenizer.loss(batch.pixels, list(self.reconstruction_terms))
        self.health.loss(self.global_step, loss.total)
        self.log("train/loss", loss.total.detach(), prog_bar=True)
        return loss.total

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """The task's own limit: Lightning refuses to clip for a fused optimiser, even where nothing is scaled."""
        self.health.gradient(self.global_step, clip_gradients(self.tokenizer.parameters(), self.optim.clip))

    def on_train_start(self) -> None:
        """The speed of the first row counts from here."""
        self.row_at = time.perf_counter(), self.global_step

    def on_train_batch_end(self, outputs: Any, batch: ImageBatch, batch_idx: int) -> None:
        """After the optimiser's step: the codebook's own update, the weight average, the measurements.

        Raises ``DivergedError`` when a loss or a gradient of the last steps was not finite.
        """
        loss = self._loss
        assert loss is not None
        self._loss = None
        restarted = self.tokenizer.update_codebook(loss, self.seed)
        self.restarted += restarted
        if self.average is not None:
            self.average.update_parameters(self.tokenizer)
        if self.global_step % self.trainer.log_every_n_steps == 0 or self.global_step == self.steps:
            values = {"loss": loss.total, "l1": loss.l1, "l2": loss.l2, "vq": loss.vq}
            values |= {f"term_{i}": term for i, term in enumerate(loss.terms)}
            means = mean_of_all(torch.stack([value.detach().float() for value in values.values()]))
            numbers = dict(zip(values, means.tolist(), strict=True))
            _, health = self.health.row()
            numbers |= {"dead_codes": float(self.dead_codes(restarted)), "restarted": float(self.restarted)}
            numbers |= {name: value for name, _, value in health} | self.speed(
                len(batch.labels) * self.trainer.world_size
            )
            self.restarted = 0
            self.log_dict({f"train/{name}": value for name, value in numbers.items() if name != "loss"})
            for name, value in numbers.items():
                self._measured("train", name, None, value)
        elif self.global_step % READ_EVERY == 0:
            self.health.read()

    def dead_codes(self, restarted: int) -> int:
        """Codes that hardly any feature had of late: those restarted in this step, or counted where none is."""
        quantizer = self.tokenizer.pyramid.quantizer
        if quantizer.restart_below is not None:
            return restarted
        return int((quantizer.mass < DEAD_SHARE / quantizer.vocabulary).sum())

    def speed(self, images: int) -> dict[str, float]:
        """Images/s since the last row, of steps of ``images``."""
        assert self.row_at is not None
        (before, step), now = self.row_at, time.perf_counter()
        self.row_at = now, self.global_step
        return {"images_per_s": (self.global_step - step) * images / (now - before)}

    def on_validation_epoch_start(self) -> None:
        """A new meter, of healthy weights."""
        self.health.read()
        self._meter = ReconstructionMeter(self.evaluated.eval())

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Reconstruct a batch after each scale."""
        assert self._meter is not None
        self._meter.update(batch.pixels)

    def on_validation_epoch_end(self) -> None:
        """Log the report, and say in words which scale has collapsed."""
        assert self._meter is not None
        report = self.report = self._meter.report()
        self._meter = None
        for s in report.scales:
            self._validated("psnr_db", s.scale, s.psnr_db)
            self._validated("usage", s.scale, s.usage)
            self._validated("perplexity", s.scale, s.perplexity)
        self._validated("psnr_db", None, report.scales[-1].psnr_db)
        self._validated("unquantised_psnr_db", None, report.unquantised_psnr_db)
        self._validated("usage", None, report.usage)
        self._validated("perplexity", None, report.perplexity)
        if not self.trainer.sanity_checking:
            for sentence in collapsed_scales(report, self.tokenizer.code.size):
                log.warning(sentence)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The measurements travel with the weights. Raises ``DivergedError`` when the state is not healthy."""
        checkpoint["health"] = self.health.state_dict()
        checkpoint["tokenizer_metrics"], checkpoint["restarted"] = self.metrics, self.restarted

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The measurements up to the checkpoint."""
        self.health.load_state_dict(checkpoint["health"])
        self.metrics, self.restarted = list(checkpoint["tokenizer_metrics"]), checkpoint["restarted"]

    def _validated(self, metric: str, scale: int | None, value: float) -> None:
        # Every rank holds the same sums already.
        name = f"val/{metric}" if scale is None else f"val/{metric}/{scale}"
        self.log(name, value, prog_bar=name == "val/psnr_db")
        if not self.trainer.sanity_checking:
            self._measured("val", metric, scale, value)

    def _measured(self, split: str, metric: str, scale: int | None, value: float) -> None:
        row = {"step": self.global_step, "split": split, "metric": metric, "scale": scale, "value": value}
        self.metrics.append(row)


def collapsed_scales(report: ReconstructionReport, vocabulary: int) -> list[str]:
    """One sentence for each scale whose perplexity is below 5 % of the smaller of V and its tokens."""
    sentences = []
    for s in report.scales:
        reachable = min(vocabulary, s.tokens)
        if s.perplexity < COLLAPSE_SHARE * reachable:
            sentences.append(
                f"scale {s.scale} ({s.side} x {s.side}) has collapsed: its {s.tokens} tokens use {s.usage:.1%} of the "
                f"{vocabulary} codes with a perplexity of {s.perplexity:.1f}, below {COLLAPSE_SHARE:.0%} of "
                f"{reachable}; train longer, lower lr, raise restart_below or shrink the vocabulary"
            )
    return sentences
