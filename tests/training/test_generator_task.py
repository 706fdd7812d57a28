"""Stage 2: images and cache give one loss, an interrupted run continues to the bit, records say what happened."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from varscale.cache.reader import TokenCache
from varscale.cache.writer import write_cache
from varscale.data.dead_leaves import DeadLeaves
from varscale.data.loader import train_loader
from varscale.evaluation.heldout import HeldOut, held_out
from varscale.models.shape import ladder_rule
from varscale.models.var import VAR
from varscale.records import CURVE_FILE, read_curve, read_run
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.training.checkpoints import AtomicCheckpointIO, KeepLast, checkpoint_step, last_checkpoint
from varscale.training.feed import CacheFeed, ImageFeed
from varscale.training.generator_task import DivergedError, GeneratorTask, step_seed
from varscale.training.mirror import NoMirror
from varscale.training.notices import without_advice
from varscale.training.optim import Optimisation
from varscale.training.recorder import Recorder, evaluation_steps

STEPS, BATCH = 6, 4


@pytest.fixture(scope="module")
def source() -> DeadLeaves:
    return DeadLeaves(resolution=16, num_classes=3, val_size=8)


@pytest.fixture(scope="module")
def tokenizer() -> VQAutoencoder:
    torch.manual_seed(0)
    return VQAutoencoder(resolution=16, schedule="1-2-4", vocabulary=16, latent_channels=4, width=8, blocks=1).eval()


@pytest.fixture(scope="module", params=[True, False], ids=["inputs stored", "ids only"])
def cache(
    request: pytest.FixtureRequest,
    source: DeadLeaves,
    tokenizer: VQAutoencoder,
    tmp_path_factory: pytest.TempPathFactory,
) -> TokenCache:
    folder = tmp_path_factory.mktemp("cache")
    write_cache(
        tokenizer, source, folder, train_images=32, val_images=8, shard_images=16, batch=8, store_inputs=request.param,
        device=torch.device("cpu"),
    )  # fmt: skip
    return TokenCache.open(folder, tokenizer=tokenizer)


def make_task(tokenizer: VQAutoencoder, drop_path: float = 0.5) -> GeneratorTask:
    torch.manual_seed(1)
    shape = ladder_rule(16)
    model = VAR(
        type(shape)(shape.depth, shape.width, shape.heads, drop_path), schedule=tokenizer.schedule,
        code=tokenizer.code, latent_channels=tokenizer.latent_channels, num_classes=3, adaln_gate_std=1.0,
    )  # fmt: skip
    return GeneratorTask(
        model, tokenizer, optim=Optimisation(lr=0.01, warmup=0.2), steps=STEPS, batch=BATCH, seed=5, label_drop=0.3
    )


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


def train(folder: Path, task: GeneratorTask, cache: TokenCache, stop_at: int | None = None) -> Recorder:
    """Train to the end, or raise after step ``stop_at``; a checkpoint in ``folder`` is continued."""

    def evaluate(task: GeneratorTask) -> HeldOut:
        if stop_at is not None and task.global_step >= stop_at:
            raise RuntimeError("the process dies here")
        return held_out(
            task.model, (task.tokens(b) for b in CacheFeed(cache, task.tokenizer).held_out(batch=3, limit=None))
        )

    checkpoint = last_checkpoint(folder)
    recorder = Recorder(
        folder, make_run(), flops_per_image=100.0, train_images=32, evaluate=evaluate,
        steps_to_evaluate=tuple(range(1, STEPS + 1)), mirror=NoMirror(),
    )  # fmt: skip
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=STEPS, max_epochs=-1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[recorder, KeepLast(folder, 2)], plugins=[AtomicCheckpointIO()],
        default_root_dir=folder,
    )  # fmt: skip
    first_step = checkpoint_step(checkpoint)
    loader = CacheFeed(cache, task.tokenizer).training(seed=5, batch=BATCH, first_step=first_step, last_step=STEPS)
    with without_advice():
        trainer.fit(task, loader, ckpt_path=None if checkpoint is None else str(checkpoint), weights_only=True)
    return recorder


def test_an_interrupted_run_continues_to_the_bit(tmp_path: Path, cache: TokenCache, tokenizer: VQAutoencoder) -> None:
    whole = make_task(tokenizer)
    train(tmp_path / "whole", whole, cache)
    with pytest.raises(RuntimeError, match="dies here"):
        train(tmp_path / "broken", make_task(tokenizer), cache, stop_at=4)
    assert read_run(tmp_path / "broken").status == "failed"
    assert checkpoint_step(last_checkpoint(tmp_path / "broken")) == 2
    resumed = make_task(tokenizer)
    train(tmp_path / "broken", resumed, cache)
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    curves = [read_curve(tmp_path / folder / CURVE_FILE) for folder in ("whole", "broken")]
    assert curves[0] == curves[1]
    run = read_run(tmp_path / "broken")
    assert (run.status, run.images_seen, run.tokens_seen, run.flops_train) == ("finished", 24.0, 504.0, 2400.0)
    assert run.unique_images == 24.0 and run.val_images == 8.0


def test_ctrl_c_is_heard_between_two_steps(tmp_path: Path, cache: TokenCache, tokenizer: VQAutoencoder) -> None:
    """In the middle of a step there is no state worth saving; the next start saves and stops."""
    task, whole = make_task(tokenizer), make_task(tokenizer)
    train(tmp_path / "whole", whole, cache)
    step = task.training_step

    def interrupted_in_step_3(batch: Any, batch_idx: int) -> Any:
        if task.global_step == 3:
            signal.raise_signal(signal.SIGINT)
        return step(batch, batch_idx)

    before = signal.getsignal(signal.SIGINT)
    task.training_step = interrupted_in_step_3  # type: ignore[method-assign]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(tmp_path / "broken", task, cache)
    assert signal.getsignal(signal.SIGINT) is before
    assert read_run(tmp_path / "broken").status == "stopped"
    assert checkpoint_step(last_checkpoint(tmp_path / "broken")) == 4
    resumed = make_task(tokenizer)
    train(tmp_path / "broken", resumed, cache)
    assert read_curve(tmp_path / "whole" / CURVE_FILE) == read_curve(tmp_path / "broken" / CURVE_FILE)


def test_images_and_cache_give_one_loss(source: DeadLeaves, cache: TokenCache, tokenizer: VQAutoencoder) -> None:
    task = make_task(tokenizer).eval()
    # The cache holds the first 32 training images, whatever the order asks for.
    images = source.read("train", torch.arange(4).numpy(), 0)
    with torch.no_grad():
        from_images = task.model.loss(task.tokens(images)).nats_BK
        from_cache = task.model.loss(task.tokens(cache.batch("train", torch.arange(4).numpy()))).nats_BK
    torch.testing.assert_close(from_images, from_cache, atol=0, rtol=0)


def test_trains_from_images(tmp_path: Path, source: DeadLeaves, tokenizer: VQAutoencoder) -> None:
    task = make_task(tokenizer)
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    with without_advice():
        trainer.fit(task, train_loader(source, seed=5, batch=BATCH, first_step=0, last_step=2))
    after = task.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("model."))
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("tokenizer."))


def test_checkpoint_holds_no_tokenizer(tokenizer: VQAutoencoder) -> None:
    task = make_task(tokenizer)
    checkpoint: dict[str, Any] = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(checkpoint)
    assert checkpoint["state_dict"] and all(key.startswith("model.") for key in checkpoint["state_dict"])


def test_divergence_is_recorded(tmp_path: Path, cache: TokenCache, tokenizer: VQAutoencoder) -> None:
    task = make_task(tokenizer)
    with torch.no_grad():
        task.model.head.weight.fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"lower optim\.lr"):
        train(tmp_path, task, cache)
    assert read_run(tmp_path).status == "diverged"


def test_evaluations_are_even_in_log_steps_and_include_the_last() -> None:
    steps = evaluation_steps(1000, 5)
    assert steps == (40, 89, 200, 447, 1000)
    assert evaluation_steps(2, 12)[-1] == 2
    with pytest.raises(ValueError, match="at least 1"):
        evaluation_steps(10, 0)


def test_step_seeds_differ() -> None:
    assert len({step_seed(seed, step) % 2**32 for seed in range(20) for step in range(200)}) == 4000


def test_both_feeds_measure_the_same_inputs(source: DeadLeaves, cache: TokenCache, tokenizer: VQAutoencoder) -> None:
    cached, images = CacheFeed(cache, tokenizer), ImageFeed(source, tokenizer)
    assert cached.dataset_fingerprint == images.dataset_fingerprint and cached.num_classes == images.num_classes
    assert (cached.train_images, images.train_images) == (32, None)
    # 32 images are cached, 64 are read: two samples of one spread.
    assert cached.input_std() == pytest.approx(images.input_std(), rel=0.1)
    ids = torch.cat([batch.ids_BL for batch in cached.held_out(batch=3, limit=None)])
    pixels = torch.cat([batch.pixels for batch in images.held_out(batch=5, limit=None)])
    assert torch.equal(ids, tokenizer.encode(pixels))
