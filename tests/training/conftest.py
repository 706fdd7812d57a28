"""Tiny runs of stage 2, for the tests of the task, of interruptions and of divergence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch

from varscale.cache.reader import TokenCache
from varscale.cache.writer import write_cache
from varscale.data.dead_leaves import DeadLeaves
from varscale.evaluation.heldout import HeldOut, held_out
from varscale.models.shape import ladder_rule
from varscale.models.var import VAR
from varscale.records import CURVE_FILE, read_curve
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.training.checkpoints import CHECKPOINTS, Checkpoints, Owner, described
from varscale.training.feed import CacheFeed
from varscale.training.generator_task import GeneratorTask
from varscale.training.mirror import NoMirror
from varscale.training.notices import without_advice
from varscale.training.optim import Optimisation
from varscale.training.progressive import Progressive, StageCost
from varscale.training.recorder import Recorder
from varscale.training.saving import Saving
from varscale.training.trainer import build_trainer

STEPS, BATCH = 6, 4
OWNER = Owner("id", "data", "tokenizer")


@pytest.fixture(scope="module")
def source() -> DeadLeaves:
    return DeadLeaves(resolution=16, num_classes=3, val_size=8)


@pytest.fixture(scope="module")
def tokenizer() -> VQAutoencoder:
    torch.manual_seed(0)
    return VQAutoencoder(resolution=16, schedule="1-2-4", vocabulary=16, latent_channels=4, width=8, blocks=1).eval()


def make_cache(folder: Path, source: DeadLeaves, tokenizer: VQAutoencoder, *, store_inputs: bool) -> TokenCache:
    write_cache(
        tokenizer, source, folder, train_images=32, val_images=8, shard_images=16, batch=8, store_inputs=store_inputs,
        device=torch.device("cpu"),
    )  # fmt: skip
    return TokenCache.open(folder, tokenizer=tokenizer)


@pytest.fixture(scope="module", params=[True, False], ids=["inputs stored", "ids only"])
def cache(
    request: pytest.FixtureRequest,
    source: DeadLeaves,
    tokenizer: VQAutoencoder,
    tmp_path_factory: pytest.TempPathFactory,
) -> TokenCache:
    return make_cache(tmp_path_factory.mktemp("cache"), source, tokenizer, store_inputs=request.param)


@pytest.fixture(scope="module")
def stored(source: DeadLeaves, tokenizer: VQAutoencoder, tmp_path_factory: pytest.TempPathFactory) -> TokenCache:
    """With its inputs, for what has nothing to do with the form of a cache."""
    return make_cache(tmp_path_factory.mktemp("stored"), source, tokenizer, store_inputs=True)


def make_task(
    tokenizer: VQAutoencoder,
    drop_path: float = 0.5,
    optim: Optimisation = Optimisation(lr=0.01, warmup=0.2),  # noqa: B008
    progressive: Progressive | None = None,
    average_gamma: float | None = None,
) -> GeneratorTask:
    torch.manual_seed(1)
    shape = ladder_rule(16)
    model = VAR(
        type(shape)(shape.depth, shape.width, shape.heads, drop_path), schedule=tokenizer.schedule,
        code=tokenizer.code, latent_channels=tokenizer.latent_channels, num_classes=3, adaln_gate_std=1.0,
    )  # fmt: skip
    return GeneratorTask(
        model, tokenizer, optim=optim, steps=STEPS, batch=BATCH, seed=5, label_drop=0.3, progressive=progressive,
        average_gamma=average_gamma,
    )  # fmt: skip


def make_run(**changes: Any) -> Any:
    from varscale.records import Run

    values: dict[str, Any] = {
        "schema_version": 1, "run_id": "id", "created_utc": "now", "study": "s", "design": "d", "status": "running",
        "varscale_version": "0", "config_path": "c", "family": "var", "tokenizer_id": "t", "dataset_id": "d", "seed": 5,
        "flops_train": 0.0, "flops_rule": "dense", "resolution_px": 16, "frames": 1, "schedule": "1-2-4",
        "num_tokens": 21, "code": "index(16)", "depth": 2, "width": 16, "heads": 1, "params_token": 1,
        "params_image": 1, "params_blocks": 2, "params_embed": 1, "params_head": 1, "params_total": 4,
        "batch_images": BATCH, "steps": STEPS, "lr_peak": 0.01, "weight_decay": 0.05, "warmup_steps": 1,
        "lr_schedule": "linear", "label_drop": 0.3, "images_seen": 0.0, "unique_images": 0.0, "tokens_seen": 0.0,
        "device": "cpu", "num_devices": 1, "precision": "32-true",
    }  # fmt: skip
    return Run(**(values | changes))


def train(
    folder: Path,
    task: GeneratorTask,
    cache: TokenCache,
    *,
    stop_at: int | None = None,
    every: int = 1,
    parts: int = 1,
    limit_hours: float | None = None,
    keep_steps: int | None = None,
    callbacks: Sequence[lightning.Callback] = (),
) -> Recorder:
    """Train to the end, or raise after step ``stop_at``; a checkpoint in ``folder`` is continued.

    Measures every ``every`` steps, in ``parts`` micro-batches.
    """
    folder.mkdir(exist_ok=True)

    def evaluate(task: GeneratorTask, model: VAR) -> HeldOut:
        if stop_at is not None and task.global_step >= stop_at:
            raise RuntimeError("the process dies here")
        return held_out(model, CacheFeed(cache, task.tokenizer).held_out(batch=3, limit=None), task.tokens)

    checkpoints = Checkpoints(folder, OWNER, keep_steps=keep_steps)
    checkpoint = checkpoints.newest()
    tokens = {scales: task.model.schedule.coarsest(scales).num_tokens for scales in (2, 3)}
    costs = tuple(StageCost(stage, tokens[stage.scales], 10.0**stage.scales / 10) for stage in task.stages)
    recorder = Recorder(
        folder, make_run(), costs=costs, train_images=32, evaluate=evaluate,
        steps_to_evaluate=tuple(range(every, STEPS + 1, every)), mirror=NoMirror(),
    )  # fmt: skip
    saving = Saving(checkpoints, every_steps=2, limit_hours=limit_hours, ready=recorder.write_rows)
    trainer = build_trainer(
        folder, checkpoints, [recorder, saving, *callbacks], steps=STEPS, accelerator="cpu", devices=1,
        accumulate_grad_batches=parts,
    )  # fmt: skip
    first_step = 0 if checkpoint is None else checkpoint.step
    loader = CacheFeed(cache, task.tokenizer).training(
        seed=5, batch=BATCH // parts, first_step=first_step * parts, last_step=STEPS * parts
    )
    with without_advice():
        trainer.fit(task, loader, ckpt_path=None if checkpoint is None else checkpoint.path, weights_only=True)
    return recorder


def newest_step(folder: Path) -> int:
    return described(folder / CHECKPOINTS)[-1].step


def curve(folder: Path) -> list[dict[str, str]]:
    """What no clock decides."""
    return [row for row in read_curve(folder / CURVE_FILE) if row["metric"] != "images_per_s"]


def assert_equal_weights(one: GeneratorTask, other: GeneratorTask) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


COARSE_FIRST = Optimisation(lr=0.01, warmup=0.2, knee=0.7, weight_decay_final=0.5)


def coarse_first(tokenizer: VQAutoencoder) -> GeneratorTask:
    """Two scales for three of the six steps, and a weight decay that moves."""
    task = make_task(tokenizer, optim=COARSE_FIRST, progressive=Progressive(first=1, until=0.7, ramp=0.5))
    assert [(stage.first_step, stage.scales) for stage in task.stages] == [(0, 2), (3, 3)]
    return task


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """Runs of six steps on a cache of 32 images: how they are made, trained, read and compared."""
    return SimpleNamespace(
        steps=STEPS, batch=BATCH, owner=OWNER, task=make_task, coarse_first=coarse_first, train=train,
        newest_step=newest_step, curve=curve, assert_equal_weights=assert_equal_weights,
    )  # fmt: skip
