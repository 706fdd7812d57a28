"""A batch of token maps, what a cache yields and a generative model is trained on.

Shapes: B batch, L all tokens, N tokens after the first scale, C code channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenBatch:
    """Token maps of B images with what teacher forcing needs.

    ids_BL: int64 token ids, scale after scale, row-major. labels_B: int64 classes. inputs_BNC: float32 inputs of scales
    1..K-1, ``pyramid.inputs(ids)``, or None where they are still to be computed.
    """

    ids_BL: Tensor
    labels_B: Tensor
    inputs_BNC: Tensor | None

    def to(self, device: torch.device | str) -> TokenBatch:
        """The batch on another device."""
        inputs = None if self.inputs_BNC is None else self.inputs_BNC.to(device, non_blocking=True)
        return TokenBatch(
            self.ids_BL.to(device, non_blocking=True), self.labels_B.to(device, non_blocking=True), inputs
        )

    def pin_memory(self) -> TokenBatch:
        """The batch in page-locked memory; the DataLoader calls this."""
        inputs = None if self.inputs_BNC is None else self.inputs_BNC.pin_memory()
        return TokenBatch(self.ids_BL.pin_memory(), self.labels_B.pin_memory(), inputs)
