"""Memory of a training step: estimated beforehand, measured, and their ratio.

    python benchmarks/bench_memory.py [--depths 2 4 6 8] [--batches 1 4 16] [--precisions fp32 bf16] [--out memory.json]
    python benchmarks/bench_memory.py --device cuda --depths 16 20 24 30 --batches 8 32 64

VAR-256 by depth. Each case is a process of its own: on a CPU what its resident memory rises to in two steps above
what it was before the model was built (a small model has run by then, so that libraries are loaded), on a GPU what
torch has allocated at most. On Linux glibc is told to give freed memory back at once; ``as run`` is without that: what
its heap keeps for later comes on top. A case whose estimate exceeds ``--limit`` GB is left out, and said.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from itertools import product
from pathlib import Path

import torch
from alternation import machine, markdown_table
from bench_against_reference import CLASSES, C, V
from tqdm import tqdm

from varscale.codes import CodeSpec
from varscale.models.budget import step_memory
from varscale.models.shape import depth_rule
from varscale.models.var import VAR
from varscale.schedule import VAR_256, ScaleSchedule
from varscale.tokenizers.tokens import TokenBatch
from varscale.training.device import peak_memory_bytes
from varscale.training.optim import Optimisation, build_adamw, clip_gradients

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
STEPS = 2  # the second has the moments from its start
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 4, 6, 8])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--precisions", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--checkpoint", type=int, nargs="+", choices=[0, 1], default=[0, 1])
    parser.add_argument("--schedule", type=ScaleSchedule.parse, default=VAR_256)
    parser.add_argument("--limit", type=float, help="GB; by default 16 on a CPU, all that a GPU has")
    parser.add_argument("--out", type=Path, default=Path("memory.json"))
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.schedule, options.device, **options.one)))
        return
    limit = options.limit
    if limit is None:
        limit = torch.cuda.mem_get_info()[1] / 1e9 if options.device == "cuda" else 16.0
    rows: list[dict[str, object]] = []
    cases = product(options.depths, options.batches, options.precisions, options.checkpoint)
    for depth, batch, precision, checkpoint in tqdm(list(cases), unit="case"):
        case = {"depth": depth, "batch": batch, "precision": precision, "checkpoint": bool(checkpoint)}
        estimated = estimate(options.schedule, options.device, **case)
        if estimated > 1e9 * limit:
            print(f"left out: {case}, {estimated / 1e9:.1f} GB of {limit:.1f}", file=sys.stderr)
            continue
        command = [sys.executable, __file__, "--device", options.device, "--schedule", str(options.schedule)]
        sizes = {"estimated GB": estimated / 1e9}
        for name, variables in {"measured GB": AT_ONCE, "as run GB": {}}.items():
            answer = subprocess.run(
                [*command, "--one", json.dumps(case)], check=True, stdout=subprocess.PIPE, env=os.environ | variables
            )
            sizes[name] = int(answer.stdout) / 1e9
            if options.device == "cuda":  # no heap of glibc's
                break
        rows.append({**case, **sizes, "ratio": sizes["estimated GB"] / sizes["measured GB"]})
        options.out.write_text(json.dumps({**machine(torch.device(options.device)), "rows": rows}, indent=2))
    print(markdown_table(rows))


def build(schedule: ScaleSchedule, depth: int, checkpoint: bool, device: str) -> VAR:
    with torch.device(device):
        sizes = {"latent_channels": C, "num_classes": CLASSES}
        model = VAR(depth_rule(depth), schedule=schedule, code=CodeSpec.index(V), **sizes).train()
    model.checkpoint_blocks = checkpoint
    return model


def estimate(schedule: ScaleSchedule, device: str, *, depth: int, batch: int, precision: str, checkpoint: bool) -> int:
    """Bytes, beforehand."""
    model = build(schedule, depth, checkpoint, "meta")
    return step_memory(model, batch, dtype=DTYPES[precision], device_type=device).total


def measure(schedule: ScaleSchedule, device: str, *, depth: int, batch: int, precision: str, checkpoint: bool) -> int:
    """Bytes, in this process."""
    train(ScaleSchedule.square(1, 2, 3), device, 1, 1, precision, False)
    before = resident() if device == "cpu" else 0
    train(schedule, device, depth, batch, precision, checkpoint)
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return int(peak_memory_bytes(torch.device("cpu"))) - before


def train(schedule: ScaleSchedule, device: str, depth: int, batch: int, precision: str, checkpoint: bool) -> None:
    """Two steps as ``GeneratorTask`` trains."""
    model = build(schedule, depth, checkpoint, device)
    optim = Optimisation(lr=1e-4)
    optimizer, _ = build_adamw(model, optim, lr_peak=1e-4, steps=STEPS)
    L, n_0, dtype = schedule.num_tokens, schedule.tokens_per_scale[0], DTYPES[precision]
    for _ in range(STEPS):
        tokens = TokenBatch(
            torch.randint(V, (batch, L)), torch.randint(CLASSES, (batch,)), torch.randn(batch, L - n_0, C)
        ).to(device)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = model.loss(tokens, label_drop=0.1).per_token_avg_B.mean()
        loss.backward()
        clip_gradients(model.parameters(), optim.clip)
        optimizer.step()
        optimizer.zero_grad()


def resident() -> int:
    """Bytes of this process in memory now."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    return int(peak_memory_bytes(torch.device("cpu")))


if __name__ == "__main__":
    main()
