"""varscale train: one run of stage 2, or with -m every run of a sweep. Finished runs are skipped, others continue."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import lightning
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader

from varscale import __version__
from varscale.app.build import (
    build_model,
    build_optim,
    build_source,
    device_name,
    device_of,
    git_state,
    use_threads,
)  # fmt: skip
from varscale.app.config import ConfigError
from varscale.app.identity import CONFIG_FILE, SOURCE_FILE, data_identity, finished, identify
from varscale.cache.manifest import CacheError
from varscale.cache.reader import TokenCache
from varscale.data.loader import train_loader, val_batches
from varscale.data.source import ImageSource
from varscale.evaluation.heldout import HeldOut, held_out
from varscale.models.counting import count_parameters, train_flops_per_image
from varscale.records import RUN_FILE, Run, atomic_write, read_json, read_run
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.tokenizers.storage import load_tokenizer
from varscale.tokenizers.tokens import TokenBatch
from varscale.training.checkpoints import AtomicCheckpointIO, checkpoint_step, keep_last, last_checkpoint
from varscale.training.device import matrix_peak_flops
from varscale.training.generator_task import GeneratorTask
from varscale.training.mirror import open_mirror
from varscale.training.notices import without_advice
from varscale.training.recorder import Recorder, evaluation_steps
from varscale.training.token_loader import token_loader, val_token_batches

STD_IMAGES = 64  # for the scale of the inputs
log = logging.getLogger(__name__)


def main(cfg: DictConfig) -> None:
    """Train the run of this configuration in Hydra's output folder."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if finished(cfg, folder):
        log.info("%s is finished; nothing to do", folder)
        return
    run_training(cfg, folder)


def run_training(cfg: DictConfig, folder: Path) -> None:
    """Train one run in ``folder``, continuing from its last checkpoint if it belongs to the same run."""
    use_threads(cfg)
    device = device_of(cfg)
    accumulate = micro_batches(cfg)
    tokenizer = load_tokenizer(Path(cfg.paths.tokenizer))
    identity = identify(cfg)
    torch.manual_seed(cfg.seed)

    cache = source = None
    if cfg.train.source == "cache":
        check_data(cfg)
        cache = TokenCache.open(Path(cfg.paths.cache), tokenizer=tokenizer)
        num_classes, train_images, dataset_id = cache.num_classes, cache.size("train"), cache.dataset_fingerprint
    elif cfg.train.source == "images":
        source = build_source(cfg)
        num_classes, train_images, dataset_id = source.num_classes, source.size("train"), source.fingerprint
    else:
        raise ConfigError(f"train.source is {cfg.train.source!r}; it must be cache or images")
    model = build_model(
        cfg,
        schedule=tokenizer.schedule,
        code=tokenizer.code,
        latent_channels=tokenizer.latent_channels,
        num_classes=num_classes,
        input_std=input_std(tokenizer, cache, source),
    )
    optim, steps, batch = build_optim(cfg), cfg.train.steps, cfg.train.batch
    task = GeneratorTask(
        model, tokenizer, optim=optim, steps=steps, batch=batch, seed=cfg.seed, label_drop=cfg.train.label_drop
    )

    checkpoint = resumable_checkpoint(folder, identity, tokenizer.fingerprint)
    first_step = checkpoint_step(checkpoint)
    sha, dirty = git_state()
    counts = count_parameters(model)
    flops_per_image = train_flops_per_image(model, cfg.train.flops_rule)
    run = Run(
        schema_version=1,
        run_id=identity,
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        study=cfg.study,
        design=cfg.design,
        status="running",
        git_sha=sha,
        git_dirty=dirty,
        varscale_version=__version__,
        config_path=CONFIG_FILE,
        family="var",
        tokenizer_id=tokenizer.fingerprint,
        dataset_id=dataset_id,
        seed=cfg.seed,
        budget_flops=steps * batch * flops_per_image,
        flops_train=0.0,
        flops_rule=cfg.train.flops_rule,
        resolution_px=tokenizer.resolution,
        frames=1,
        schedule=str(tokenizer.schedule),
        num_tokens=tokenizer.schedule.num_tokens,
        code=str(tokenizer.code),
        depth=model.depth,
        width=model.width,
        heads=model.heads,
        params_token=counts.params_token,
        params_image=counts.params_image,
        params_blocks=counts.params_blocks,
        params_embed=counts.params_embed,
        params_head=counts.params_head,
        params_total=counts.params_total,
        batch_images=batch,
        steps=steps,
        lr_peak=task.lr_peak,
        weight_decay=optim.weight_decay,
        warmup_steps=optim.warmup_steps(steps),
        lr_schedule=optim.schedule,
        label_drop=cfg.train.label_drop,
        images_seen=0.0,
        unique_images=0.0,
        tokens_seen=0.0,
        device=device_name(device),
        num_devices=cfg.trainer.devices,
        precision=cfg.trainer.precision,
    )
    with atomic_write(folder / CONFIG_FILE) as file:
        file.write(OmegaConf.to_yaml(cfg, resolve=True).encode())

    loader: DataLoader[TokenBatch] | DataLoader[object]
    if cache is not None:
        loader = token_loader(
            cache,
            seed=cfg.seed,
            batch=batch // accumulate,
            first_step=first_step * accumulate,
            last_step=steps * accumulate,
        )
    else:
        assert source is not None
        loader = train_loader(
            source,
            seed=cfg.seed,
            batch=batch // accumulate,
            first_step=first_step * accumulate,
            last_step=steps * accumulate,
            workers=cfg.trainer.workers,
        )

    def evaluate(task: GeneratorTask) -> HeldOut:
        batches: Iterable[object]
        limit, size = cfg.train.val_images, cfg.train.val_batch
        if cache is not None:
            batches = val_token_batches(cache, batch=size, limit=limit)
        else:
            assert source is not None
            batches = val_batches(source, batch=size, limit=limit)
        return held_out(task.model, (task.tokens(b.to(task.device)) for b in batches))  # type: ignore[attr-defined]

    dtype = torch.bfloat16 if "bf16" in cfg.trainer.precision else torch.float32
    recorder = Recorder(
        folder,
        run,
        flops_per_image=flops_per_image,
        train_images=train_images,
        evaluate=evaluate,
        steps_to_evaluate=evaluation_steps(steps, cfg.train.evaluations),
        matrix_peak_flops=matrix_peak_flops(device, dtype, rows=batch * run.num_tokens, width=model.width),
        mirror=open_mirror(
            cfg.logger.mode,
            folder=folder,
            project=cfg.logger.project,
            run_id=identity,
            name=folder.name,
            group=cfg.study,
            job_type="train",
            tags=[*cfg.logger.tags, cfg.design],
            config={**run.to_dict(), "config": OmegaConf.to_container(cfg, resolve=True)},
        ),
    )
    if first_step:
        log.info("%s continues from step %d of %d", folder.name, first_step, steps)
    if cfg.trainer.compile:
        task.model.compile()
    with without_advice():
        trainer = lightning.Trainer(
            accelerator=cfg.trainer.accelerator,
            devices=cfg.trainer.devices,
            precision=cfg.trainer.precision,
            max_steps=steps,
            max_epochs=-1,
            accumulate_grad_batches=accumulate,
            callbacks=[recorder, keep_last(folder, cfg.train.checkpoint_every)],
            plugins=[AtomicCheckpointIO()],
            logger=False,
            enable_model_summary=False,
            enable_progress_bar=True,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        trainer.fit(task, loader, ckpt_path=None if checkpoint is None else str(checkpoint), weights_only=True)


def micro_batches(cfg: DictConfig) -> int:
    """Parts that a batch is trained in, one after another. Raises ``ConfigError`` when the batch does not divide."""
    if cfg.trainer.devices != 1:
        raise ConfigError(
            f"trainer.devices is {cfg.trainer.devices}; a run uses one device. Runs of a sweep go side by side "
            "(hydra.launcher.n_jobs), and trainer.accumulate lets a large batch fit one device"
        )
    parts = int(cfg.trainer.accumulate)
    if parts < 1 or cfg.train.batch % parts:
        raise ConfigError(f"train.batch={cfg.train.batch} cannot be split into trainer.accumulate={parts} equal parts")
    return parts


def check_data(cfg: DictConfig) -> None:
    """Raise ``CacheError`` when the cache was written from other data than this configuration names."""
    path = Path(cfg.paths.cache) / SOURCE_FILE
    if path.exists() and (found := read_json(path)["data_id"]) != data_identity(cfg):
        raise CacheError(
            f"the cache in {path.parent} was written from other data settings (data id {found}, wanted "
            f"{data_identity(cfg)}); launch varscale cache with the same overrides, or choose another study=NAME"
        )


def input_std(tokenizer: VQAutoencoder, cache: TokenCache | None, source: ImageSource | None) -> float:
    """Standard deviation of the teacher-forcing inputs of the first training images."""
    if cache is not None:
        batch = cache.batch("train", np.arange(min(STD_IMAGES, cache.size("train"))))
        inputs, ids = batch.inputs_BNC, batch.ids_BL
    else:
        assert source is not None
        size = source.size("train")
        images = source.read("train", np.arange(STD_IMAGES if size is None else min(STD_IMAGES, size)), 0)
        inputs, ids = None, tokenizer.encode(images.pixels)
    return float((tokenizer.pyramid.inputs(ids) if inputs is None else inputs).std())


def resumable_checkpoint(folder: Path, identity: str, tokenizer_id: str) -> Path | None:
    """The folder's checkpoint if it belongs to this run; that of another, unfinished run is removed, not continued.

    Raises:
        ConfigError: if the folder holds the finished run of another configuration or tokenizer.
    """
    before = read_run(folder) if (folder / RUN_FILE).exists() else None
    checkpoint = last_checkpoint(folder)
    if before is not None and before.run_id == identity and before.tokenizer_id == tokenizer_id:
        return checkpoint
    if before is not None and before.status == "finished":
        raise ConfigError(
            f"{folder} holds a finished run with other settings (run {before.run_id}, tokenizer {before.tokenizer_id}; "
            f"this one is {identity}, {tokenizer_id}); use another study=NAME or remove that folder"
        )
    if checkpoint is not None:
        log.warning("%s holds a checkpoint of another configuration or tokenizer; the run starts over", folder)
        checkpoint.unlink()
    return None
