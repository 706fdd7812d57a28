"""The token cache: images/s of loading, of encoding in fp32 and in bf16, and what bf16 costs in tokens and in loss.

    python benchmarks/bench_cache.py outputs/quickstart model.width=64,seed=0 [--images 256] [--batch 32] [--rounds 5]

Takes the tokenizer of a study and one of its finished runs, by its folder's name, whose data settings it reads. Prints
JSON: images/s of one process that only loads; of encoding, fp32 and bf16 in turn within one run, medians and all
rounds; and the agreement of the two encodings on the held-out images (`varscale.evaluation.token_agreement`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from varscale.app.build import build_source, device_name
from varscale.app.identity import CONFIG_FILE
from varscale.app.model_folder import open_run
from varscale.cache.encoding import PRECISIONS, encode
from varscale.data.loader import val_batches
from varscale.data.source import ImageBatch, ImageSource
from varscale.evaluation.token_agreement import token_agreement
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.tokenizers.storage import load_tokenizer
from varscale.training.device import synchronize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("run", help="name of the run's folder below the study's runs/")
    parser.add_argument("--images", type=int, default=256, help="loaded and encoded in a round, and compared")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    run = options.study / "runs" / options.run
    cfg = OmegaConf.load(run / CONFIG_FILE)
    assert isinstance(cfg, DictConfig)
    tokenizer, source = load_tokenizer(options.study / "tokenizer"), build_source(cfg)
    model = open_run(run, tokenizer).to(device)
    tokenizer.to(device)

    batches, loading_s = loaded(source, options.images, options.batch)
    on_device = [batch.to(device) for batch in batches]
    held_out = (batch.to(device) for batch in val_batches(source, batch=options.batch, limit=options.images))
    results = {
        "study": str(options.study),
        "run": run.name,
        "data": source.name,
        "resolution_px": source.resolution,
        "images": options.images,
        "batch": options.batch,
        "threads": options.threads,
        "device": device_name(device),
        "torch": torch.__version__,
        "loading_images_per_s": options.images / loading_s,
        "encoding": encoding(tokenizer, on_device, options.rounds),
        "agreement": asdict(token_agreement(tokenizer, held_out, model=model)),
    }
    print(json.dumps(results, indent=2))


def loaded(source: ImageSource, images: int, batch: int) -> tuple[list[ImageBatch], float]:
    """The first training images, and the seconds one process took to load them once the source was open."""
    source.read("train", np.zeros(1, dtype=np.int64), 0)
    started = time.perf_counter()
    rows = np.arange(images)
    batches = [source.read("train", rows[start : start + batch], 0) for start in range(0, images, batch)]
    return batches, time.perf_counter() - started


def encoding(tokenizer: VQAutoencoder, batches: list[ImageBatch], rounds: int) -> dict[str, object]:
    """Images/s in each precision, in turn, after one round that warms up."""
    images = sum(len(batch.labels) for batch in batches)
    rates: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    for number in range(rounds + 1):
        for precision in PRECISIONS:
            started = time.perf_counter()
            for batch in batches:
                ids_BL = encode(tokenizer, batch.pixels, precision)
            synchronize(ids_BL.device)
            if number:
                rates[precision].append(images / (time.perf_counter() - started))
    return {
        precision: {"images_per_s": statistics.median(values), "images_per_s_all": values}
        for precision, values in rates.items()
    }


if __name__ == "__main__":
    main()
