"""varscale sample: a grid of images for every finished run of the study (or one run), and a coarse-to-fine strip.

Image i of class c is drawn from the same random stream in every run, so that sizes can be compared image by image.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from varscale.app.build import build_model, device_of, use_threads
from varscale.app.config import ConfigError
from varscale.app.identity import CONFIG_FILE
from varscale.evaluation.pictures import grid_picture, strip_picture
from varscale.models.sampling import Sampler, sample
from varscale.models.storage import load_weights, stored_classes
from varscale.models.var import VAR
from varscale.records import RUN_FILE, RecordError, atomic_write, read_run
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.tokenizers.storage import load_tokenizer

SAMPLES = "samples.png"
STRIP = "coarse_to_fine.png"
STRIP_IMAGES = 4
log = logging.getLogger(__name__)


def main(cfg: DictConfig) -> None:
    """Write ``samples.png`` and ``coarse_to_fine.png`` into the folder of each run."""
    use_threads(cfg)
    device = device_of(cfg)
    settings = cfg.sample
    sampler = Sampler(
        guidance=settings.guidance, top_k=settings.top_k, top_p=settings.top_p, temperature=settings.temperature
    )
    if settings.images < 1:
        raise ConfigError(f"sample.images is {settings.images}; it must be at least 1")
    tokenizer = load_tokenizer(Path(cfg.paths.tokenizer)).to(device)
    folders = [Path(settings.run)] if settings.run is not None else finished_runs(Path(cfg.paths.runs))
    for folder in tqdm(folders, desc="sampling", unit="run"):
        model = load_run(folder, tokenizer, device)
        labels_B = labels(settings.labels, settings.images, model.num_classes).to(device)
        ids_BL = sample(model, tokenizer.pyramid, labels_B, sampler=sampler, seed=settings.seed)
        with torch.no_grad():
            save(grid_picture(tokenizer.decode(ids_BL)), folder / SAMPLES)
            stages = [tokenizer.decode_latent(f) for f in tokenizer.pyramid.partial_sums(ids_BL[:STRIP_IMAGES])]
            save(strip_picture(stages, tokenizer.schedule), folder / STRIP)
        log.info("%s and %s in %s", SAMPLES, STRIP, folder)


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


def load_run(folder: Path, tokenizer: VQAutoencoder, device: torch.device) -> VAR:
    """The trained model of a run. Raises ``RecordError`` when it belongs to another tokenizer or is not finished."""
    run = read_run(folder)
    if run.tokenizer_id != tokenizer.fingerprint:
        raise RecordError(
            f"{folder} was trained on tokenizer {run.tokenizer_id}, the study's is {tokenizer.fingerprint}; "
            "launch the sweep again, or sample with the other tokenizer by paths.tokenizer=FOLDER"
        )
    cfg = OmegaConf.load(folder / CONFIG_FILE)
    assert isinstance(cfg, DictConfig)
    model = build_model(
        cfg,
        schedule=tokenizer.schedule,
        code=tokenizer.code,
        latent_channels=tokenizer.latent_channels,
        num_classes=stored_classes(folder),
    )
    load_weights(folder, model)
    return model.to(device).eval()


def labels(wanted: Sequence[int] | None, images: int, num_classes: int) -> Tensor:
    """(images,) int64: the given classes, repeated, or all classes in turn."""
    classes = list(range(num_classes)) if wanted is None else list(wanted)
    return torch.tensor([classes[i % len(classes)] for i in range(images)])


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG atomically."""
    with atomic_write(path) as file:
        picture.save(file, format="PNG")
