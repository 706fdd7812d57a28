"""The closed form of parameters and FLOPs against what is counted on the modules."""

from __future__ import annotations

import pytest
import torch

from varscale.codes import CodeSpec
from varscale.models.closed_form import ClosedForm
from varscale.models.counting import count_parameters, train_flops_per_image
from varscale.models.shape import Shape, depth_rule, ladder_rule
from varscale.models.var import VAR
from varscale.schedule import VAR_256, ScaleSchedule

SMALL = ScaleSchedule.square(1, 2, 3, 4, 6, 8)


@pytest.mark.parametrize(
    ("shape", "schedule", "vocabulary", "channels", "shared", "l2_norm"),
    [
        (ladder_rule(8), SMALL, 256, 8, False, True),
        (ladder_rule(48, depth=3), SMALL, 512, 12, False, True),
        (ladder_rule(32), SMALL, 256, 8, True, False),
        (depth_rule(6), VAR_256, 4096, 32, False, True),
        (depth_rule(30), VAR_256, 4096, 32, True, True),
    ],
    ids=str,
)
def test_closed_form_is_what_is_counted(
    shape: Shape, schedule: ScaleSchedule, vocabulary: int, channels: int, shared: bool, l2_norm: bool
) -> None:
    with torch.device("meta"):
        model = VAR(
            shape, schedule=schedule, code=CodeSpec.index(vocabulary), latent_channels=channels, num_classes=10,
            shared_adaln=shared, l2_norm=l2_norm,
        )  # fmt: skip
    form = ClosedForm(shape, schedule, vocabulary, channels, shared_adaln=shared, l2_norm=l2_norm)
    assert form.params_nonembed == count_parameters(model).params_nonembed
    for rule in ("dense", "blocksparse", "6nd", "forward_macs"):
        assert form.train_flops_per_image(rule) == train_flops_per_image(model, rule)
