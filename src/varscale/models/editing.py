"""Zero-shot editing: in-painting, out-painting and class-conditional editing, by keeping some of an image's tokens.

A scale is drawn as usual; then, where the mask says so, the codes of the source image take the place of the drawn ones
before the next scale is predicted. The result is decoded from the composed tokens: no pixels are pasted, so the kept
region is the tokenizer's reconstruction of it, and its border is smooth.
Source: VAR, arXiv:2404.02905, sec. 5.3, and its released demo (demo_zero_shot_edit.ipynb).
Shapes: B images, L all tokens, H x W latent grid, h x w map of a scale, C code channels, K scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from varscale.models.sampling import Kept, Sampler, generate
from varscale.models.var import VAR
from varscale.schedule import ScaleSchedule
from varscale.tokenizers.residual import ResidualPyramid

EditMode = Literal["inpaint", "outpaint", "class"]
MODES: tuple[EditMode, ...] = get_args(EditMode)
ALWAYS_KEPT = 3  # a scale of at most so many tokens, the 1 x 1 map, is taken from the source whole


@dataclass(frozen=True)
class Edited:
    """What editing gives.

    drawn_BL: int64 ids as drawn, before kept ones are put back. ids_BL: composed with those of the source.
    keep_BL: which are the source's. latent_BCHW: float32, of the composed tokens; the decoder takes it.
    """

    drawn_BL: Tensor
    ids_BL: Tensor
    keep_BL: Tensor
    latent_BCHW: Tensor


def box_mask(box: Sequence[float], grid: tuple[int, int], mode: EditMode) -> Tensor:
    """Keep-mask (H, W) float32, 1 where the source's tokens stay: outside the box, or inside it for ``outpaint``.

    Args:
        box: x0, y0, x1, y1 as shares of the image's sides, from the upper left corner.

    Raises:
        ValueError: for a box outside the image, without area, or too small to hold a token.
    """
    check_mode(mode)
    if len(box) != 4 or not all(0 <= side <= 1 for side in box):
        raise ValueError(
            f"the box is {list(box)}; it must be x0, y0, x1, y1 in [0, 1], shares of the sides of the image, which it "
            "may not leave"
        )
    x0, y0, x1, y1 = box
    if x0 >= x1 or y0 >= y1:
        raise ValueError(f"the box {list(box)} has no area; x0 must be below x1, and y0 below y1")
    H, W = grid
    rows, columns = slice(round(y0 * H), round(y1 * H)), slice(round(x0 * W), round(x1 * W))
    inside = torch.zeros(H, W)
    inside[rows, columns] = 1
    return keep_mask(inside, mode)


def keep_mask(selected_HW: Tensor, mode: EditMode) -> Tensor:
    """Keep-mask (H, W) of a selection (1 inside, 0 outside). Raises ``ValueError`` if nothing is left to draw."""
    check_mode(mode)
    keep = selected_HW if mode == "outpaint" else 1 - selected_HW
    if bool(keep.all()):
        H, W = keep.shape
        region = "outside" if mode == "outpaint" else "inside"
        raise ValueError(f"no token of the {H} x {W} grid lies {region} the selection; there is nothing to draw")
    return keep


def check_mode(mode: str) -> None:
    """Raise ``ValueError`` for an unknown mode."""
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(MODES)}")


def keep_tokens(keep_HW: Tensor, schedule: ScaleSchedule) -> Tensor:
    """(L,) boolean: the keep-mask resized to every scale (bilinear, above one half), the coarsest kept whole."""
    parts = []
    for _, h, w in schedule.scales:
        resized = F.interpolate(keep_HW[None, None].float(), size=(h, w), mode="bilinear")[0, 0]
        parts.append((resized > 0.5).flatten() | (h * w <= ALWAYS_KEPT))
    return torch.cat(parts)


def edit(
    model: VAR,
    pyramid: ResidualPyramid,
    ids_BL: Tensor,
    keep_HW: Tensor,
    labels_B: Tensor,
    *,
    sampler: Sampler,
    seed: int,
    images: Sequence[int] | None = None,
) -> Edited:
    """Draw the tokens of images anew where they are not kept.

    Args:
        ids_BL: tokens of the source images.
        keep_HW: see ``box_mask``; one for all images.
        labels_B: the null class ``model.num_classes`` for in- and out-painting as in the paper, the target class for
            class-conditional editing.
        seed, images: see ``generate``.

    Raises:
        ValueError: for a label outside the classes, a mask of another grid, or a sampler that does not fit the model.
    """
    if tuple(keep_HW.shape) != model.schedule.last[1:]:
        raise ValueError(
            f"the mask is {' x '.join(map(str, keep_HW.shape))}, but the last token map is "
            f"{' x '.join(map(str, model.schedule.last[1:]))}; give the mask on that grid"
        )
    keep_BL = keep_tokens(keep_HW, model.schedule).to(ids_BL.device).expand(ids_BL.shape)
    kept = Kept(ids_BL, keep_BL)
    drawn = generate(model, pyramid, labels_B, sampler=sampler, seed=seed, images=images, kept=kept)
    return Edited(drawn.ids_BL, torch.where(keep_BL, ids_BL, drawn.ids_BL), keep_BL, drawn.latent_BCHW)
