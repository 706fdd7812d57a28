"""Runs that several processes divide: the same images in the same order, the same random numbers, losses to rounding.

The processes are forks of one server that has imported everything: importing costs seconds each.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from runpy import run_path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils.data import DataLoader

from varscale.cache.reader import TokenCache
from varscale.cache.writer import write_cache
from varscale.data.dead_leaves import DeadLeaves
from varscale.data.loader import Share, as_it_is, train_loader, val_batches
from varscale.data.order import batch_indices
from varscale.evaluation.heldout import HeldOut, held_out
from varscale.models.shape import Shape
from varscale.models.var import VAR
from varscale.ranks import place
from varscale.records import CURVE_FILE, Run, read_curve, read_run
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.training.checkpoints import CHECKPOINTS, Checkpoints, Owner, described
from varscale.training.feed import CacheFeed
from varscale.training.generator_task import GeneratorTask
from varscale.training.health import DivergedError
from varscale.training.mirror import NoMirror
from varscale.training.notices import without_advice
from varscale.training.optim import Optimisation
from varscale.training.progressive import StageCost
from varscale.training.ranks import from_first
from varscale.training.recorder import Recorder
from varscale.training.saving import Saving
from varscale.training.strategy import build_strategy
from varscale.training.tokenizer_task import TokenizerTask
from varscale.training.trainer import build_trainer

STEPS, BATCH, SEED = 5, 8, 5
ARGUMENTS = "ARGUMENTS_OF_ONE_RANK"
PRELOADED = ("pytest", "lightning", "varscale.training.recorder", "varscale.training.tokenizer_task")
Together = Callable[..., list[dict[str, Any]]]


def source() -> DeadLeaves:
    return DeadLeaves(resolution=16, num_classes=3, val_size=10)


def new_tokenizer(**settings: Any) -> VQAutoencoder:
    torch.manual_seed(0)
    sizes = {"resolution": 16, "schedule": "1-2-4", "vocabulary": 16, "latent_channels": 4, "width": 8, "blocks": 1}
    return VQAutoencoder(**sizes, **settings)


def new_task(lr: float = 0.01, average_gamma: float | None = 9.0, checkpoint_blocks: bool = False) -> GeneratorTask:
    tokenizer = new_tokenizer().eval()
    torch.manual_seed(1)
    model = VAR(
        Shape(depth=3, width=32, heads=2, drop_path=0.5), schedule=tokenizer.schedule, code=tokenizer.code,
        latent_channels=tokenizer.latent_channels, num_classes=3, adaln_gate_std=1.0,
    )  # fmt: skip
    model.checkpoint_blocks = checkpoint_blocks
    return GeneratorTask(
        model, tokenizer, optim=Optimisation(lr=lr, warmup=0.2, clip=0.5), steps=STEPS, batch=BATCH, seed=SEED,
        label_drop=0.3, average_gamma=average_gamma,
    )  # fmt: skip


def new_run(task: GeneratorTask, devices: int) -> Run:
    return Run(
        schema_version=1, run_id="id", created_utc="now", study="s", design="d", status="running",
        varscale_version="0", config_path="c", family="var", tokenizer_id="t", dataset_id="d", seed=SEED,
        flops_train=0.0, flops_rule="dense", resolution_px=16, frames=1, schedule="1-2-4", num_tokens=21,
        code="index(16)", depth=3, width=32, heads=2, params_token=1, params_image=1, params_blocks=2, params_embed=1,
        params_head=1, params_total=4, batch_images=BATCH, steps=STEPS, lr_peak=task.lr_peak, weight_decay=0.05,
        warmup_steps=1, lr_schedule="linear", label_drop=0.3, images_seen=0.0, unique_images=0.0, tokens_seen=0.0,
        device="cpu", num_devices=devices, precision="32-true",
    )  # fmt: skip


class Stops(lightning.Callback):
    """Ends the process's training after a step, as a signal would; only one of the processes hears it."""

    def __init__(self, saving: Saving, step: int) -> None:
        self.saving, self.step = saving, step

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and place()[0] == place()[1] - 1:
            self.saving.interrupted = True


def train(
    folder: Path,
    cache: Path,
    *,
    division: str = "auto",
    passes: int = 1,
    stop_at: int | None = None,
    spoiled: bool = False,
    checkpoint_blocks: bool = False,
) -> dict[str, Any]:
    """Train as one of the processes, from the newest checkpoint in ``folder`` on.

    Returns the images of every batch, and weights, average, records and the reason of an early end.
    """
    folder.mkdir(exist_ok=True, parents=True)
    rank, world = place()
    task, tokens, images = new_task(checkpoint_blocks=checkpoint_blocks), TokenCache.open(cache), []
    whole_batch = tokens.batch

    spoil = spoiled and rank == world - 1

    def noted(split: str, indices: np.ndarray, draw: Any = 0) -> Any:
        if split == "train":
            images.append(indices.tolist())
        read = whole_batch(split, indices, draw)  # type: ignore[arg-type]
        if spoil and split == "train":
            read.inputs_BNC.fill_(float("nan"))
        return read

    tokens.batch = noted  # type: ignore[assignment, method-assign]
    feed = CacheFeed(tokens, task.tokenizer)

    def evaluate(task: GeneratorTask, model: VAR) -> HeldOut:
        return held_out(model, feed.held_out(batch=3, limit=None), task.tokens)

    checkpoints = Checkpoints(folder, Owner("id", "data", "tokenizer"))
    checkpoint = from_first(checkpoints.newest)
    first = 0 if checkpoint is None else checkpoint.step
    recorder = Recorder(
        folder, new_run(task, world), costs=(StageCost(task.stages[0], 21, 10.0),), train_images=48, evaluate=evaluate,
        steps_to_evaluate=tuple(range(1, STEPS + 1)), mirror=NoMirror(),
    )  # fmt: skip
    saving = Saving(checkpoints, every_steps=1, ready=recorder.write_rows)
    stops = [] if stop_at is None else [Stops(saving, stop_at)]
    ended = None
    with without_advice():
        trainer = build_trainer(
            folder, checkpoints, [recorder, saving, *stops], steps=STEPS, accelerator="cpu", devices=world,
            division=division, accumulate_grad_batches=passes,
        )  # fmt: skip
        loader = feed.training(
            seed=SEED, batch=BATCH, first_step=first, last_step=STEPS, share=Share(rank, world, passes)
        )
        try:
            trainer.fit(task, loader, ckpt_path=None if checkpoint is None else checkpoint.path, weights_only=True)
        except (SystemExit, DivergedError) as error:
            ended = type(error).__name__
    mesh = task.device_mesh and task.device_mesh.ndim
    return {"images": images, "ended": ended, "first": first, "mesh": mesh} | tensors(task)


def tensors(task: GeneratorTask) -> dict[str, Any]:
    """Weights and average, whole."""
    from varscale.training.shards import whole_weights

    assert task.average is not None
    return {"weights": dict(whole_weights(task.model)), "average": dict(whole_weights(task.average.module))}


def stage1(folder: Path, update: str) -> dict[str, Any]:
    """Train a tokenizer for a few steps: k-means start, restarts, moving averages."""
    rank, world = place()
    tokenizer = new_tokenizer(codebook_update=update, restart_below=0.8, codebook_decay=0.5)
    optim = Optimisation(lr=5e-3, weight_decay=0.0, warmup=0.0)
    task = TokenizerTask(tokenizer, steps=STEPS, optim=optim, ema_decay=0.9, seed=SEED)
    batches = val_batches(source(), batch=3)
    mine = [batches[number] for number in range(rank, len(batches), world)]
    with without_advice():
        trainer = build_trainer(
            folder, Checkpoints(folder, Owner("id", "data")), [], steps=STEPS, accelerator="cpu", devices=world,
            unused_parameters=tokenizer.pyramid.idle_refiners,
        )  # fmt: skip
        loader = train_loader(source(), seed=SEED, batch=BATCH, first_step=0, last_step=STEPS, share=Share(rank, world))
        trainer.fit(task, loader)
        trainer.validate(task, DataLoader(mine, batch_size=None, collate_fn=as_it_is), verbose=False)  # type: ignore[arg-type]
    return {"tokenizer": tokenizer.state_dict(), "metrics": task.metrics, "psnr": task.report.scales[-1].psnr_db}  # type: ignore[union-attr]


def of_one_rank(rank: int, world: int, folder: Path, jobs: list[tuple[str, dict[str, Any]]]) -> None:
    """Do the jobs as one of ``world`` processes; what each returns goes into a file."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    os.environ["LOCAL_RANK"] = str(rank)  # tells Lightning that the processes are there already
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.save([globals()[name](**arguments) for name, arguments in jobs], folder / f"{rank}.pt")
    dist.barrier()
    os._exit(0)  # not the test run's own ending


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Together:
    """Does jobs in several processes; returns, by job, what each process made of it."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))

    def call(world: int, *jobs: tuple[str, dict[str, Any]]) -> list[list[dict[str, Any]]]:
        folder = tmp_path_factory.mktemp("processes")
        processes: list[BaseProcess] = [
            # This file by its path: whether a process can import it by name depends on how pytest was started.
            context.Process(
                target=run_path, args=(__file__, {ARGUMENTS: (rank, world, folder, list(jobs))}, "__main__")
            )
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            process.kill()
        assert [process.exitcode for process in processes] == [0] * world
        of_ranks = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]
        return [[results[number] for results in of_ranks] for number in range(len(jobs))]

    return call


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "cache"
    sizes = {"train_images": 48, "val_images": 10, "shard_images": 16, "batch": 8, "store_inputs": True}
    write_cache(new_tokenizer().eval(), source(), folder, **sizes, progress=False)  # type: ignore[arg-type]
    return folder


@dataclass(frozen=True)
class Compared:
    """Runs of the same configuration: of one process, of two (DDP; and FSDP2, ended after 3 steps), of four."""

    alone: dict[str, Any]
    two: list[dict[str, Any]]
    four: list[dict[str, Any]]
    ended: list[dict[str, Any]]
    continued: list[dict[str, Any]]
    tokenizer: dict[str, Any]
    tokenizer_of_two: list[dict[str, Any]]
    root: Path


@pytest.fixture(scope="module")
def runs(together: Together, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    root = tmp_path_factory.mktemp("runs")
    two, ended, tokenizer_of_two = together(
        2,
        ("train", {"folder": root / "two", "cache": cache}),
        ("train", {"folder": root / "sharded", "cache": cache, "division": "fsdp", "stop_at": 3}),
        ("stage1", {"folder": root / "stage1", "update": "ema"}),
    )
    for name in ("on_four", "on_one", "damaged"):
        shutil.copytree(root / "sharded", root / name)
    four, continued = together(
        4,
        ("train", {"folder": root / "four", "cache": cache}),
        ("train", {"folder": root / "on_four", "cache": cache, "division": "fsdp"}),
    )
    return Compared(
        alone=train(root / "alone", cache),
        two=two,
        four=four,
        ended=ended,
        continued=continued,
        tokenizer=stage1(root / "stage1", "ema"),
        tokenizer_of_two=tokenizer_of_two,
        root=root,
    )


def losses(folder: Path) -> dict[tuple[str, ...], float]:
    """The curve without what a clock decides."""
    rows = [row for row in read_curve(folder / CURVE_FILE) if row["metric"] != "images_per_s"]
    return {(row["step"], row["split"], row["metric"], row["scale"]): float(row["value"]) for row in rows}


def assert_same_training(folder: Path, result: dict[str, Any], runs: Compared) -> None:
    """Weights, average and every row of the curve are those of one process, to rounding."""
    for kind in ("weights", "average"):
        assert result[kind].keys() == runs.alone[kind].keys()
        for name, tensor in runs.alone[kind].items():
            torch.testing.assert_close(
                result[kind][name], tensor, atol=2e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )
    assert losses(folder) == pytest.approx(losses(runs.root / "alone"), rel=2e-6, abs=1e-9)


def test_the_images_and_their_order_are_those_of_one_process(runs: Compared) -> None:
    wanted = [batch_indices(seed=SEED, step=step, batch=BATCH, size=48)[0].tolist() for step in range(STEPS)]
    assert runs.alone["images"] == wanted
    for ranks in (runs.two, runs.four):
        assert [[i for rank in ranks for i in rank["images"][step]] for step in range(STEPS)] == wanted


@pytest.mark.parametrize(("name", "world"), [("two", 2), ("four", 4)])
def test_weights_and_losses_are_those_of_one_process(runs: Compared, name: str, world: int) -> None:
    """Label drop, drop path, clipping, the average of the weights and the held-out loss are in it."""
    assert_same_training(runs.root / name, getattr(runs, name)[0], runs)
    record = read_run(runs.root / name)
    assert (record.status, record.num_devices, record.val_images) == ("finished", world, 10)


def test_one_process_is_asked_to_stop_and_all_do_at_the_same_step(runs: Compared) -> None:
    assert [rank["ended"] for rank in runs.ended] == ["SystemExit"] * 2
    assert read_run(runs.root / "sharded").status == "stopped"
    newest = described(runs.root / "sharded" / CHECKPOINTS)[-1]
    assert newest.step == 3 and newest.path.is_dir() and newest.flaw() is None
    assert [rank["mesh"] for rank in runs.ended] == [1, 1]


def test_shards_of_two_processes_continue_on_four(runs: Compared) -> None:
    assert [rank["first"] for rank in runs.continued] == [3] * 4
    assert_same_training(runs.root / "on_four", runs.continued[0], runs)


def test_shards_of_two_processes_continue_on_one_device(runs: Compared, cache: Path) -> None:
    result = train(runs.root / "on_one", cache)
    assert result["first"] == 3
    assert_same_training(runs.root / "on_one", result, runs)


def test_damaged_shards_are_said_and_those_before_are_used(
    runs: Compared, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = runs.root / "damaged"
    shard = next((folder / CHECKPOINTS / "step_00000003.ckpt").glob("*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    result = train(folder, cache, passes=2)  # and in other parts than before
    assert result["first"] == 2 and "is damaged" in caplog.text
    assert_same_training(folder, result, runs)


def test_two_processes_train_the_tokenizer_of_one(runs: Compared) -> None:
    """k-means start, restarts, moving averages and the measured reconstruction."""
    for name, tensor in runs.tokenizer["tokenizer"].items():
        torch.testing.assert_close(runs.tokenizer_of_two[0]["tokenizer"][name], tensor, atol=1e-5, rtol=1e-4)
        assert torch.equal(runs.tokenizer_of_two[0]["tokenizer"][name], runs.tokenizer_of_two[1]["tokenizer"][name])
    assert sum(row["value"] for row in runs.tokenizer["metrics"] if row["metric"] == "restarted") > 0
    measured = [
        [row for row in each["metrics"] if row["metric"] != "images_per_s"]
        for each in (runs.tokenizer, *runs.tokenizer_of_two)
    ]
    for row, *others in zip(*measured, strict=True):
        for other in others:
            assert other == row | {"value": pytest.approx(row["value"], rel=1e-4)}


@pytest.mark.slow
def test_a_checkpoint_of_one_process_continues_sharded_and_in_parts(
    together: Together, runs: Compared, cache: Path
) -> None:
    ended = train(runs.root / "from_file", cache, stop_at=2)
    assert ended["ended"] == "SystemExit" and described(runs.root / "from_file" / CHECKPOINTS)[-1].path.is_file()
    continued, in_parts = together(
        2,
        ("train", {"folder": runs.root / "from_file", "cache": cache, "division": "fsdp", "checkpoint_blocks": True}),
        ("train", {"folder": runs.root / "in_parts", "cache": cache, "passes": 2, "checkpoint_blocks": True}),
    )
    assert [rank["first"] for rank in continued] == [2, 2]
    assert_same_training(runs.root / "from_file", continued[0], runs)
    assert_same_training(runs.root / "in_parts", in_parts[0], runs)


@pytest.mark.slow
def test_all_processes_end_when_one_diverges(together: Together, runs: Compared, cache: Path) -> None:
    jobs = [
        ("train", {"folder": runs.root / f"spoiled_{division}", "cache": cache, "division": division, "spoiled": True})
        for division in ("auto", "fsdp")
    ]
    for job, ranks in zip(jobs, together(2, *jobs), strict=True):
        assert [rank["ended"] for rank in ranks] == ["DivergedError"] * 2
        assert read_run(job[1]["folder"]).status == "diverged"


@pytest.mark.slow
def test_a_codebook_trained_by_gradient_is_that_of_one_process(together: Together, runs: Compared) -> None:
    (two,) = together(2, ("stage1", {"folder": runs.root / "gradient", "update": "gradient"}))
    for name, tensor in stage1(runs.root / "gradient", "gradient")["tokenizer"].items():
        torch.testing.assert_close(two[0]["tokenizer"][name], tensor, atol=1e-5, rtol=1e-4)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="use a multiple of 4"):
        Share(0, 2, 2).batch(6)
    with pytest.raises(ValueError, match=r"trainer\.strategy is 'zero'; it must be one of auto, ddp, fsdp"):
        build_strategy("zero", accelerator="cpu", devices=1, nodes=1)


if __name__ == "__main__":
    of_one_rank(*globals()[ARGUMENTS])
