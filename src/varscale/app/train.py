"""varscale train: one run of stage 2, or with -m every run of a sweep. Finished runs are skipped, others continue."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from varscale.app.branch import recorded_trunk, trunk_of
from varscale.app.build import (
    arithmetic,
    build_average,
    build_model,
    build_optim,
    build_progressive,
    device_of,
    use_threads,
)  # fmt: skip
from varscale.app.config import ConfigError
from varscale.app.feeds import open_feed
from varscale.app.identity import CONFIG_FILE, finished, identify
from varscale.app.isoflop import intended_flops
from varscale.app.lock import LOCK_FILE, hold
from varscale.app.ranks import join
from varscale.app.run_row import describe
from varscale.data.loader import Share
from varscale.evaluation.heldout import HeldOut, held_out
from varscale.models.var import VAR
from varscale.ranks import place
from varscale.records import RUN_FILE, atomic_write, clear_remains, read_run
from varscale.tokenizers.storage import load_tokenizer
from varscale.training.checkpoints import Checkpoint, CheckpointError, Checkpoints, Owner
from varscale.training.device import matrix_peak_flops
from varscale.training.generator_task import GeneratorTask
from varscale.training.health import DIVERGED_FILE, DivergedError, write_divergence
from varscale.training.heartbeat import Heartbeat
from varscale.training.mirror import open_mirror
from varscale.training.notices import without_advice
from varscale.training.progressive import spent, stage_costs
from varscale.training.ranks import from_first
from varscale.training.recorder import Recorder, evaluation_steps
from varscale.training.saving import Saving
from varscale.training.strategy import PATIENCE, backend
from varscale.training.trainer import build_trainer

log = logging.getLogger(__name__)


def main(cfg: DictConfig) -> None:
    """Train the run of this configuration in Hydra's output folder."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if finished(cfg, folder):
        log.info("%s is finished; nothing to do", folder)
        return
    if join(cfg, backend=backend(cfg.trainer.accelerator), timeout=PATIENCE) is None:
        return  # the processes that it started have trained it
    with ExitStack() as held:
        if place()[0] == 0:
            remedy = "wait for it, or end it; a run is never trained twice at once"
            held.enter_context(hold(folder / LOCK_FILE, what=f"{folder} is being trained", remedy=remedy))
        if not from_first(lambda: finished(cfg, folder)):  # in the meantime
            run_training(cfg, folder)


def run_training(cfg: DictConfig, folder: Path) -> None:
    """Train one run in ``folder``, continuing from its newest whole checkpoint if it belongs to the same run.

    Raises ``KeyboardInterrupt`` (by way of Lightning, ``SystemExit``) when a signal or the time limit has stopped it.
    """
    started = time.monotonic()
    use_threads(cfg)
    device = device_of(cfg)
    rank = place()[0]
    share = divided(cfg)
    tokenizer = load_tokenizer(Path(cfg.paths.tokenizer))
    identity = identify(cfg)
    refuse_another_finished(folder, identity, tokenizer.fingerprint)
    torch.manual_seed(cfg.seed)

    feed = open_feed(cfg, tokenizer)
    model = build_model(
        cfg,
        schedule=tokenizer.schedule,
        code=tokenizer.code,
        latent_channels=tokenizer.latent_channels,
        num_classes=feed.num_classes,
        input_std=from_first(feed.input_std),
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
        average_gamma=build_average(cfg),
    )
    model.checkpoint_blocks = cfg.trainer.checkpoint_blocks
    costs = stage_costs(task.stages, model, cfg.train.flops_rule)

    owner = Owner(identity, feed.dataset_fingerprint, tokenizer.fingerprint)
    checkpoints = Checkpoints(folder, owner, keep=cfg.train.keep, keep_steps=keep_steps(cfg))
    # Not that of the last step, which a trunk keeps: nothing would be left to do there, and the run never finish.
    checkpoint = from_first(lambda: checkpoints.newest(before=steps))
    trunk = None if checkpoint is None else recorded_trunk(cfg, folder)
    if trunk is None:
        trunk = trunk_of(cfg, owner)
    if rank == 0:
        write_config(cfg, folder)  # not before: the folder may hold another run's checkpoints
    if checkpoint is None and trunk is not None:
        its = trunk.checkpoint
        assert its is not None
        checkpoint = from_first(lambda: whole(its))
        checkpoints.branching = True
    first_step = 0 if checkpoint is None else checkpoint.step
    budget_flops = intended_flops(cfg.train.budget_flops, spent(costs, steps, cfg.train.batch)[1])
    run = describe(cfg, task, feed, identity, device, budget_flops=budget_flops, trunk=trunk)
    if rank == 0:
        (folder / DIVERGED_FILE).unlink(missing_ok=True)

    loader = feed.training(seed=cfg.seed, batch=cfg.train.batch, first_step=first_step, last_step=steps, share=share)

    def evaluate(task: GeneratorTask, model: VAR) -> HeldOut:
        batches = feed.held_out(batch=cfg.train.val_batch, limit=cfg.train.val_images)
        return held_out(model, batches, lambda batch: task.tokens(batch.to(task.device)))

    rows = share.batch(cfg.train.batch) * run.num_tokens
    recorder = Recorder(
        folder,
        run,
        costs=costs,
        train_images=feed.train_images,
        evaluate=evaluate,
        steps_to_evaluate=evaluation_steps(steps, cfg.train.evaluations),
        matrix_peak_flops=matrix_peak_flops(device, arithmetic(cfg), rows=rows, width=model.width),
        mirror=open_mirror(
            cfg.logger.mode if rank == 0 else "disabled",
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
    saving = Saving(
        checkpoints,
        every_steps=cfg.train.checkpoint_every,
        started=started,
        limit_hours=cfg.train.time_limit,
        ready=recorder.write_rows,
    )
    if checkpoint is not None and rank == 0:
        log.info("%s continues from step %d of %d (%s)", folder.name, first_step, steps, checkpoint.path)
    if cfg.trainer.compile:
        # Sharded weights are gathered between the blocks, by code that is not compiled.
        for module in task.model.blocks if cfg.trainer.strategy == "fsdp" else [task.model]:
            module.compile()
    with without_advice():
        trainer = build_trainer(
            folder,
            checkpoints,
            [recorder, Heartbeat(folder, steps=steps, batch=cfg.train.batch), saving],
            steps=steps,
            accelerator=cfg.trainer.accelerator,
            devices=cfg.trainer.devices,
            nodes=cfg.trainer.num_nodes,
            division=cfg.trainer.strategy,
            precision=cfg.trainer.precision,
            deterministic=cfg.trainer.deterministic,
            accumulate_grad_batches=share.passes,
        )
        try:
            trainer.fit(task, loader, ckpt_path=None if checkpoint is None else checkpoint.path, weights_only=True)
        except DivergedError as error:
            last, size = checkpoints.last_step(), feed.train_images
            if rank == 0:
                write_divergence(folder, error, seed=cfg.seed, batch=cfg.train.batch, size=size, checkpoint_step=last)
            raise
    if rank == 0:
        checkpoints.finish()


def whole(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint of a trunk, verified. Raises ``CheckpointError``: there is none before it to take instead."""
    if flaw := checkpoint.flaw():
        raise CheckpointError(f"{checkpoint.path} is damaged ({flaw}); remove the trunk's folder and train it again")
    return checkpoint


def keep_steps(cfg: DictConfig) -> int | list[int] | None:
    """The steps whose checkpoints stay. Raises ``ConfigError`` unless they are a number or a list of numbers."""
    value = cfg.train.keep_steps
    plain = value if value is None or isinstance(value, int) else list(value)
    if isinstance(plain, list) and not all(isinstance(step, int) for step in plain):
        raise ConfigError(f"train.keep_steps is {plain}; give a list of steps, or one number for every so many steps")
    return plain


def write_config(cfg: DictConfig, folder: Path) -> None:
    """Write the resolved configuration. Raises ``ConfigError`` when the folder cannot be written."""
    try:
        clear_remains(folder)
        with atomic_write(folder / CONFIG_FILE) as file:
            file.write(OmegaConf.to_yaml(cfg, resolve=True).encode())
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror}); choose another folder with paths.outputs=FOLDER"
        ) from error


def divided(cfg: DictConfig) -> Share:
    """What this process trains of each batch. Raises ``ConfigError`` when the batch does not divide."""
    rank, world = place()
    try:
        share = Share(rank, world, int(cfg.trainer.accumulate))
        share.batch(cfg.train.batch)
    except ValueError as error:
        raise ConfigError(f"train.batch, trainer.devices={world} in all, trainer.accumulate: {error}") from error
    return share


def refuse_another_finished(folder: Path, identity: str, tokenizer_id: str) -> None:
    """Raise ``ConfigError`` if the folder holds the finished run of another configuration or tokenizer."""
    before = read_run(folder) if (folder / RUN_FILE).exists() else None
    if (
        before is None
        or before.status != "finished"
        or (before.run_id, before.tokenizer_id) == (identity, tokenizer_id)
    ):
        return
    raise ConfigError(
        f"{folder} holds a finished run with other settings (run {before.run_id}, tokenizer {before.tokenizer_id}; "
        f"this one is {identity}, {tokenizer_id}); use another study=NAME or remove that folder"
    )
