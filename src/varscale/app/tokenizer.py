"""varscale tokenizer: stage 1, trains the multi-scale VQ-VAE and measures every scale of it.

Writes into the study's ``tokenizer`` folder: the tokenizer, ``metrics.csv`` and ``reconstructions.png``.
"""

from __future__ import annotations

import csv
import io
import logging
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import lightning
import numpy as np
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader

from varscale.app.build import build, build_source, build_tokenizer, device_of, use_threads
from varscale.app.config import ConfigError
from varscale.app.identity import TOKENIZER_FILE, stage1_identity
from varscale.app.lock import LOCK_FILE, hold
from varscale.app.ranks import join
from varscale.data.loader import Share, as_it_is, train_loader, val_batches
from varscale.data.source import ImageSource
from varscale.evaluation.pictures import table_picture
from varscale.evaluation.reconstruction import reconstruction_rows
from varscale.ranks import place
from varscale.records import RecordError, atomic_write, clear_remains, read_json, write_json
from varscale.tokenizers.storage import load_tokenizer, save_tokenizer
from varscale.training.checkpoints import Checkpoints, Owner
from varscale.training.health import DIVERGED_FILE, DivergedError, write_divergence
from varscale.training.mirror import open_mirror
from varscale.training.notices import without_advice
from varscale.training.ranks import from_first
from varscale.training.saving import Saving
from varscale.training.strategy import PATIENCE, backend
from varscale.training.tokenizer_task import TokenizerTask
from varscale.training.trainer import build_trainer

STAGE_FILE = "stage1.json"  # which configuration the checkpoint in the folder belongs to
PICTURE = "reconstructions.png"
METRICS = "metrics.csv"
PICTURED_IMAGES = 8
log = logging.getLogger(__name__)


def main(cfg: DictConfig) -> None:
    """Train the tokenizer of this configuration, unless it is trained already."""
    folder = Path(cfg.paths.tokenizer)
    identity = stage1_identity(cfg)
    if finished(folder, identity):
        load_tokenizer(folder)  # raises when it was damaged since
        log.info("%s holds this tokenizer already", folder)
        return
    if join(cfg, backend=backend(cfg.trainer.accelerator), timeout=PATIENCE) is None:
        return  # the processes that it started have trained it
    with ExitStack() as held:
        if place()[0] == 0:
            remedy = "wait for it, or end it; a tokenizer is never trained twice at once"
            what = f"the tokenizer in {folder} is being trained"
            held.enter_context(hold(folder / LOCK_FILE, what=what, remedy=remedy))
        if not from_first(lambda: finished(folder, identity)):  # in the meantime
            train_tokenizer(cfg, folder, identity)


def train_tokenizer(cfg: DictConfig, folder: Path, identity: str) -> None:
    """Train, measure and store the tokenizer, continuing from the newest whole checkpoint."""
    started = time.monotonic()
    rank, world = place()
    use_threads(cfg)
    device_of(cfg)
    lightning.seed_everything(cfg.stage1.seed, verbose=False)
    tokenizer, source = build_tokenizer(cfg), build_source(cfg)
    if source.resolution != tokenizer.resolution:
        raise ConfigError(
            f"data.resolution is {source.resolution} px but tokenizer.resolution is {tokenizer.resolution} px; "
            "set both to one value"
        )
    steps = cfg.stage1.steps
    optim = build("stage1.optim", cfg.stage1.optim)
    task = TokenizerTask(tokenizer, steps=steps, optim=optim, ema_decay=cfg.stage1.ema_decay, seed=cfg.stage1.seed)
    if world > 1 and tokenizer.config.dropout:
        raise ConfigError(
            f"tokenizer.dropout={tokenizer.config.dropout} on {world} devices: what is dropped would depend on their "
            "number; set tokenizer.dropout=0 or trainer.devices=1"
        )
    checkpoints = Checkpoints(folder, Owner(identity, source.fingerprint))
    checkpoint = from_first(checkpoints.newest)
    first_step = 0 if checkpoint is None else checkpoint.step
    if rank == 0:
        claim(folder, identity)
        (folder / DIVERGED_FILE).unlink(missing_ok=True)
    if checkpoint is not None and rank == 0:
        log.info("the tokenizer continues from step %d of %d (%s)", first_step, steps, checkpoint.path)
    saving = Saving(
        checkpoints,
        every_steps=cfg.stage1.checkpoint_every,
        started=started,
        limit_hours=cfg.stage1.time_limit,
        key="stage1",
    )
    loader = train_loader(
        source,
        seed=cfg.stage1.seed,
        batch=cfg.stage1.batch,
        first_step=first_step,
        last_step=steps,
        workers=cfg.trainer.workers,
        pin_memory=cfg.trainer.accelerator == "gpu",
        share=Share(rank, world),
    )
    batches = val_batches(source, batch=cfg.stage1.batch, limit=cfg.stage1.val_images)
    if len(batches) < world:
        batches = val_batches(source, batch=max(1, batches.end // world), limit=cfg.stage1.val_images)
    if len(batches) < world:
        raise ConfigError(f"stage1.val_images: {batches.end} validation images for {world} processes; each needs one")
    mine = range(rank, len(batches), world)
    validation = DataLoader(batches, batch_size=None, sampler=mine, collate_fn=as_it_is)  # type: ignore[arg-type]
    every = cfg.stage1.validate_every
    with without_advice():
        trainer = build_trainer(
            folder,
            checkpoints,
            [saving],
            steps=steps,
            accelerator=cfg.trainer.accelerator,
            devices=cfg.trainer.devices,
            nodes=cfg.trainer.num_nodes,
            unused_parameters=tokenizer.pyramid.idle_refiners,
            precision=cfg.trainer.precision,
            deterministic=cfg.trainer.deterministic,
            num_sanity_val_steps=0,
            val_check_interval=every,
            check_val_every_n_epoch=None,
        )
        resume = None if checkpoint is None else checkpoint.path
        try:
            trainer.fit(task, loader, None if every is None else validation, ckpt_path=resume, weights_only=True)
        except DivergedError as error:
            order = {"seed": cfg.stage1.seed, "batch": cfg.stage1.batch, "size": source.size("train")}
            if rank == 0:
                write_divergence(folder, error, **order, checkpoint_step=checkpoints.last_step())
            raise
        if trainer.global_step < steps:
            raise KeyboardInterrupt
        if every is None or steps % every:
            trainer.validate(task, validation, verbose=False)
    if rank == 0:
        store(cfg, folder, task, source, identity)
        checkpoints.finish()


def belongs(folder: Path, identity: str) -> bool:
    """Whether the checkpoint in ``folder`` is of this configuration."""
    try:
        return bool(read_json(folder / STAGE_FILE).get("stage1_id") == identity)
    except RecordError:
        return False


def claim(folder: Path, identity: str) -> None:
    """Make ``folder`` this configuration's, where no checkpoint says otherwise.

    Raises:
        ConfigError: if the folder holds the finished tokenizer of another configuration, or cannot be written.
    """
    mine = belongs(folder, identity)
    if not mine and (folder / TOKENIZER_FILE).exists():
        raise ConfigError(
            f"{folder} holds a tokenizer trained with other settings; give this one a study of its own (study=NAME) "
            "or remove that folder"
        )
    try:
        clear_remains(folder)
        if not mine:
            write_json(folder / STAGE_FILE, {"stage1_id": identity})
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror}); choose another folder with paths.outputs=FOLDER"
        ) from error


def finished(folder: Path, identity: str) -> bool:
    """Whether ``folder`` holds the trained tokenizer of this configuration."""
    return (folder / TOKENIZER_FILE).exists() and belongs(folder, identity)


def store(cfg: DictConfig, folder: Path, task: TokenizerTask, source: ImageSource, identity: str) -> None:
    """Write metrics, picture and, last, the tokenizer."""
    tokenizer, report = task.evaluated.eval(), task.report
    assert report is not None
    scales = [asdict(scale) for scale in report.scales]
    text = io.StringIO()
    writer = csv.DictWriter(text, ("step", "split", "metric", "scale", "value"), lineterminator="\n")
    writer.writeheader()
    writer.writerows(task.metrics)
    with atomic_write(folder / METRICS) as file:
        file.write(text.getvalue().encode())
    size = source.size("val")
    count = PICTURED_IMAGES if size is None else min(PICTURED_IMAGES, size)
    headings, rows = reconstruction_rows(tokenizer, source.read("val", np.arange(count), 0).pixels)
    with atomic_write(folder / PICTURE) as file:
        table_picture(rows, headings).save(file, format="PNG")
    mirror = open_mirror(
        cfg.logger.mode,
        folder=folder,
        project=cfg.logger.project,
        run_id=f"tokenizer-{identity}",
        name="tokenizer",
        group=cfg.study,
        job_type="tokenizer",
        tags=[*cfg.logger.tags],
        config={"config": OmegaConf.to_container(cfg, resolve=True)},
    )
    for row in task.metrics:
        where = "" if row["scale"] is None else f"_{row['scale']}"
        mirror.log({"step": row["step"], f"{row['split']}/{row['metric']}{where}": row["value"]})
    mirror.catch_up([])
    mirror.table("reconstructions", ["image", *headings], [[number, *row] for number, row in enumerate(rows)])
    mirror.finish({f"psnr_db_{s['side']}": s["psnr_db"] for s in scales}, failed=False)
    extra = {
        "scales": scales,
        "unquantised_psnr_db": report.unquantised_psnr_db,
        "usage": report.usage,
        "perplexity": report.perplexity,
        "images": report.images,
    }
    save_tokenizer(folder, tokenizer, extra, dataset_id=source.fingerprint)
    lines = [f"{'scale':>6} {'PSNR dB':>8} {'usage':>6} {'perplexity':>10}"]
    lines += [f"{s['side']:>6} {s['psnr_db']:>8.2f} {s['usage']:>6.0%} {s['perplexity']:>10.1f}" for s in scales]
    print("\n".join(lines))
    print(f"unquantised {report.unquantised_psnr_db:.2f} dB; tokenizer {tokenizer.fingerprint} in {folder}")
