"""varscale inspect: what a model sees. Animation, strip and attention of images drawn, held out, or from a file.

A drawn image is looked at in the pass that drew it, without guidance: its tokens are their own teacher.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from varscale.app.build import build_source, device_of, use_threads
from varscale.app.config import ConfigError
from varscale.app.model_folder import open_model
from varscale.app.run_folders import largest_run
from varscale.app.sample import sampler_of
from varscale.app.views import write_animation, write_attention, write_strip
from varscale.data.image_file import read_image
from varscale.evaluation.attention_maps import Query
from varscale.models.sampling import sample
from varscale.models.var import VAR
from varscale.records import RecordError
from varscale.tokenizers.autoencoder import VQAutoencoder

FOLDER = "inspect"


def main(cfg: DictConfig) -> None:
    """Write the views into ``inspect.out``."""
    use_threads(cfg)
    device, settings = device_of(cfg), cfg.inspect
    queries = [query_of(place) for place in settings.queries or ()]
    run = Path(settings.run) if settings.run is not None else largest_run(Path(cfg.paths.runs))
    if run is None:
        raise RecordError(f"there is no finished run in {cfg.paths.runs}; train one, or name one as inspect.run=FOLDER")
    model, tokenizer = open_model(run, cfg)
    model, tokenizer = model.to(device), tokenizer.to(device)
    ids_BL, labels_B = tokens(cfg, model, tokenizer, device)
    out = run / FOLDER if settings.out is None else Path(settings.out)
    written = write_attention(out, model, tokenizer, ids_BL, labels_B, queries=queries, block=settings.block)
    written += [write_animation(out, tokenizer, ids_BL), write_strip(out, tokenizer, ids_BL)]
    print(f"{run}, class{'es' if len(labels_B) > 1 else ''} {', '.join(map(str, labels_B.tolist()))}, written:")
    print("\n".join(f"  {path}" for path in written))


def query_of(place: list[int]) -> Query:
    """``[scale, row, column]`` as a query."""
    if len(place) != 3:
        raise ConfigError(f"inspect.queries has {list(place)}; a query is [scale, row, column], all from 0")
    return Query(*place)


def tokens(cfg: DictConfig, model: VAR, tokenizer: VQAutoencoder, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token maps (B, L) of the images to look at, and the classes (B,) that the model is given."""
    settings, null = cfg.inspect, model.num_classes
    if settings.images < 1:
        raise ConfigError(f"inspect.images is {settings.images}; it must be at least 1")
    if settings.label is not None and not 0 <= settings.label <= null:
        raise ConfigError(
            f"inspect.label is {settings.label}; the classes are 0 to {null - 1}, and {null} stands for none"
        )
    if settings.image is not None and settings.held_out is not None:
        raise ConfigError("both inspect.image and inspect.held_out are given; choose one")
    if settings.image is not None:
        _, h, w = tokenizer.schedule.last
        pixels = read_image(Path(settings.image), tokenizer.resolution, least=max(h, w))
        labels_B = torch.tensor([null])
    elif settings.held_out is not None:
        batch = build_source(cfg).read("val", settings.held_out + np.arange(settings.images), 0)
        pixels, labels_B = batch.pixels, batch.labels
    else:
        pixels, labels_B = None, torch.arange(settings.images) % null
    if settings.label is not None:
        labels_B = torch.full_like(labels_B, settings.label)
    elif int(labels_B.max()) > null:
        raise ConfigError(f"a held-out image is of class {int(labels_B.max())}, and the model has {null}; give a label")
    labels_B = labels_B.to(device)
    if pixels is not None:
        return tokenizer.encode(pixels.to(device)), labels_B
    sampler = sampler_of(cfg.sample)
    sampler.check(model.schedule.num_scales, tokenizer.pyramid.quantizer.vocabulary)
    return sample(model, tokenizer.pyramid, labels_B, sampler=sampler, seed=cfg.sample.seed), labels_B
