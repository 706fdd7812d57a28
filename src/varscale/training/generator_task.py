"""The Lightning task of stage 2: tokenizer and transformer in one module, trained from images or from cached tokens.

From images, the frozen tokenizer encodes on the fly; from the cache, only its pyramid is needed. The loss is the same.
Everything random in a step (label drop, drop path) and the scales it trains are functions of (seed, step), so that a
resumed run continues exactly.
"""

from __future__ import annotations

from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

from varscale.data.counter import counter_hash
from varscale.data.loader import Share
from varscale.data.source import ImageBatch
from varscale.models.var import VAR
from varscale.tokenizers.protocol import Tokenizer
from varscale.tokenizers.tokens import TokenBatch
from varscale.training.averages import PowerAverage
from varscale.training.device import seed_device
from varscale.training.health import READ_EVERY, Health
from varscale.training.optim import Optimisation, build_adamw, clip_gradients
from varscale.training.progressive import Progressive, coarsest_scales, stage_at, stages_of
from varscale.training.strategy import Sharded, shard

TOKENIZER_PREFIX = "tokenizer."
AVERAGE_PREFIX = "average."


def step_seed(seed: int, step: int) -> int:
    """One 63-bit seed for everything random in a training step."""
    return int(counter_hash(seed, step)[0] >> np.uint64(1))


class GeneratorTask(lightning.LightningModule):
    """Trains ``model`` on the token maps of the frozen ``tokenizer``.

    Args:
        optim: hyper-parameters.
        steps: length of the run, which the learning-rate schedule needs.
        batch: global batch, images.
        label_drop: probability that a training label becomes the null class.
        progressive: which scales are trained when; None for all of them throughout. A measurement always takes all.
        average_gamma: exponent of a power-law average of the weights (``PowerAverage``); None for no average.

    ``last_loss`` is the training loss of the last batch, None in a stage that trains the coarsest scales only: it is no
    mean over all L tokens then.
    """

    last_loss: Tensor | None

    def __init__(
        self,
        model: VAR,
        tokenizer: Tokenizer,
        *,
        optim: Optimisation,
        steps: int,
        batch: int,
        seed: int,
        label_drop: float = 0.1,
        progressive: Progressive | None = None,
        average_gamma: float | None = None,
    ):
        super().__init__()
        if not 0 <= label_drop < 1:
            raise ValueError(f"train.label_drop is {label_drop}; it is a probability from 0 to below 1")
        self.model = model
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        self.optim, self.steps, self.seed, self.label_drop = optim, steps, seed, label_drop
        self.lr_peak = optim.lr_peak(width=model.width, batch=batch)
        self.stages = stages_of(progressive, optim, steps=steps, num_scales=model.schedule.num_scales)
        self.average = None if average_gamma is None else PowerAverage(model, average_gamma)
        self.health = Health(f"optim.lr ({self.lr_peak:.3g})")

    @property
    def evaluated(self) -> VAR:
        """The model that the run stands for: the average of the weights where there is one."""
        return self.model if self.average is None else self.average.module  # type: ignore[return-value]

    @property
    def share(self) -> Share:
        """What this process trains of each batch."""
        trainer = self.trainer
        return Share(trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches)

    def configure_model(self) -> None:
        """Where the strategy shards, every model is divided among the devices before the optimiser sees it."""
        if isinstance(self.trainer.strategy, Sharded):
            mesh = self.trainer.strategy.device_mesh["data_parallel"]
            shard(self.model, mesh)
            if self.average is not None:
                shard(self.evaluated, mesh)

    @torch.no_grad()
    def tokens(self, batch: ImageBatch | TokenBatch) -> TokenBatch:
        """The token maps of a batch and their teacher-forcing input, encoded here when the batch holds images."""
        if isinstance(batch, TokenBatch):
            if batch.inputs_BNC is not None:
                return batch
            ids_BL, labels_B = batch.ids_BL, batch.labels_B
        else:
            ids_BL, labels_B = self.tokenizer.encode(batch.pixels), batch.labels
        return TokenBatch(ids_BL, labels_B, self.tokenizer.pyramid.inputs(ids_BL))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Batches are frozen dataclasses of tensors."""
        return batch.to(device) if isinstance(batch, TokenBatch) else batch.to(device, non_blocking=True)

    def training_step(self, batch: ImageBatch | TokenBatch, batch_idx: int) -> Tensor:
        """Mean nats a token over all L tokens of the batch; in a stage of fewer scales their share of it."""
        seed_device(self.device, step_seed(self.seed, self.global_step))
        stage = stage_at(self.stages, self.global_step)
        tokens = coarsest_scales(self.tokens(batch), self.model.schedule, stage.scales)
        scales = self.model.loss(tokens, label_drop=self.label_drop, part=self.share.part(batch_idx))
        loss = scales.per_token_avg_B.mean()
        if (weight := stage.newest_weight(self.global_step)) < 1.0:
            newest_B = scales.nats_BK[:, -1] / self.model.schedule.num_tokens
            loss = loss - (1.0 - weight) * newest_B.mean()
        whole = stage.scales == self.model.schedule.num_scales
        self.last_loss = loss.detach() if whole else None
        self.health.loss(self.global_step, loss, counted=whole)
        return loss

    def optimizer_step(self, *arguments: Any, **settings: Any) -> None:
        """The optimiser's step, then the average's."""
        super().optimizer_step(*arguments, **settings)
        if self.average is not None:
            self.average.update(self.model, self.global_step + 1)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look at the losses and gradients of the last steps now and then. Raises ``DivergedError``."""
        if (batch_idx + 1) % self.share.passes == 0 and self.global_step % READ_EVERY == 0:
            self.health.read()

    def train(self, mode: bool = True) -> GeneratorTask:
        """The tokenizer stays in evaluation mode."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def configure_optimizers(self) -> Any:
        """AdamW with one scheduler step a training step."""
        # A fused optimiser unscales fp16 gradients in its own step, after they have been clipped.
        fused = self.trainer.precision != "16-mixed"
        self.health.scaled = not fused
        optimizer, scheduler = build_adamw(self.model, self.optim, lr_peak=self.lr_peak, steps=self.steps, fused=fused)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """The task's own limit: Lightning refuses to clip for a fused optimiser, even where nothing is scaled."""
        self.health.gradient(self.global_step, clip_gradients(self.model.parameters(), self.optim.clip))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The frozen tokenizer is stored once, beside the run, not in every checkpoint; an unhealthy state never."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith(TOKENIZER_PREFIX)}
        checkpoint["health"] = self.health.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the frozen tokenizer back, so that loading stays strict."""
        if "health" in checkpoint:  # not in a trunk's
            self.health.load_state_dict(checkpoint["health"])
        # The part of a batch follows from the number of batches, and a step may have had more or fewer of them before.
        batches = checkpoint["global_step"] * self.share.passes
        for counter in ("total", "current"):
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"][counter]
            progress.update(dict.fromkeys(progress, batches))
        own = {k: v for k, v in self.state_dict().items() if k.startswith(TOKENIZER_PREFIX)}
        state = checkpoint["state_dict"]
        if self.average is None:  # a branch may leave its trunk's average behind
            state = {k: v for k, v in state.items() if not k.startswith(AVERAGE_PREFIX)}
        checkpoint["state_dict"] = {**state, **own}
