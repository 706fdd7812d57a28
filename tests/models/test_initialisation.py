"""Initialisation as released: one spread for everything, then a factor by role; calling it again only draws again."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from varscale.codes import CodeSpec
from varscale.models.shape import ladder_rule
from varscale.models.var import VAR
from varscale.schedule import ScaleSchedule

WIDTH, DEPTH = 128, 2
SPREAD = math.sqrt(1 / (3 * WIDTH))


@pytest.mark.parametrize("shared_adaln", [False, True])
def test_spreads_by_role(shared_adaln: bool) -> None:
    torch.manual_seed(0)
    model = VAR(
        ladder_rule(WIDTH, DEPTH), schedule=ScaleSchedule.square(1, 2, 8), code=CodeSpec.index(256), latent_channels=32,
        num_classes=99, shared_adaln=shared_adaln, adaln_std=0.5, adaln_gate_std=1e-3, head_std=0.02,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    for _ in range(2):
        model.initialize(adaln_std=0.5, adaln_gate_std=1e-3, head_std=0.02)
    block = model.blocks[1]
    adaln = block.norms.offset_16D[0] if shared_adaln else block.norms.linear.weight.unflatten(0, (6, WIDTH))
    # The offsets of the shared form are drawn with 1 / sqrt(D), and the shared linear itself is not scaled.
    base = WIDTH**-0.5 if shared_adaln else SPREAD
    expected: list[tuple[Tensor, float]] = [
        (model.class_embed.weight, SPREAD), (model.position_1LD, SPREAD), (model.word_embed.weight, SPREAD),
        (block.attention.qkv.weight, SPREAD), (block.feed_forward.up.weight, SPREAD),
        (block.attention.proj.weight, SPREAD / math.sqrt(2 * DEPTH)),
        (block.feed_forward.down.weight, SPREAD / math.sqrt(2 * DEPTH)),
        (model.head.weight, 0.02 * SPREAD), (model.head_norm.weight, 0.5 * SPREAD),
        (adaln[:2], 1e-3 * base), (adaln[2:], 0.5 * base),
    ]  # fmt: skip
    if shared_adaln:
        expected.append((model.shared_norms.weight, SPREAD))
    for tensor, spread in expected:
        assert tensor.std().item() == pytest.approx(spread, rel=0.12)
        assert abs(tensor.mean().item()) < spread
    zero = [p for name, p in model.named_parameters() if name.endswith("bias")]
    assert zero and all(not p.any() for p in zero)
    assert (block.attention.log_scale_H11 == math.log(4.0)).all()
