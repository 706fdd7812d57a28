"""varscale cache: encodes the study's images once, so that every run of stage 2 reads tokens."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path

from lightning.fabric import Fabric
from omegaconf import DictConfig

from varscale.app.build import build_source, device_of, use_threads
from varscale.app.config import ConfigError
from varscale.app.identity import SOURCE_FILE, data_identity
from varscale.app.lock import LOCK_FILE, hold
from varscale.app.ranks import join
from varscale.cache.writer import write_cache
from varscale.data.source import ImageSource
from varscale.records import write_json
from varscale.tokenizers.storage import load_tokenizer

log = logging.getLogger(__name__)


def main(cfg: DictConfig) -> None:
    """Write the token cache of the study, continuing after an interruption; one process a device."""
    use_threads(cfg)
    device_of(cfg)
    fabric = join(cfg)
    if fabric is None:
        return
    folder = Path(cfg.paths.cache)
    with ExitStack() as held:
        if fabric.is_global_zero:
            remedy = "wait for it, or end it; a cache is never written twice at once"
            held.enter_context(hold(folder / LOCK_FILE, what=f"the cache in {folder} is being written", remedy=remedy))
        encode(cfg, folder, fabric)


def encode(cfg: DictConfig, folder: Path, fabric: Fabric) -> None:
    """Write the cache as one of the processes of ``fabric``."""
    tokenizer, source = load_tokenizer(Path(cfg.paths.tokenizer)), build_source(cfg)
    if source.resolution != tokenizer.resolution:
        raise ConfigError(
            f"data.resolution is {source.resolution} px, but the tokenizer in {cfg.paths.tokenizer} takes "
            f"{tokenizer.resolution} px; set data.resolution={tokenizer.resolution}"
        )
    manifest = write_cache(
        tokenizer.to(fabric.device),
        source,
        folder,
        train_images=images(source, "train", cfg.cache.train_images),
        val_images=images(source, "val", cfg.cache.val_images),
        crops=cfg.cache.crops,
        shard_images=cfg.cache.shard_images,
        batch=cfg.cache.batch,
        store_inputs=cfg.cache.store_inputs,
        device=fabric.device,
        precision=cfg.cache.precision,
        workers=cfg.trainer.workers,
    )
    if not fabric.is_global_zero:
        return
    write_json(folder / SOURCE_FILE, {"data_id": data_identity(cfg)})
    counts = ", ".join(f"{count:,} {split}" for split, count in manifest.images.items())
    crops = f" ({manifest.crops} crops of each training image)" if manifest.crops > 1 else ""
    log.info("%s images%s of %s as %s tokens each in %s", counts, crops, source.name,
             manifest.scale_schedule.num_tokens, folder)  # fmt: skip


def images(source: ImageSource, split: str, wanted: int | None) -> int:
    """How many images of a split to cache: all that are wanted, at most all there are."""
    size = source.size(split)  # type: ignore[arg-type]
    if wanted is None and size is None:
        raise ConfigError(
            f"cache.{split}_images is null, but the {split} split of {source.name} never ends; set a number"
        )
    return min(n for n in (wanted, size) if n is not None)
