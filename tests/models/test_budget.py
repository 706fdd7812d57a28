"""Step memory: what the parameters need is exact, activations grow with the batch, bf16 needs less than fp32."""

from __future__ import annotations

import pytest
import torch

from varscale.codes import CodeSpec
from varscale.models.budget import step_memory
from varscale.models.shape import ladder_rule
from varscale.models.var import VAR
from varscale.schedule import ScaleSchedule
from varscale.tokenizers.tokens import TokenBatch

SCHEDULE = ScaleSchedule.square(1, 2, 4, 8)


def model(device: str = "meta", depth: int = 2) -> VAR:
    with torch.device(device):
        return VAR(
            ladder_rule(64, depth), schedule=SCHEDULE, code=CodeSpec.index(256), latent_channels=8, num_classes=10
        )  # fmt: skip


def test_parameters_gradients_and_moments() -> None:
    counted = step_memory(model(), 2, dtype=torch.float32, device_type="cpu")
    assert counted.parameters == 16 * sum(p.numel() for p in model().parameters())
    assert counted.total == counted.parameters + counted.activations


def test_activations_grow_with_the_batch_and_shrink_with_bf16() -> None:
    small, large = (
        step_memory(model(), batch, dtype=torch.float32, device_type="cuda").activations for batch in (4, 8)
    )
    assert large == pytest.approx(2 * small, rel=0.05)
    assert step_memory(model(), 8, dtype=torch.bfloat16, device_type="cuda").activations < 0.75 * large


def test_counts_what_autograd_really_saves_on_a_cpu() -> None:
    real, batch = model("cpu"), 8
    own = {p.untyped_storage().data_ptr() for p in real.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    L, n_0 = SCHEDULE.num_tokens, SCHEDULE.tokens_per_scale[0]
    tokens = TokenBatch(
        torch.zeros(batch, L, dtype=torch.int64), torch.zeros(batch, dtype=torch.int64), torch.zeros(batch, L - n_0, 8)
    )
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = real.loss(tokens)
    measured = sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in own)
    counted = step_memory(model(), batch, dtype=torch.float32, device_type="cpu").activations
    assert loss.nats_BK.shape == (batch, 4)
    assert counted == pytest.approx(measured, rel=0.1)


def test_checkpointed_blocks_keep_their_inputs_and_the_inside_of_one() -> None:
    counted = []
    for depth in (2, 8):
        checkpointed = model(depth=depth)
        checkpointed.checkpoint_blocks = True
        counted.append(step_memory(checkpointed, 8, dtype=torch.bfloat16, device_type="cuda").activations)
    inputs = 8 * SCHEDULE.num_tokens * 64 * 2
    assert counted[1] - counted[0] == pytest.approx(6 * inputs, rel=0.01)
    assert counted[1] < step_memory(model(depth=8), 8, dtype=torch.bfloat16, device_type="cuda").activations / 3
