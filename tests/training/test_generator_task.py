"""Stage 2: images and cache give one loss, an interrupted run continues to the bit, records say what happened."""

from __future__ import annotations

import errno
import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from safetensors.torch import load_file

from varscale import records
from varscale.cache.reader import TokenCache
from varscale.cache.writer import write_cache
from varscale.data.dead_leaves import DeadLeaves
from varscale.data.loader import train_loader
from varscale.data.order import batch_indices
from varscale.evaluation.heldout import HeldOut, held_out
from varscale.models.shape import ladder_rule
from varscale.models.var import VAR
from varscale.records import CURVE_FILE, RecordError, read_curve, read_run
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.training import saving
from varscale.training.averages import PowerAverage
from varscale.training.checkpoints import CHECKPOINTS, Checkpoints, Owner, described
from varscale.training.feed import CacheFeed, ImageFeed
from varscale.training.generator_task import GeneratorTask, step_seed
from varscale.training.health import DIVERGED_FILE, DivergedError, write_divergence
from varscale.training.mirror import NoMirror
from varscale.training.notices import without_advice
from varscale.training.optim import Optimisation
from varscale.training.progressive import Progressive, Stage, StageCost
from varscale.training.recorder import Recorder, evaluation_steps
from varscale.training.saving import Saving

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
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=STEPS, max_epochs=-1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, plugins=[checkpoints], default_root_dir=folder,
        accumulate_grad_batches=parts,
        callbacks=[recorder, Saving(checkpoints, every_steps=2, limit_hours=limit_hours, ready=recorder.write_rows)],
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


def test_an_interrupted_run_continues_to_the_bit(tmp_path: Path, cache: TokenCache, tokenizer: VQAutoencoder) -> None:
    whole = make_task(tokenizer)
    train(tmp_path / "whole", whole, cache)
    with pytest.raises(RuntimeError, match="dies here"):
        train(tmp_path / "broken", make_task(tokenizer), cache, stop_at=4)
    assert read_run(tmp_path / "broken").status == "failed"
    assert newest_step(tmp_path / "broken") == 2
    resumed = make_task(tokenizer)
    train(tmp_path / "broken", resumed, cache)
    assert_equal_weights(whole, resumed)
    assert curve(tmp_path / "whole") == curve(tmp_path / "broken")
    assert {"grad_norm_mean", "grad_norm_max", "loss_spikes"} <= {row["metric"] for row in curve(tmp_path / "broken")}
    run = read_run(tmp_path / "broken")
    assert (run.status, run.images_seen, run.tokens_seen, run.flops_train) == ("finished", 24.0, 504.0, 2400.0)
    assert run.unique_images == 24.0 and run.val_images == 8.0


COARSE_FIRST = Optimisation(lr=0.01, warmup=0.2, knee=0.7, weight_decay_final=0.5)


def coarse_first(tokenizer: VQAutoencoder) -> GeneratorTask:
    """Two scales for three of the six steps, and a weight decay that moves."""
    task = make_task(tokenizer, optim=COARSE_FIRST, progressive=Progressive(first=1, until=0.7, ramp=0.5))
    assert [(stage.first_step, stage.scales) for stage in task.stages] == [(0, 2), (3, 3)]
    return task


def test_progressive_training_resumes_to_the_bit(tmp_path: Path, stored: TokenCache, tokenizer: VQAutoencoder) -> None:
    """From the middle of a stage."""
    whole = coarse_first(tokenizer)
    train(tmp_path / "whole", whole, stored)
    with pytest.raises(RuntimeError, match="dies here"):
        train(tmp_path / "broken", coarse_first(tokenizer), stored, stop_at=3)
    assert newest_step(tmp_path / "broken") == 2
    resumed = coarse_first(tokenizer)
    train(tmp_path / "broken", resumed, stored)
    assert_equal_weights(whole, resumed)
    assert curve(tmp_path / "whole") == curve(tmp_path / "broken")
    groups = whole.trainer.optimizers[0].param_groups
    assert [group["weight_decay"] for group in groups] == [pytest.approx(0.5), 0.0]


def test_a_stage_of_coarse_scales_is_recorded_as_what_it_costs(
    tmp_path: Path, stored: TokenCache, tokenizer: VQAutoencoder
) -> None:
    task = coarse_first(tokenizer)
    train(tmp_path, task, stored)
    run = read_run(tmp_path)
    images = 3.0 * BATCH
    assert (run.images_seen, run.tokens_seen, run.flops_train) == (24.0, images * (5 + 21), images * (10 + 100))
    rows = read_curve(tmp_path / CURVE_FILE)
    trained = {row["step"] for row in rows if (row["split"], row["metric"]) == ("train", "nats_per_token_avg")}
    assert trained == {"4", "5", "6"}  # no mean over all tokens before
    assert {row["step"] for row in rows if row["metric"] == "grad_norm_mean"} == set("123456")
    assert {row["scale"] for row in rows if row["split"] == "val" and row["step"] == "1"} >= {"0", "1", "2"}
    assert [float(row["tokens_seen"]) for row in rows if row["metric"] == "error_avg"] == [20, 40, 60, 144, 228, 312]


def test_the_newest_scale_comes_in_by_a_ramp(stored: TokenCache, tokenizer: VQAutoencoder) -> None:
    """As released: each token weighs 1 / L of all L tokens, those of the newest scale times the ramp."""
    task = make_task(tokenizer, drop_path=0.0)
    task.stages = (Stage(0, STEPS, 2, ramp_steps=4.0),)
    task.label_drop = 0.0
    task._trainer = SimpleNamespace(accumulate_grad_batches=1, global_step=0, global_rank=0, world_size=1)  # type: ignore[assignment]
    batch = stored.batch("train", torch.arange(BATCH).numpy())
    loss = task.training_step(batch, 0)
    nats_BK = task.model.loss(task.tokens(batch)).nats_BK.mean(0)
    torch.testing.assert_close(loss, (nats_BK[0] + 0.25 * nats_BK[1]) / 21)
    assert task.last_loss is None


def test_checkpointed_blocks_change_nothing_but_memory(stored: TokenCache, tokenizer: VQAutoencoder) -> None:
    """Drop path included: its draws are those of the first pass."""
    gradients, kept = [], []
    for checkpoint_blocks in (False, True):
        model = make_task(tokenizer, drop_path=0.5).model
        model.checkpoint_blocks = checkpoint_blocks
        batch = make_task(tokenizer).tokens(stored.batch("train", torch.arange(BATCH).numpy()))
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


def test_fp16_gradients_are_clipped_after_unscaling(tokenizer: VQAutoencoder) -> None:
    """A fused optimiser would unscale them only in its step, so it is not used there."""
    task = make_task(tokenizer)
    for precision, fused in (("16-mixed", False), ("bf16-mixed", True), ("32-true", True)):
        task._trainer = SimpleNamespace(precision=precision)  # type: ignore[assignment]
        assert task.configure_optimizers()["optimizer"].defaults["fused"] is fused


def test_ctrl_c_is_heard_between_two_steps(tmp_path: Path, stored: TokenCache, tokenizer: VQAutoencoder) -> None:
    """In the middle of a step there is no state worth saving; the next start saves and stops."""
    task, whole = make_task(tokenizer), make_task(tokenizer)
    train(tmp_path / "whole", whole, stored, parts=2, every=3)
    step = task.training_step

    def interrupted_in_step_3(batch: Any, batch_idx: int) -> Any:
        if (task.global_step, batch_idx) == (3, 6):
            signal.raise_signal(signal.SIGINT)
        return step(batch, batch_idx)

    before = signal.getsignal(signal.SIGINT)
    task.training_step = interrupted_in_step_3  # type: ignore[method-assign]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(tmp_path / "broken", task, stored, parts=2, every=3)
    assert signal.getsignal(signal.SIGINT) is before
    assert read_run(tmp_path / "broken").status == "stopped"
    assert newest_step(tmp_path / "broken") == 4
    resumed = make_task(tokenizer)
    train(tmp_path / "broken", resumed, stored, parts=2, every=3)
    assert_equal_weights(whole, resumed)
    assert curve(tmp_path / "whole") == curve(tmp_path / "broken")


def test_the_time_limit_leaves_room_for_a_step_and_a_checkpoint(
    tmp_path: Path,
    stored: TokenCache,
    tokenizer: VQAutoencoder,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step takes ten seconds of this clock: after three of them, two more would pass the limit of 45."""
    task = make_task(tokenizer)
    clock = SimpleNamespace(monotonic=lambda: 10.0 * task.global_step if task._trainer else 0.0)
    monkeypatch.setattr(saving, "time", clock)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(tmp_path, task, stored, limit_hours=45 / 3600)
    assert "the same command continues" in caplog.text
    assert read_run(tmp_path).status == "stopped" and newest_step(tmp_path) == 3
    monkeypatch.undo()
    train(tmp_path, make_task(tokenizer), stored, limit_hours=1.0)
    assert read_run(tmp_path).status == "finished"


def test_without_a_rhythm_checkpoints_take_one_percent_of_the_time(tmp_path: Path) -> None:
    by_clock = Saving(Checkpoints(tmp_path, OWNER))
    assert by_clock.due(7, now=10.0) and not by_clock.due(7, now=9.9)
    by_clock.saved_at, by_clock.last_save_s = 10.0, 3.0
    assert by_clock.due(7, now=310.0) and not by_clock.due(7, now=309.0)


def test_the_average_is_measured_beside_the_weights_and_resumes(
    tmp_path: Path, stored: TokenCache, tokenizer: VQAutoencoder
) -> None:
    whole = make_task(tokenizer, average_gamma=9.0)
    assert isinstance(whole.average, PowerAverage)
    train(tmp_path / "whole", whole, stored)
    with pytest.raises(RuntimeError, match="dies here"):
        train(tmp_path / "broken", make_task(tokenizer, average_gamma=9.0), stored, stop_at=4)
    resumed = make_task(tokenizer, average_gamma=9.0)
    train(tmp_path / "broken", resumed, stored)
    assert_equal_weights(whole, resumed)
    rows = curve(tmp_path / "broken")
    assert rows == curve(tmp_path / "whole")
    loss = {
        (row["split"], row["step"]): float(row["value"])
        for row in rows
        if row["metric"] == "nats_per_token_avg" and row["split"] != "train"
    }
    assert loss["val", "1"] == loss["val_raw", "1"] and loss["val", "6"] != loss["val_raw", "6"]
    assert read_run(tmp_path / "broken").val_nats_per_token_avg == loss["val", "6"]
    weights = load_file(tmp_path / "broken/model.safetensors")
    assert torch.equal(weights["head.weight"], resumed.evaluated.head.weight)
    assert not torch.equal(weights["head.weight"], resumed.model.head.weight)
    plain = make_task(tokenizer)
    train(tmp_path / "plain", plain, stored)
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), resumed.model.parameters(), strict=True))


def test_a_curve_that_lost_rows_is_not_continued(tmp_path: Path, stored: TokenCache, tokenizer: VQAutoencoder) -> None:
    with pytest.raises(RuntimeError, match="dies here"):
        train(tmp_path, make_task(tokenizer), stored, stop_at=4)
    path = tmp_path / CURVE_FILE
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))
    with pytest.raises(RecordError, match=r"4 rows up to step 2, but \d+ had been written"):
        train(tmp_path, make_task(tokenizer), stored)


def test_a_full_disk_is_said_once_and_no_row_is_lost(
    tmp_path: Path,
    stored: TokenCache,
    tokenizer: VQAutoencoder,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From step 1 to 4 the disk takes the first bytes of each file, then nothing."""
    task, whole = make_task(tokenizer), make_task(tokenizer)
    train(tmp_path / "whole", whole, stored)

    class Full:
        def __init__(self, file: Any):
            self.file = file

        def write(self, data: Any) -> int:
            if 1 <= task.global_step <= 4:
                self.file.write(bytes(data)[:7])
                self.file.flush()
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: Any) -> None:
            self.file.close()

    def opened(path: Any, mode: str = "r", **_: Any) -> Any:
        file = open(path, mode)  # noqa: SIM115
        return Full(file) if "b" in mode else file

    monkeypatch.setattr(records, "open", opened, raising=False)
    monkeypatch.setattr(Path, "open", opened)
    train(tmp_path / "full", task, stored)
    assert_equal_weights(whole, task)
    assert curve(tmp_path / "whole") == curve(tmp_path / "full")
    assert read_run(tmp_path / "full").status == "finished"
    refused = [record for record in caplog.records if "could not be written" in record.getMessage()]
    assert 1 <= len(refused) <= 2  # of the records, and of the checkpoints
    assert not list(tmp_path.rglob("*.tmp"))


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


def test_divergence_is_recorded(tmp_path: Path, stored: TokenCache, tokenizer: VQAutoencoder) -> None:
    task = make_task(tokenizer)
    with torch.no_grad():
        task.model.head.weight.fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"loss at step 0 is nan; lower optim\.lr"):
        train(tmp_path, task, stored)
    assert read_run(tmp_path).status == "diverged"


@pytest.mark.parametrize("part", ["loss", "gradient"])
def test_divergence_leaves_the_last_good_checkpoint_and_the_images(
    tmp_path: Path, stored: TokenCache, tokenizer: VQAutoencoder, part: str
) -> None:
    task = make_task(tokenizer)
    step = task.training_step

    def poisoned(batch: Any, batch_idx: int) -> Any:
        loss = step(batch, batch_idx)
        if task.global_step == 3:
            if part == "loss":
                task.health.losses[-1] = (3, torch.tensor(torch.inf), True)
            return loss * torch.nan
        return loss

    task.training_step = poisoned  # type: ignore[method-assign]
    with pytest.raises(DivergedError) as raised:
        train(tmp_path, task, stored, every=STEPS)
    write_divergence(tmp_path, raised.value, seed=5, batch=BATCH, size=32, checkpoint_step=newest_step(tmp_path))
    assert newest_step(tmp_path) == 2  # the one of step 4 was refused
    told = json.loads((tmp_path / DIVERGED_FILE).read_text())
    images, epochs = batch_indices(seed=5, step=3, batch=BATCH, size=32)
    assert (told["step"], told["images"], told["epochs"]) == (3, images.tolist(), epochs.tolist())
    assert told["checkpoint_step"] == 2 and told["grad_norm"] == "nan"
    assert told["loss"] == "inf" if part == "loss" else told["loss"] > 0
    finite = Checkpoints(tmp_path, OWNER).newest()
    assert finite is not None
    weights = torch.load(finite.path, weights_only=True)["state_dict"]
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


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
