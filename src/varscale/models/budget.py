"""Memory of a training step, before anything is spent: counted on tensors without storage, not by a rule of thumb.

Shapes: B batch, L tokens, V codebook size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from varscale.models.var import VAR
from varscale.nn.attention import written_out
from varscale.tokenizers.tokens import TokenBatch

BYTES_PER_PARAMETER = 16  # float32 weight, gradient and two AdamW moments


@dataclass(frozen=True)
class StepMemory:
    """Bytes a training step needs: parameters with gradients and optimiser, and what backward keeps of forward."""

    parameters: int
    activations: int

    @property
    def total(self) -> int:
        """Bytes, without the framework and allocator overhead."""
        return self.parameters + self.activations


def step_memory(model: VAR, batch: int, *, dtype: torch.dtype, device_type: str) -> StepMemory:
    """Count what autograd saves in a forward pass of ``batch`` images.

    Args:
        model: on the meta device; moved to storage-free CPU tensors in place, whose fused attention saves what a GPU's
            does. With ``checkpoint_blocks`` the inputs of all blocks and the inside of one are counted.
        dtype: arithmetic of training; below float32 the weights' copies of autocast are counted too.
        device_type: ``cpu`` or ``cuda``, which decides how attention is computed.
    """
    parameters = sum(p.numel() for p in model.parameters())
    L, n_0 = model.schedule.num_tokens, model.schedule.tokens_per_scale[0]

    def saved() -> int:
        """Bytes that autograd saves, of a checkpointed block its input alone."""
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)  # the reference keeps the address taken
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.loss(TokenBatch(ids, labels, inputs))
        sizes = [(t.untyped_storage().nbytes(), t.is_floating_point()) for a, t in kept.items() if a not in own]
        # Counted in float32; what is floating point is kept in the arithmetic of training.
        return sum(size * dtype.itemsize // 4 if floating else size for size, floating in sizes)

    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        own = {p.untyped_storage()._cdata for p in model.parameters()}
        ids = torch.empty(batch, L, dtype=torch.int64)
        labels = torch.empty(batch, dtype=torch.int64)
        inputs = torch.empty(batch, L - n_0, model.latent_channels)
        checkpointed, model.checkpoint_blocks = model.checkpoint_blocks, False
        activations = saved()
        if written_out(device_type, dtype):  # keeps the probabilities that fused attention computes again
            activations += batch * model.heads * model.depth * model.schedule.attended_pairs * dtype.itemsize
        if checkpointed:
            model.checkpoint_blocks = True
            outside = saved()  # the inputs of the blocks among it
            activations = outside + (activations - outside) // model.depth
    copies = 0 if dtype == torch.float32 else parameters * dtype.itemsize
    return StepMemory(parameters * BYTES_PER_PARAMETER + copies, activations)
