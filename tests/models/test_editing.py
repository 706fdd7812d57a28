"""Zero-shot editing: the released ids, what is kept and what is drawn, and boxes that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from varscale.codes import CodeSpec
from varscale.models.editing import EditMode, box_mask, edit, keep_mask, keep_tokens
from varscale.models.pretrained import load_released_var
from varscale.models.sampling import Sampler
from varscale.models.shape import ladder_rule
from varscale.models.var import VAR
from varscale.schedule import VAR_256, ScaleSchedule
from varscale.tokenizers.pretrained import load_released_tokenizer
from varscale.tokenizers.residual import ResidualPyramid
from varscale.tokenizers.vq import VectorQuantizer

SCHEDULE = ScaleSchedule.square(1, 2, 3, 4)
V, C, CLASSES = 32, 6, 5
CENTRE = (0.25, 0.25, 0.75, 0.75)


@pytest.fixture(scope="module")
def pyramid() -> ResidualPyramid:
    torch.manual_seed(2)
    return ResidualPyramid(VectorQuantizer(V, C), SCHEDULE)


@pytest.fixture(scope="module")
def model() -> VAR:
    torch.manual_seed(0)
    var = VAR(ladder_rule(32), schedule=SCHEDULE, code=CodeSpec.index(V), latent_channels=C, num_classes=CLASSES)
    with torch.no_grad():
        for parameter in var.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return var.eval()


@pytest.mark.golden
@pytest.mark.parametrize("mode", ["inpaint", "outpaint"])
def test_released_edits(test_data: Path, mode: EditMode) -> None:
    """Masks, drawn ids and image of the released demo's procedure on random weights."""
    folder = test_data / "golden" / "var_d2_256"
    tokenizer = load_released_tokenizer(load_file(folder / "vae.safetensors"))
    model = load_released_var(load_file(folder / "var.safetensors"), VAR_256).eval()
    io = load_file(folder / "io.safetensors")
    keep_HW = box_mask(CENTRE, (16, 16), mode)
    assert torch.equal(keep_HW, io[f"{mode}_mask"])
    source = torch.cat([io[f"idx_{k}"].flatten(1) for k in range(10)], dim=1)
    sampler = Sampler(guidance=3.0, top_k=1)
    edited = edit(model, tokenizer.pyramid, source, keep_HW, io["labels"], sampler=sampler, seed=0)
    assert torch.equal(edited.drawn_BL, torch.cat([io[f"{mode}_idx_{k}"].flatten(1) for k in range(10)], dim=1))
    if f"{mode}_img" in io:
        image = (tokenizer.decode(edited.ids_BL) + 1) / 2
        torch.testing.assert_close(image, io[f"{mode}_img"], atol=1e-4, rtol=0)


def test_kept_tokens_are_those_of_the_source(model: VAR, pyramid: ResidualPyramid) -> None:
    source = torch.randint(V, (3, SCHEDULE.num_tokens), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([CLASSES, 0, 1])
    edited = edit(model, pyramid, source, box_mask(CENTRE, (4, 4), "inpaint"), labels, sampler=Sampler(), seed=3)
    assert torch.equal(edited.ids_BL[edited.keep_BL], source[edited.keep_BL])
    assert torch.equal(edited.ids_BL[~edited.keep_BL], edited.drawn_BL[~edited.keep_BL])
    assert not torch.equal(edited.drawn_BL[edited.keep_BL], source[edited.keep_BL])
    torch.testing.assert_close(edited.latent_BCHW, pyramid.reconstruct(edited.ids_BL))


def test_an_edit_does_not_change_with_its_batch_also_when_smooth(model: VAR, pyramid: ResidualPyramid) -> None:
    source = torch.zeros(4, SCHEDULE.num_tokens, dtype=torch.int64)
    labels, keep_HW, sampler = torch.tensor([0, 1, 2, 3]), box_mask(CENTRE, (4, 4), "class"), Sampler(smooth=True)
    together = edit(model, pyramid, source, keep_HW, labels, sampler=sampler, seed=1)
    alone = edit(model, pyramid, source[:1], keep_HW, labels[3:], sampler=sampler, seed=1, images=[3])
    assert torch.equal(together.drawn_BL[3:], alone.drawn_BL)
    torch.testing.assert_close(together.latent_BCHW[3:], alone.latent_BCHW, atol=1e-3, rtol=1e-3)


def test_the_mask_of_every_scale() -> None:
    """Bilinear, above one half; the 1 x 1 map is kept whole, whatever the mask says."""
    keep_BL = keep_tokens(box_mask((0.0, 0.0, 0.5, 1.0), (4, 4), "inpaint"), SCHEDULE)
    maps = [keep_BL[part].view(h, w) for part, (_, h, w) in zip(SCHEDULE.slices, SCHEDULE.scales, strict=True)]
    assert maps[0].tolist() == [[True]]
    assert maps[1].tolist() == [[False, True]] * 2
    assert maps[2].tolist() == [[False, False, True]] * 3  # the middle column is exactly one half
    assert maps[3].tolist() == [[False, False, True, True]] * 4


def test_outpainting_keeps_what_inpainting_draws() -> None:
    inside = box_mask((0.25, 0.0, 0.75, 1.0), (4, 4), "outpaint")
    assert inside.tolist() == [[0, 1, 1, 0]] * 4
    assert torch.equal(box_mask((0.25, 0.0, 0.75, 1.0), (4, 4), "inpaint"), 1 - inside)
    assert torch.equal(box_mask((0.25, 0.0, 0.75, 1.0), (4, 4), "class"), 1 - inside)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((0.5, 0.5, 1.2, 0.9), r"\[0.5, 0.5, 1.2, 0.9\]; it must be x0, y0, x1, y1 in \[0, 1\]"),
        ((-0.1, 0.0, 0.5, 0.5), r"in \[0, 1\]"),
        ((0.1, 0.2, 0.3), "x0, y0, x1, y1"),
        ((0.6, 0.2, 0.4, 0.8), "has no area; x0 must be below x1"),
        ((0.2, 0.5, 0.4, 0.5), "y0 below y1"),
        ((0.5, 0.5, 0.51, 0.51), "no token of the 16 x 16 grid lies inside"),
        ((float("nan"), 0.0, 1.0, 1.0), r"in \[0, 1\]"),
    ],
)
def test_refuses_a_box(box: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        box_mask(box, (16, 16), "inpaint")


def test_refuses_what_leaves_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="no token of the 4 x 4 grid lies outside"):
        box_mask((0.0, 0.0, 1.0, 1.0), (4, 4), "outpaint")
    with pytest.raises(ValueError, match="lies inside"):
        keep_mask(torch.zeros(4, 4), "inpaint")
    with pytest.raises(ValueError, match="mode is 'erase'; it must be one of inpaint, outpaint, class"):
        keep_mask(torch.ones(4, 4), "erase")  # type: ignore[arg-type]


def test_refuses_a_mask_of_another_grid(model: VAR, pyramid: ResidualPyramid) -> None:
    source = torch.zeros(1, SCHEDULE.num_tokens, dtype=torch.int64)
    with pytest.raises(ValueError, match="the mask is 16 x 16, but the last token map is 4 x 4"):
        edit(model, pyramid, source, torch.ones(16, 16), torch.tensor([0]), sampler=Sampler(), seed=0)
