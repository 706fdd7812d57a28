"""A training step of VAR-256 from cached ids, side by side with a plain reference of the same mathematics.

    python benchmarks/bench_against_reference.py [--threads 2] [--depths 4 6 8] [--batch 4] [--rounds 7] [--compile]

A step reads a batch from memory-mapped arrays, forward, backward, clip, AdamW with its groups: each in the way it would
be trained, ours as the Lightning task does it, the other as ``reference_var`` does. Both start from the same weights,
take turns in one run and must agree on the first loss. FLOPs by the ``dense`` rule (attention over all L^2 pairs, of
which ours computes 62 %); the peak is the best GEMM rate at the model's MLP shapes with the same threads and dtype,
measured before every round. Prints JSON, and a table to stderr.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from alternation import CPU, alternate, machine, markdown_table
from reference_var import ReferenceVAR, reference_adamw, reference_step

from varscale.codes import CodeSpec
from varscale.models.counting import train_flops_per_image
from varscale.models.var import VAR
from varscale.schedule import VAR_256
from varscale.tokenizers.tokens import TokenBatch
from varscale.training.device import matrix_peak_flops
from varscale.training.optim import Optimisation, build_adamw, clip_gradients

IMAGES, V, C, CLASSES = 64, 4096, 32, 1000
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
AGREE = {"fp32": 1e-4, "bf16": 5e-2}  # nats a token of the first loss
Batches = Callable[[], TokenBatch]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 6, 8])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="ours by torch.compile too (minutes to start)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows, results = [], []
    with tempfile.TemporaryDirectory() as folder:
        arrays = stored_tokens(Path(folder))
        for depth in options.depths:
            for precision in options.dtypes:
                result = measure(depth, precision, arrays, options)
                results.append(result)
                rows.append({name: value for name, value in result.items() if not isinstance(value, dict)})
    print(markdown_table(rows), file=sys.stderr)
    print(json.dumps({**vars(options), **machine(), "results": results}, indent=2))


def stored_tokens(folder: Path) -> dict[str, np.ndarray]:
    """Random ids and their inputs as the cache stores them: memory-mapped arrays."""
    rng = np.random.default_rng(0)
    arrays = {
        "ids": rng.integers(0, V, (IMAGES, VAR_256.num_tokens), dtype=np.uint16),
        "inputs": rng.standard_normal((IMAGES, VAR_256.num_tokens - 1, C), dtype=np.float32),
        "labels": rng.integers(0, CLASSES, IMAGES),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in arrays}


def batches(arrays: dict[str, np.ndarray], batch: int) -> Batches:
    """A function that reads a random batch; two of them read the same ones."""
    rng = np.random.default_rng(1)

    def read() -> TokenBatch:
        chosen = np.sort(rng.choice(IMAGES, batch, replace=False))
        return TokenBatch(
            torch.from_numpy(arrays["ids"][chosen].astype(np.int64)),
            torch.from_numpy(arrays["labels"][chosen]),
            torch.from_numpy(arrays["inputs"][chosen]),
        )

    return read


def build(depth: int) -> VAR:
    """VAR-256 of this depth, random weights."""
    torch.manual_seed(0)
    return VAR.by_depth(depth, schedule=VAR_256, code=CodeSpec.index(V), latent_channels=C, num_classes=CLASSES).train()


def autocast(precision: str, device: torch.device = CPU) -> AbstractContextManager[object]:
    """What mixed precision trains in."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def our_step(model: VAR, read: Batches, precision: str, device: torch.device = CPU) -> Callable[[], torch.Tensor]:
    """One step as ``GeneratorTask`` trains; returns the loss."""
    optim = Optimisation(lr=1e-4)
    optimizer, schedule = build_adamw(model, optim, lr_peak=optim.lr, steps=10_000)

    def step() -> torch.Tensor:
        batch = read().to(device)
        with autocast(precision, device):
            loss = model.loss(batch, label_drop=0.1).per_token_avg_B.mean()
        loss.backward()
        clip_gradients(model.parameters(), optim.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def plain_step(model: ReferenceVAR, read: Batches, precision: str) -> Callable[[], torch.Tensor]:
    """One step of the reference; returns the loss."""
    optimizer = reference_adamw(model, 1e-4)

    def step() -> torch.Tensor:
        batch = read()
        assert batch.inputs_BNC is not None
        return reference_step(
            model, optimizer, batch.inputs_BNC, batch.ids_BL, batch.labels_B, bf16=precision == "bf16"
        )

    return step


def peak_meter(
    dtype: torch.dtype, rows: int, width: int, device: torch.device = CPU
) -> tuple[Callable[[], None], list]:
    """A function that measures the best GEMM rate at the MLP's shapes, FLOP/s, and the list it adds to."""
    peaks: list[float] = []
    return lambda: peaks.append(matrix_peak_flops(device, dtype, rows=rows, width=width, seconds=0.2)), peaks


def agree(ours: VAR, plain: ReferenceVAR, batch: TokenBatch, precision: str) -> None:
    """Raise ``ValueError`` unless both give the same loss."""
    assert batch.inputs_BNC is not None
    with torch.no_grad(), autocast(precision):
        losses = [
            float(ours.eval().loss(batch).per_token_avg_B.mean()),
            float(plain.eval().loss(batch.inputs_BNC, batch.ids_BL, batch.labels_B)),
        ]
    ours.train(), plain.train()
    if abs(losses[0] - losses[1]) > AGREE[precision]:
        raise ValueError(
            f"{precision}: our loss is {losses[0]}, the reference's {losses[1]}; they compute other things"
        )


def measure(
    depth: int, precision: str, arrays: dict[str, np.ndarray], options: argparse.Namespace
) -> dict[str, object]:
    """Both at one size and dtype."""
    model = build(depth)
    plain = ReferenceVAR.of(model).train()
    agree(model, plain, batches(arrays, options.batch)(), precision)
    contestants = {
        "ours": our_step(model, batches(arrays, options.batch), precision),
        "reference": plain_step(plain, batches(arrays, options.batch), precision),
    }
    if options.compile:
        compiled = build(depth)
        compiled.compile()
        contestants["compiled"] = our_step(compiled, batches(arrays, options.batch), precision)
    meter, peaks = peak_meter(DTYPES[precision], options.batch * VAR_256.num_tokens, model.width)
    times = alternate(contestants, rounds=options.rounds, warmup=2, between=meter)
    flops, peak = options.batch * train_flops_per_image(model), statistics.median(peaks)
    row: dict[str, object] = {"depth": depth, "dtype": precision}
    for name, timing in times.items():
        row[f"{name} images/s"] = options.batch / timing.median
        row[f"{name} best"] = options.batch / timing.minimum
        row[f"{name} share of peak"] = flops / timing.median / peak
    row["peak GFLOP/s"] = peak / 1e9
    row["ratio"] = times["reference"].median / times["ours"].median
    row["ratio of best"] = times["reference"].minimum / times["ours"].minimum
    row["seconds"] = {name: timing.seconds for name, timing in times.items()}
    return row


if __name__ == "__main__":
    main()
