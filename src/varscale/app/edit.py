"""varscale edit: zero-shot in-painting, out-painting and class-conditional editing of a user's image.

Writes the image as the model sees it, the selection and the results side by side, and each result as a file. Results
are decoded from composed tokens (see ``varscale.models.editing``), so the region that is kept is the tokenizer's
reconstruction, not the image's own pixels.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from varscale.app.build import device_of, use_threads
from varscale.app.config import ConfigError
from varscale.app.model_folder import open_model
from varscale.app.sample import arithmetic, sampler_of, save
from varscale.data.image_file import read_image
from varscale.evaluation.pictures import table_picture, to_bytes
from varscale.models.editing import box_mask, check_mode, edit, keep_mask
from varscale.models.var import VAR

SIDE_BY_SIDE = "side_by_side.png"
ASPECT_TOLERANCE = 0.01
log = logging.getLogger(__name__)


@torch.no_grad()
def main(cfg: DictConfig) -> None:
    """Edit ``edit.image`` and write the results into ``edit.out``."""
    use_threads(cfg)
    device, settings = device_of(cfg), cfg.edit
    sampler = sampler_of(settings)
    for key in ("run", "image"):
        if settings[key] is None:
            raise ConfigError(f"edit.{key} has no value; give it as edit.{key}=...")
    if settings.images < 1:
        raise ConfigError(f"edit.images is {settings.images}; it must be at least 1")
    model, tokenizer = open_model(Path(settings.run), cfg)
    model, tokenizer = model.to(device), tokenizer.to(device)
    _, H, W = tokenizer.schedule.last
    label = target(settings, model)
    # Fewer pixels than tokens would be a picture of nothing but the enlargement.
    pixels = read_image(Path(settings.image), tokenizer.resolution, least=max(H, W))
    keep_HW = selection(settings, (H, W), tokenizer.resolution).to(device)

    images = settings.images
    ids_BL = tokenizer.encode(pixels.to(device)).expand(images, -1)  # in float32: bf16 moves a fifth of the ids
    with arithmetic(settings.precision, device):
        labels_B = torch.full((images,), label, device=device)
        edited = edit(model, tokenizer.pyramid, ids_BL, keep_HW, labels_B, sampler=sampler, seed=settings.seed)
        results = to_bytes(tokenizer.decode_latent(edited.latent_BCHW))
    drawn_1RR = 1 - F.interpolate(keep_HW[None, None].cpu(), size=pixels.shape[-2:], mode="nearest")[0]
    shown = [to_bytes(pixels)[0], to_bytes(2 * drawn_1RR.expand(1, 3, -1, -1) - 1)[0], *results]
    folder = Path(settings.out)
    for number, result in enumerate(results):
        save(Image.fromarray(result), folder / f"{number:06d}.png")
    headings = ["image", "drawn anew", *(f"result {number}" for number in range(images))]
    save(table_picture([shown], headings), folder / SIDE_BY_SIDE)
    log.info("%s and %d results in %s", SIDE_BY_SIDE, images, folder)


def target(settings: DictConfig, model: VAR) -> int:
    """The class to draw, or the null class where none is given. Raises ``ConfigError`` for one that does not exist."""
    null = model.num_classes
    check_mode(settings.mode)
    if settings.label is None:
        if settings.mode == "class":
            raise ConfigError(f"edit.mode=class needs the class to draw; give edit.label, 0 to {null - 1}")
        return null
    if not 0 <= settings.label <= null:
        raise ConfigError(
            f"edit.label is {settings.label}; the model's classes are 0 to {null - 1}, and {null} draws without a class"
        )
    return int(settings.label)


def selection(settings: DictConfig, grid: tuple[int, int], resolution: int) -> Tensor:
    """The keep-mask (H, W) of the box or the mask picture.

    A mask goes the way of the image, so that white lies where it was drawn: a token is selected where its patch is more
    white than black.

    Raises:
        ConfigError: if not one of box and mask is given, or the mask has not the image's aspect ratio.
    """
    if (settings.box is None) == (settings.mask is None):
        raise ConfigError(
            f"edit.box is {settings.box} and edit.mask is {settings.mask}; give one of them, as edit.box=[x0,y0,x1,y1] "
            "or edit.mask=FILE"
        )
    if settings.box is not None:
        return box_mask(list(settings.box), grid, settings.mode)
    mask_B3RR = read_image(Path(settings.mask), resolution)
    with Image.open(settings.image) as image, Image.open(settings.mask) as mask:
        sizes = image.size, mask.size
    ratios = [width / height for width, height in sizes]
    if abs(ratios[0] - ratios[1]) > ASPECT_TOLERANCE * ratios[0]:
        raise ConfigError(
            f"{settings.mask} is {sizes[1][0]} x {sizes[1][1]} px and {settings.image} {sizes[0][0]} x {sizes[0][1]}: "
            "with another aspect ratio it is open what the mask covers; draw it on the image, at any size"
        )
    white_HW = F.adaptive_avg_pool2d(mask_B3RR.mean(1), grid)[0]
    return keep_mask((white_HW > 0).float(), settings.mode)
