"""Cross-entropy of many logits on a CPU: a few rows at a time, and the gradient in the place of the logits.

torch writes the log-probabilities, then a gradient of zeros with one entry a row, then the gradient of the logits, each
as large as the logits (45 MB for four images of 680 tokens and 4,096 codes). Here only the logits exist, and a few rows
at a time stay in the processor's cache: a float32 training step of d = 4 and 6 with four images takes 4 and 2 % less.
Logits of bf16 are summed up in float32, so the loss has its precision.
Shapes: R rows, V codebook size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

MINIMUM = 2**22  # logits; below it the maps fit the processor's cache and torch's own is as fast
CHUNK = 2**18  # logits at a time: 1 MiB


class ChunkedCrossEntropy(torch.autograd.Function):
    """-log softmax(logits)[ids]; backward overwrites the logits, so it can be called once."""

    @staticmethod
    def forward(ctx: Any, logits_RV: Tensor, ids_R: Tensor) -> Tensor:
        rows = max(1, CHUNK // logits_RV.shape[1])
        normaliser_R = torch.cat([part.float().logsumexp(-1) for part in logits_RV.split(rows)])
        ctx.rows = rows
        ctx.save_for_backward(logits_RV, ids_R, normaliser_R)
        return normaliser_R - logits_RV.gather(1, ids_R[:, None]).squeeze(1).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_R: Tensor) -> tuple[Tensor, None]:
        logits_RV, ids_R, normaliser_R = ctx.saved_tensors  # raises if they have been overwritten
        parts = (x.split(ctx.rows) for x in (logits_RV, normaliser_R[:, None], grad_R[:, None]))
        for logits, normaliser, grad in zip(*parts, strict=True):
            logits.copy_((logits - normaliser).exp_().mul_(grad))
        # Not scatter_add_: in bf16 it copies all logits to float32 and back, ten times the time of this backward.
        logits_RV[torch.arange(len(ids_R)), ids_R] -= grad_R.to(logits_RV.dtype)
        return logits_RV, None


def cross_entropy(logits_RV: Tensor, ids_R: Tensor) -> Tensor:
    """Nats of each row, (R,) float32. Where a gradient is asked for, the logits must be used for nothing else later."""
    if logits_RV.requires_grad and logits_RV.device.type == "cpu" and logits_RV.numel() >= MINIMUM:
        nats_R: Tensor = ChunkedCrossEntropy.apply(logits_RV, ids_R)
        return nats_R
    return F.cross_entropy(logits_RV, ids_R, reduction="none").float()
