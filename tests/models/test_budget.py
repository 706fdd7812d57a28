"""Step memory: weights and moments are exact, what comes and goes follows the settings, and what is measured fits."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from varscale.codes import CodeSpec
from varscale.models import budget
from varscale.models.budget import StepMemory, step_memory
from varscale.models.shape import ladder_rule
from varscale.models.var import VAR
from varscale.schedule import ScaleSchedule
from varscale.tokenizers.autoencoder import VQAutoencoder

SCHEDULE = ScaleSchedule.square(1, 2, 4, 8)


def model(depth: int = 2, *, checkpoint_blocks: bool = False) -> VAR:
    with torch.device("meta"):
        built = VAR(
            ladder_rule(64, depth), schedule=SCHEDULE, code=CodeSpec.index(256), latent_channels=8, num_classes=10
        )  # fmt: skip
    built.checkpoint_blocks = checkpoint_blocks
    return built


def memory(built: VAR, batch: int = 4, **settings: Any) -> StepMemory:
    return step_memory(built, batch, **({"dtype": torch.float32, "device_type": "cpu"} | settings))


def test_weights_moments_and_an_average() -> None:
    weights = 4 * sum(p.numel() for p in model().parameters())
    counted = memory(model(), averaged=True)
    assert (counted.weights, counted.states, counted.gradients) == (weights, 3 * weights, 0)
    assert memory(model()).states == 2 * weights
    assert counted.total == 4 * weights + counted.working + counted.libraries
    assert counted.working > weights  # the gradients are all there at the end, beside something else


def test_activations_grow_with_the_batch_and_shrink_with_bf16() -> None:
    one, two, four = (memory(model(), batch).working for batch in (8, 16, 32))
    assert four - two == pytest.approx(2 * (two - one), rel=0.02)
    assert memory(model(), 32, dtype=torch.bfloat16).working < 0.75 * four


def test_checkpointed_blocks_keep_their_inputs_only() -> None:
    batch = 32
    counted = [memory(model(depth, checkpoint_blocks=True), batch) for depth in (4, 12)]
    inputs = batch * SCHEDULE.num_tokens * 64 * 4
    weights = (counted[1].weights - counted[0].weights) / 8  # of a block: its gradients come while inputs go
    grown = (counted[1].working - counted[0].working) / 8
    assert min(inputs, weights) * 0.9 < grown < (inputs + weights) * 1.1
    assert counted[1].working < memory(model(12), batch).working / 3


@pytest.mark.parametrize("settings", [{}, {"passes": 2}, {"dtype": torch.bfloat16, "measured": 64}])
@pytest.mark.parametrize("checkpoint_blocks", [False, True])
@pytest.mark.parametrize("batch", [1, 32])
def test_a_deep_model_is_worked_out_from_shallow_ones(
    monkeypatch: pytest.MonkeyPatch, batch: int, checkpoint_blocks: bool, settings: dict[str, Any]
) -> None:
    counted = memory(model(7, checkpoint_blocks=checkpoint_blocks), batch, **settings)
    monkeypatch.setattr(budget, "RUN_DEPTHS", (2, 7))
    assert counted == memory(model(7, checkpoint_blocks=checkpoint_blocks), batch, **settings)


def test_passes_and_ddp_keep_their_gradients() -> None:
    alone = memory(model(), 32)
    for settings in ({"passes": 2}, {"strategy": "ddp", "devices": 2}):
        counted = memory(model(), 32, **settings)
        assert counted.gradients == counted.weights
        assert alone.working - counted.weights <= counted.working <= alone.working


def test_fsdp_divides_what_lasts() -> None:
    whole, share = memory(model(8), 32, strategy="ddp", devices=4), memory(model(8), 32, strategy="fsdp", devices=4)
    for name in ("weights", "states", "gradients"):
        assert getattr(share, name) == pytest.approx(getattr(whole, name) / 4, rel=1e-3)
    assert whole.working < share.working < whole.working + 2 * whole.weights


def test_a_large_measurement_can_be_the_peak() -> None:
    counted = memory(model(), 1, measured=256)
    logits = 256 * SCHEDULE.num_tokens * 256 * 4
    assert counted.measuring > logits and counted.total - memory(model(), 1).total > logits / 2


def test_a_tokenizer_stands_beside_the_model_and_encodes() -> None:
    def tokenizer() -> VQAutoencoder:
        with torch.device("meta"):
            return VQAutoencoder(resolution=32, schedule=str(SCHEDULE), vocabulary=256, latent_channels=8)

    weights = sum(t.nbytes for t in (*tokenizer().parameters(), *tokenizer().buffers()))
    alone = memory(model(), 2)
    beside = memory(model(), 2, tokenizer=tokenizer())
    assert beside.total == alone.total + weights and beside.encoding == 0
    few, more, most = (memory(model(), batch, tokenizer=tokenizer(), encodes=True).encoding for batch in (1, 2, 64))
    pixels = 3 * 32 * 32 * 4
    assert few > pixels and most - more >= 62 * (more - few) * 0.99 > 0
    held_out = memory(model(), 2, tokenizer=tokenizer(), encodes=True, measured=64)
    assert held_out.encoding == most


def test_of_a_run_on_a_cpu_the_whole_process_is_recorded() -> None:
    counted = memory(model())
    assert counted.of_run("cuda") == counted.total
    assert counted.of_run("cpu") == counted.total + budget.PROCESS
    counted = memory(model(), 32, measured=32)
    kept = min(counted.working_pieces, counted.measuring_pieces)  # beside the larger of the two
    assert counted.of_run("cpu") >= counted.total + budget.PROCESS + kept > counted.total + budget.PROCESS


def test_large_pieces_go_back_at_once() -> None:
    live = budget.LiveBytes()
    with FakeTensorMode(), live:
        small = torch.empty(budget.HEAP_PIECE // 4)
        large = torch.empty(budget.HEAP_PIECE // 4 + 1)
        assert live.now == small.nbytes + large.nbytes and live.pieces == live.pieces_now == small.nbytes
        del small, large
    assert live.now == live.pieces_now == 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what another allocator keeps is not known")
@pytest.mark.parametrize(
    ("precision", "checkpoint"),
    [pytest.param("bf16", False, marks=pytest.mark.slow), ("fp32", True)],
    ids=["bf16", "fp32, checkpointed"],
)
def test_what_is_measured_on_a_cpu_is_within_a_tenth(
    repository: Path, monkeypatch: pytest.MonkeyPatch, precision: str, checkpoint: bool
) -> None:
    monkeypatch.syspath_prepend(repository / "benchmarks")
    import bench_memory

    case = {"depth": 4, "batch": 4, "precision": precision, "checkpoint": checkpoint}
    estimated = bench_memory.estimate(bench_memory.VAR_256, "cpu", **case)
    command = [sys.executable, str(repository / "benchmarks" / "bench_memory.py"), "--one", json.dumps(case)]
    environment = os.environ | bench_memory.AT_ONCE | {"OMP_NUM_THREADS": "1"}
    measured = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)
    assert estimated == pytest.approx(measured, rel=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "checkpoint"), [("bf16", False), ("bf16", True), ("fp32", False)])
def test_what_is_measured_on_a_gpu_is_within_a_tenth(
    repository: Path, monkeypatch: pytest.MonkeyPatch, precision: str, checkpoint: bool
) -> None:
    monkeypatch.syspath_prepend(repository / "benchmarks")
    import bench_memory

    case = {"depth": 16, "batch": 16, "precision": precision, "checkpoint": checkpoint}
    estimated = bench_memory.estimate(bench_memory.VAR_256, "cuda", **case)
    command = [sys.executable, str(repository / "benchmarks" / "bench_memory.py"), "--device", "cuda"]
    measured = subprocess.run([*command, "--one", json.dumps(case)], check=True, stdout=subprocess.PIPE).stdout
    assert estimated == pytest.approx(int(measured), rel=0.1)
