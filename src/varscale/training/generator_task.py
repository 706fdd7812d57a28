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
from varscale.data.source import ImageBatch
from varscale.models.var import VAR
from varscale.tokenizers.protocol import Tokenizer
from varscale.tokenizers.tokens import TokenBatch
from varscale.training.device import seed_device
from varscale.training.optim import Optimisation, build_adamw, clip_gradients
from varscale.training.progressive import Progressive, coarsest_scales, stage_at, stages_of

TOKENIZER_PREFIX = "tokenizer."
CHECK_FINITE_EVERY = 20  # reading the loss stalls an accelerator


class DivergedError(RuntimeError):
    """The loss or its gradient is not finite."""


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
    ):
        super().__init__()
        if not 0 <= label_drop < 1:
            raise ValueError(f"train.label_drop is {label_drop}; it is a probability from 0 to below 1")
        self.model = model
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        self.optim, self.steps, self.seed, self.label_drop = optim, steps, seed, label_drop
        self.lr_peak = optim.lr_peak(width=model.width, batch=batch)
        self.stages = stages_of(progressive, optim, steps=steps, num_scales=model.schedule.num_scales)

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
        return batch.to(device)

    def training_step(self, batch: ImageBatch | TokenBatch, batch_idx: int) -> Tensor:
        """Mean nats a token over all L tokens of the batch; in a stage of fewer scales their share of it."""
        parts = self.trainer.accumulate_grad_batches
        seed_device(self.device, step_seed(self.seed, self.global_step * parts + batch_idx % parts))
        stage = stage_at(self.stages, self.global_step)
        tokens = coarsest_scales(self.tokens(batch), self.model.schedule, stage.scales)
        scales = self.model.loss(tokens, label_drop=self.label_drop)
        loss = scales.per_token_avg_B.mean()
        if (weight := stage.newest_weight(self.global_step)) < 1.0:
            newest_B = scales.nats_BK[:, -1] / self.model.schedule.num_tokens
            loss = loss - (1.0 - weight) * newest_B.mean()
        if self.global_step % CHECK_FINITE_EVERY == 0 and not torch.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss.item()} at step {self.global_step}; lower optim.lr ({self.lr_peak:.3g})"
            )
        self.last_loss = loss.detach() if stage.scales == self.model.schedule.num_scales else None
        return loss

    def train(self, mode: bool = True) -> GeneratorTask:
        """The tokenizer stays in evaluation mode."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def configure_optimizers(self) -> Any:
        """AdamW with one scheduler step a training step."""
        # A fused optimiser unscales fp16 gradients in its own step, after they have been clipped.
        fused = self.trainer.precision != "16-mixed"
        optimizer, scheduler = build_adamw(self.model, self.optim, lr_peak=self.lr_peak, steps=self.steps, fused=fused)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """The task's own limit: Lightning refuses to clip for a fused optimiser, even where nothing is scaled."""
        clip_gradients(self.model.parameters(), self.optim.clip)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The frozen tokenizer is stored once, beside the run, not in every checkpoint."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith(TOKENIZER_PREFIX)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the frozen tokenizer back, so that loading stays strict."""
        own = {k: v for k, v in self.state_dict().items() if k.startswith(TOKENIZER_PREFIX)}
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **own}
