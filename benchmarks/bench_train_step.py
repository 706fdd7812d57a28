"""Train-step throughput of the d = 6, 680-token VAR from a token cache: images/s and share of the matrix peak.

    python benchmarks/bench_train_step.py [--threads 2] [--batch 8] [--steps 5] [--compile]

A step is what training does: read a batch from a memory-mapped cache, forward, backward, clip, AdamW. FLOPs by the
``dense`` rule. The peak is the best GEMM rate at the model's MLP shapes with the same threads and dtype, measured
between the steps of the same run, because a shared machine is noisy. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from varscale.codes import CodeSpec
from varscale.models.counting import count_parameters, train_flops_per_image
from varscale.models.var import VAR
from varscale.schedule import VAR_256
from varscale.tokenizers.tokens import TokenBatch
from varscale.training.device import matrix_peak_flops
from varscale.training.optim import Optimisation, build_adamw

IMAGES, V, C = 64, 4096, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        cache = stored_tokens(Path(folder))
        results = [measure(dtype, cache, options) for dtype in (torch.float32, torch.bfloat16)]
    print(json.dumps({**vars(options), "torch": torch.__version__, "results": results}, indent=2))


def stored_tokens(folder: Path) -> dict[str, np.ndarray]:
    """Random ids and their inputs as the cache stores them: memory-mapped arrays."""
    rng = np.random.default_rng(0)
    arrays = {
        "ids": rng.integers(0, V, (IMAGES, VAR_256.num_tokens), dtype=np.uint16),
        "inputs": rng.standard_normal((IMAGES, VAR_256.num_tokens - 1, C), dtype=np.float32),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in arrays}


def measure(dtype: torch.dtype, cache: dict[str, np.ndarray], options: argparse.Namespace) -> dict[str, object]:
    """Median time of a step, with the peak measured before every step."""
    torch.manual_seed(0)
    model = VAR.by_depth(
        options.depth, schedule=VAR_256, code=CodeSpec.index(V), latent_channels=C, num_classes=1000
    ).train()
    optim = Optimisation(lr=1e-4)
    optimizer, schedule = build_adamw(model, optim, lr_peak=1e-4, steps=10_000)
    if options.compile:
        model.compile()
    rng = np.random.default_rng(0)
    cpu, rows = torch.device("cpu"), options.batch * VAR_256.num_tokens
    seconds, peaks = [], []
    for step in range(options.steps + 2):
        peaks.append(matrix_peak_flops(cpu, dtype, rows=rows, width=model.width, seconds=0.3))
        started = time.perf_counter()
        chosen = np.sort(rng.integers(0, IMAGES, options.batch))
        batch = TokenBatch(
            torch.from_numpy(cache["ids"][chosen].astype(np.int64)),
            torch.from_numpy(rng.integers(0, 1000, options.batch)),
            torch.from_numpy(cache["inputs"][chosen]),
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model.loss(batch, label_drop=0.1).per_token_avg_B.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step >= 2:  # the first ones warm up
            seconds.append(time.perf_counter() - started)
    peak, median = statistics.median(peaks), statistics.median(seconds)
    flops = options.batch * train_flops_per_image(model)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "params_total": count_parameters(model).params_total,
        "images_per_s": options.batch / median,
        "step_s": median,
        "step_s_all": seconds,
        "achieved_gflops_dense": flops / median / 1e9,
        "matrix_peak_gflops": peak / 1e9,
        "share_of_peak": flops / median / peak,
    }


if __name__ == "__main__":
    main()
