"""varscale sample: images from trained models.

By default a grid and a coarse-to-fine strip for every finished run of the study; with ``sample.format=png`` or ``npz``,
any number of images on disk, which an interrupted command continues. Image i of class c is drawn from the same random
stream in every run, so that sizes can be compared image by image.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from varscale.app.build import device_of, use_threads
from varscale.app.config import ConfigError
from varscale.app.model_folder import open_model
from varscale.app.run_folders import SAMPLES, largest_run
from varscale.app.views import write_strip, write_views
from varscale.evaluation.image_files import FORMATS, MANIFEST, open_image_files
from varscale.evaluation.pictures import grid_picture, to_bytes
from varscale.models.sampling import Generated, Sampler, generate
from varscale.models.storage import fingerprint
from varscale.models.var import VAR
from varscale.records import RUN_FILE, RecordError, atomic_write, read_run, run_id
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.training.mirror import open_mirror

GRID, FOLDER = "grid", "samples"
PRECISIONS = ("fp32", "bf16")
log = logging.getLogger(__name__)


def main(cfg: DictConfig) -> None:
    """Write the pictures of each run into its folder, or into ``sample.out``."""
    use_threads(cfg)
    device, settings = device_of(cfg), cfg.sample
    sampler = sampler_of(settings)
    if settings.format not in (GRID, *FORMATS):
        raise ConfigError(f"sample.format is {settings.format!r}; it must be one of {', '.join((GRID, *FORMATS))}")
    for key in ("images", "per_class", "batch"):
        if settings[key] is not None and settings[key] < 1:
            raise ConfigError(f"sample.{key} is {settings[key]}; it must be at least 1")
    runs = [Path(settings.run)] if settings.run is not None else finished_runs(Path(cfg.paths.runs))
    if settings.out is not None and len(runs) > 1:
        raise ConfigError(f"sample.out is one folder for {len(runs)} runs; name one of them as sample.run=FOLDER")
    drawn: list[list[Any]] = []
    for run in tqdm(runs, desc="sampling", unit="run", disable=len(runs) == 1):
        model, tokenizer = open_model(run, cfg)
        sampler.check(model.schedule.num_scales, tokenizer.pyramid.quantizer.vocabulary)
        with torch.no_grad(), arithmetic(settings.precision, device):
            model, tokenizer = model.to(device), tokenizer.to(device)
            if settings.format == GRID:
                drawn += write_grid(cfg, run, model, tokenizer)
            else:
                write_files(cfg, run, model, tokenizer)
    if drawn and settings.run is None:
        mirror_samples(cfg, drawn)


def write_grid(cfg: DictConfig, run: Path, model: VAR, tokenizer: VQAutoencoder) -> list[list[Any]]:
    """All images as one picture, and a strip of the first; of the study's largest run also animation and attention.

    Returns:
        One row an image for `mirror_samples`: the run's name, the parameters, the image's number and class, the image.
    """
    settings = cfg.sample
    folder = run if settings.out is None else Path(settings.out)
    drawn = list(batches(cfg, model, tokenizer, range(image_count(settings, model))))
    pixels_B3RR = torch.cat([tokenizer.decode_latent(batch.latent_BCHW).cpu() for _, batch in drawn])
    save(grid_picture(pixels_B3RR), folder / SAMPLES)
    numbers, first = drawn[0]
    strip = write_strip(folder, tokenizer, first.ids_BL)
    if settings.run is None and run == largest_run(Path(cfg.paths.runs)):
        write_views(folder, model, tokenizer, first.ids_BL, labels_of(numbers, settings, model).to(device_of(cfg)))
    log.info("%s and %s in %s", SAMPLES, strip.name, folder)
    size, images = sum(parameter.numel() for parameter in model.parameters()), to_bytes(pixels_B3RR)
    labels = labels_of(range(len(images)), settings, model).tolist()
    return [[run.name, size, i, label, image] for i, (label, image) in enumerate(zip(labels, images, strict=True))]


def mirror_samples(cfg: DictConfig, rows: list[list[Any]]) -> None:
    """The images of all runs of the study as one table in W&B, a row an image."""
    mirror = open_mirror(
        cfg.logger.mode,
        folder=Path(cfg.paths.study) / "samples",
        project=cfg.logger.project,
        run_id=f"samples-{run_id({'study': cfg.study})}",
        name="samples",
        group=cfg.study,
        job_type="eval",
        tags=[*cfg.logger.tags],
        config={"study": cfg.study, "sample": OmegaConf.to_container(cfg.sample, resolve=True)},
    )
    mirror.catch_up([])
    mirror.table("samples", ["run", "params_total", "image", "class", "sample"], rows)
    mirror.finish({"images": len(rows)}, failed=False)


def write_files(cfg: DictConfig, run: Path, model: VAR, tokenizer: VQAutoencoder) -> None:
    """Every image on its own, or all in an archive, with a manifest; what is there already is kept."""
    settings = cfg.sample
    total = image_count(settings, model)
    files = open_image_files(
        run / FOLDER if settings.out is None else Path(settings.out),
        settings.format,
        images=total,
        resolution=tokenizer.resolution,
        settings={
            "model": fingerprint(model),
            "tokenizer": tokenizer.fingerprint,
            "sampler": _plain(asdict(sampler_of(settings))),
            "seed": settings.seed,
            "labels": None if settings.labels is None else list(settings.labels),  # in turn; null: all classes
            "precision": settings.precision,
        },
    )
    missing = files.missing()
    with tqdm(total=total, initial=total - len(missing), desc=str(run), unit="image") as bar:
        for numbers, batch in batches(cfg, model, tokenizer, missing):
            files.write(numbers, to_bytes(tokenizer.decode_latent(batch.latent_BCHW)))
            bar.update(len(numbers))
    log.info("%s images and %s: %s", total, MANIFEST, files.finish())


def batches(
    cfg: DictConfig, model: VAR, tokenizer: VQAutoencoder, numbers: Sequence[int]
) -> Iterator[tuple[list[int], Generated]]:
    """Draws the images of these numbers, ``sample.batch`` at a time; an image's class goes by its number."""
    settings, device = cfg.sample, device_of(cfg)
    sampler = sampler_of(settings)
    # Batches start at multiples of their size, so that a continued command repeats those of an undisturbed one.
    for _, group in groupby(numbers, key=lambda number: number // settings.batch):
        images = list(group)
        labels_B = labels_of(images, settings, model).to(device)
        yield images, generate(model, tokenizer.pyramid, labels_B, sampler=sampler, seed=settings.seed, images=images)


def labels_of(numbers: Sequence[int], settings: DictConfig, model: VAR) -> Tensor:
    """The classes (B,) of the images of these numbers."""
    order = classes(settings.labels, model.num_classes)
    return torch.tensor([order[number % len(order)] for number in numbers])


def sampler_of(settings: DictConfig) -> Sampler:
    """The sampler of the section ``sample`` or ``edit``."""
    per_scale = {name: settings[f"{name}_per_scale"] for name in ("guidance", "temperature")}
    own = {name: settings[name] if values is None else tuple(values) for name, values in per_scale.items()}
    return Sampler(top_k=settings.top_k, top_p=settings.top_p, smooth=settings.smooth, **own)


def arithmetic(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """What transformer and decoder compute in; the quantiser is always float32."""
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def image_count(settings: DictConfig, model: VAR) -> int:
    """How many images: ``sample.images``, or ``sample.per_class`` of each class."""
    order = classes(settings.labels, model.num_classes)
    return int(settings.images) if settings.per_class is None else int(settings.per_class) * len(order)


def classes(wanted: Sequence[int] | None, num_classes: int) -> list[int]:
    """The classes that images have in turn: those given, or all. Raises ``ConfigError`` for one that does not exist."""
    chosen = list(range(num_classes)) if wanted is None else list(wanted)
    outside = [label for label in chosen if not 0 <= label <= num_classes]
    if outside or not chosen:
        raise ConfigError(
            f"sample.labels is {chosen}; the model's classes are 0 to {num_classes - 1}, and {num_classes} draws "
            "without a class"
        )
    return chosen


def finished_runs(runs: Path) -> list[Path]:
    """Folders of the finished runs, smallest model first."""
    found = []
    for folder in sorted(runs.glob("*/")):
        if (folder / RUN_FILE).exists():
            run = read_run(folder)
            if run.status == "finished":
                found.append((run.params_total, folder))
    if not found:
        raise RecordError(f"there is no finished run in {runs}; train one, or name one as sample.run=FOLDER")
    return [folder for _, folder in sorted(found)]


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG atomically."""
    with atomic_write(path) as file:
        picture.save(file, format="PNG")


def _plain(values: dict[str, object]) -> dict[str, object]:
    """As JSON gives them back: lists for tuples."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
