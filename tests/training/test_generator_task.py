"""Stage 2: images and cache give one loss, coarse scales are trained and recorded as what they cost."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch

from varscale.cache.reader import TokenCache
from varscale.data.dead_leaves import DeadLeaves
from varscale.data.loader import train_loader
from varscale.records import CURVE_FILE, read_curve, read_run
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.training.feed import CacheFeed, ImageFeed
from varscale.training.generator_task import step_seed
from varscale.training.notices import without_advice
from varscale.training.progressive import Stage
from varscale.training.recorder import evaluation_steps


def test_a_stage_of_coarse_scales_is_recorded_as_what_it_costs(
    tiny: Any, tmp_path: Path, stored: TokenCache, tokenizer: VQAutoencoder
) -> None:
    task = tiny.coarse_first(tokenizer)
    tiny.train(tmp_path, task, stored)
    run = read_run(tmp_path)
    images = 3.0 * tiny.batch
    assert (run.images_seen, run.tokens_seen, run.flops_train) == (24.0, images * (5 + 21), images * (10 + 100))
    rows = read_curve(tmp_path / CURVE_FILE)
    trained = {row["step"] for row in rows if (row["split"], row["metric"]) == ("train", "nats_per_token_avg")}
    assert trained == {"4", "5", "6"}  # no mean over all tokens before
    assert {row["step"] for row in rows if row["metric"] == "grad_norm_mean"} == set("123456")
    assert {row["scale"] for row in rows if row["split"] == "val" and row["step"] == "1"} >= {"0", "1", "2"}
    assert [float(row["tokens_seen"]) for row in rows if row["metric"] == "error_avg"] == [20, 40, 60, 144, 228, 312]


def test_the_newest_scale_comes_in_by_a_ramp(tiny: Any, stored: TokenCache, tokenizer: VQAutoencoder) -> None:
    """As released: each token weighs 1 / L of all L tokens, those of the newest scale times the ramp."""
    task = tiny.task(tokenizer, drop_path=0.0)
    task.stages = (Stage(0, tiny.steps, 2, ramp_steps=4.0),)
    task.label_drop = 0.0
    task._trainer = SimpleNamespace(accumulate_grad_batches=1, global_step=0, global_rank=0, world_size=1)  # type: ignore[assignment]
    batch = stored.batch("train", torch.arange(tiny.batch).numpy())
    loss = task.training_step(batch, 0)
    nats_BK = task.model.loss(task.tokens(batch)).nats_BK.mean(0)
    torch.testing.assert_close(loss, (nats_BK[0] + 0.25 * nats_BK[1]) / 21)
    assert task.last_loss is None


def test_checkpointed_blocks_change_nothing_but_memory(tiny: Any, stored: TokenCache, tokenizer: VQAutoencoder) -> None:
    """Drop path included: its draws are those of the first pass."""
    gradients, kept = [], []
    for checkpoint_blocks in (False, True):
        model = tiny.task(tokenizer, drop_path=0.5).model
        model.checkpoint_blocks = checkpoint_blocks
        batch = tiny.task(tokenizer).tokens(stored.batch("train", torch.arange(tiny.batch).numpy()))
        saved = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        torch.manual_seed(2)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = model.train().loss(batch, label_drop=0.3).per_token_avg_B.mean()
        loss.backward()
        kept.append(saved)
        gradients.append((loss.detach(), *(p.grad for p in model.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert kept[1] < kept[0] / 2


def test_fp16_gradients_are_clipped_after_unscaling(tiny: Any, tokenizer: VQAutoencoder) -> None:
    """A fused optimiser would unscale them only in its step, so it is not used there."""
    task = tiny.task(tokenizer)
    for precision, fused in (("16-mixed", False), ("bf16-mixed", True), ("32-true", True)):
        task._trainer = SimpleNamespace(precision=precision)  # type: ignore[assignment]
        assert task.configure_optimizers()["optimizer"].defaults["fused"] is fused


def test_images_and_cache_give_one_loss(
    tiny: Any, source: DeadLeaves, cache: TokenCache, tokenizer: VQAutoencoder
) -> None:
    task = tiny.task(tokenizer).eval()
    # The cache holds the first 32 training images, whatever the order asks for.
    images = source.read("train", torch.arange(4).numpy(), 0)
    with torch.no_grad():
        from_images = task.model.loss(task.tokens(images)).nats_BK
        from_cache = task.model.loss(task.tokens(cache.batch("train", torch.arange(4).numpy()))).nats_BK
    torch.testing.assert_close(from_images, from_cache, atol=0, rtol=0)


def test_trains_from_images(tiny: Any, tmp_path: Path, source: DeadLeaves, tokenizer: VQAutoencoder) -> None:
    task = tiny.task(tokenizer)
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    with without_advice():
        trainer.fit(task, train_loader(source, seed=5, batch=tiny.batch, first_step=0, last_step=2))
    after = task.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("model."))
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("tokenizer."))


def test_checkpoint_holds_no_tokenizer(tiny: Any, tokenizer: VQAutoencoder) -> None:
    task = tiny.task(tokenizer)
    checkpoint: dict[str, Any] = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(checkpoint)
    assert checkpoint["state_dict"] and all(key.startswith("model.") for key in checkpoint["state_dict"])


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
