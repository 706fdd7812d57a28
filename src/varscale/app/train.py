"""varscale train: one run of stage 2, or with -m every run of a sweep. Finished runs are skipped, others continue."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from varscale import __version__
from varscale.app.build import (
    arithmetic,
    build_model,
    build_optim,
    build_progressive,
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
from varscale.evaluation.heldout import HeldOut, held_out
from varscale.models.counting import count_parameters
from varscale.records import RUN_FILE, SCHEMA_VERSION, Run, atomic_write, read_json, read_run
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.tokenizers.storage import load_tokenizer
from varscale.training.checkpoints import AtomicCheckpointIO, KeepLast, checkpoint_step, last_checkpoint
from varscale.training.device import matrix_peak_flops
from varscale.training.feed import CacheFeed, Feed, ImageFeed
from varscale.training.generator_task import GeneratorTask
from varscale.training.mirror import open_mirror
from varscale.training.notices import without_advice
from varscale.training.progressive import spent, stage_costs
from varscale.training.recorder import Recorder, evaluation_steps

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

    feed = open_feed(cfg, tokenizer)
    model = build_model(
        cfg,
        schedule=tokenizer.schedule,
        code=tokenizer.code,
        latent_channels=tokenizer.latent_channels,
        num_classes=feed.num_classes,
        input_std=feed.input_std(),
    )
    steps = cfg.train.steps
    task = GeneratorTask(
        model,
        tokenizer,
        optim=build_optim(cfg),
        steps=steps,
        batch=cfg.train.batch,
        seed=cfg.seed,
        label_drop=cfg.train.label_drop,
        progressive=build_progressive(cfg),
    )
    model.checkpoint_blocks = cfg.trainer.checkpoint_blocks
    costs = stage_costs(task.stages, model, cfg.train.flops_rule)

    checkpoint = resumable_checkpoint(folder, identity, tokenizer.fingerprint)
    first_step = checkpoint_step(checkpoint)
    run = describe(cfg, task, feed, identity, device, budget_flops=spent(costs, steps, cfg.train.batch)[1])
    with atomic_write(folder / CONFIG_FILE) as file:
        file.write(OmegaConf.to_yaml(cfg, resolve=True).encode())

    loader = feed.training(
        seed=cfg.seed,
        batch=cfg.train.batch // accumulate,
        first_step=first_step * accumulate,
        last_step=steps * accumulate,
    )

    def evaluate(task: GeneratorTask) -> HeldOut:
        batches = feed.held_out(batch=cfg.train.val_batch, limit=cfg.train.val_images)
        return held_out(task.model, (task.tokens(batch.to(task.device)) for batch in batches))

    rows = cfg.train.batch // accumulate * run.num_tokens
    recorder = Recorder(
        folder,
        run,
        costs=costs,
        train_images=feed.train_images,
        evaluate=evaluate,
        steps_to_evaluate=evaluation_steps(steps, cfg.train.evaluations),
        matrix_peak_flops=matrix_peak_flops(device, arithmetic(cfg), rows=rows, width=model.width),
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
            callbacks=[recorder, KeepLast(folder, cfg.train.checkpoint_every)],
            plugins=[AtomicCheckpointIO()],
            logger=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        trainer.fit(task, loader, ckpt_path=None if checkpoint is None else str(checkpoint), weights_only=True)


def micro_batches(cfg: DictConfig) -> int:
    """Parts that a batch is trained in, one after another. Raises ``ConfigError`` when the batch does not divide."""
    if (cfg.trainer.devices, cfg.trainer.num_nodes) != (1, 1):
        raise ConfigError(
            f"trainer.devices is {cfg.trainer.devices} on trainer.num_nodes={cfg.trainer.num_nodes}; a run uses one "
            "device. Runs of a sweep go side by side (hydra.launcher.n_jobs), and trainer.accumulate lets a large "
            "batch fit one device"
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


def check_form(cfg: DictConfig, cache: TokenCache) -> None:
    """Raise ``CacheError`` when the cache has other crops or another precision than the run's id is going to say."""
    for key in ("crops", "precision"):
        if (found := getattr(cache.manifest, key)) != cfg.cache[key]:
            raise CacheError(
                f"the cache in {cache.folder} has {key} {found}, but cache.{key} is {cfg.cache[key]}; set "
                f"cache.{key}={found}, or write another cache with another study=NAME"
            )


def open_feed(cfg: DictConfig, tokenizer: VQAutoencoder) -> Feed:
    """The run's tokens, from the study's cache or from images."""
    if cfg.train.source == "cache":
        check_data(cfg)
        cache = TokenCache.open(Path(cfg.paths.cache), tokenizer=tokenizer)
        check_form(cfg, cache)
        return CacheFeed(cache, tokenizer)
    if cfg.train.source == "images":
        return ImageFeed(build_source(cfg), tokenizer, cfg.trainer.workers)
    raise ConfigError(f"train.source is {cfg.train.source!r}; it must be cache or images")


def describe(
    cfg: DictConfig, task: GeneratorTask, feed: Feed, identity: str, device: torch.device, *, budget_flops: float
) -> Run:
    """The run's record as it starts."""
    model, tokenizer, optim = task.model, task.tokenizer, task.optim
    steps, batch = cfg.train.steps, cfg.train.batch
    sha, dirty = git_state()
    counts = count_parameters(model)
    return Run(
        schema_version=SCHEMA_VERSION,
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
        dataset_id=feed.dataset_fingerprint,
        seed=cfg.seed,
        budget_flops=budget_flops,
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
        lr_schedule=optim.schedule_name,
        label_drop=cfg.train.label_drop,
        images_seen=0.0,
        unique_images=0.0,
        tokens_seen=0.0,
        device=device_name(device),
        num_devices=cfg.trainer.devices,
        precision=cfg.trainer.precision,
    )


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
