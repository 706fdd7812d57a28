"""The row of a run in the run table as it starts: what was configured, counted and found."""

from __future__ import annotations

from datetime import UTC, datetime

import torch
from omegaconf import DictConfig

from varscale import __version__
from varscale.app.branch import Trunk
from varscale.app.build import device_name, git_state
from varscale.app.identity import CONFIG_FILE
from varscale.models.counting import count_parameters
from varscale.records import SCHEMA_VERSION, Run
from varscale.training.feed import Feed
from varscale.training.generator_task import GeneratorTask


def describe(
    cfg: DictConfig,
    task: GeneratorTask,
    feed: Feed,
    identity: str,
    device: torch.device,
    *,
    budget_flops: float,
    trunk: Trunk | None = None,
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
        trunk_id=None if trunk is None else trunk.run_id,
        branch_step=None if trunk is None else trunk.step,
        images_seen=0.0,
        unique_images=0.0,
        tokens_seen=0.0,
        ema=None if task.average is None else task.average.name,
        device=device_name(device),
        num_devices=cfg.trainer.devices * cfg.trainer.num_nodes,
        precision=cfg.trainer.precision,
    )
