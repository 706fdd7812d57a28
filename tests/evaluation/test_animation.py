"""The animation: one frame a scale, in order, looping, the last one held; from ids as the tokenizer decodes them."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from varscale.evaluation.animation import (
    FRAME_MS,
    HEADING_PX,
    LAST_FRAME_MS,
    animation_bytes,
    animation_frames,
    decode_stages,
)
from varscale.evaluation.pictures import CELL_PX, GAP_PX
from varscale.schedule import ScaleSchedule
from varscale.tokenizers.autoencoder import VQAutoencoder

SCHEDULE = ScaleSchedule.square(1, 2, 4)


def test_a_frame_is_a_grid_after_a_scale() -> None:
    stages = [torch.full((3, 3, CELL_PX, CELL_PX), value) for value in (-1.0, 0.0, 1.0)]
    frames = animation_frames(stages, SCHEDULE, columns=3)
    assert [frame.size for frame in frames] == [(3 * CELL_PX + 2 * GAP_PX, CELL_PX + HEADING_PX)] * 3
    assert [frame.getpixel((5, HEADING_PX + 5))[0] for frame in frames] == [0, 128, 255]
    headings = [np.asarray(frame)[:HEADING_PX] for frame in frames]
    marked = [(heading == (0, 114, 178)).all(-1).sum() for heading in headings]
    assert marked[0] * 3 == marked[2] and marked[0] * 2 == marked[1] > 0


def test_a_gif_loops_and_holds_its_last_frame() -> None:
    stages = [torch.full((1, 3, 8, 8), 0.5)] * 3  # equal stages must stay three frames
    with Image.open(BytesIO(animation_bytes(animation_frames(stages, SCHEDULE)))) as gif:
        assert (gif.format, gif.n_frames, gif.info["loop"]) == ("GIF", 3, 0)
        durations = []
        for k in range(3):
            gif.seek(k)
            durations.append(gif.info["duration"])
    assert durations == [FRAME_MS, FRAME_MS, LAST_FRAME_MS]


def test_stages_are_the_partial_sums_of_the_ids() -> None:
    torch.manual_seed(0)
    tokenizer = VQAutoencoder(
        resolution=16, schedule="1-2-4", trunk="patch", patch=4, width=8, blocks=1, vocabulary=16, latent_channels=4
    ).eval()
    ids = tokenizer.encode(torch.rand(2, 3, 16, 16) * 2 - 1)
    stages = decode_stages(tokenizer, ids)
    assert [tuple(stage.shape) for stage in stages] == [(2, 3, 16, 16)] * 3
    assert torch.equal(stages[-1], tokenizer.decode(ids))
    other = ids.clone()
    other[:, SCHEDULE.slices[2]] = (other[:, SCHEDULE.slices[2]] + 1) % 16
    changed = decode_stages(tokenizer, other)
    assert torch.equal(changed[1], stages[1]) and not torch.equal(changed[2], stages[2])


def test_a_stage_a_scale() -> None:
    with pytest.raises(ValueError, match="2 stages for the 3 scales of 1-2-4"):
        animation_frames([torch.zeros(1, 3, 8, 8)] * 2, SCHEDULE)
