"""One run on 1, 2 and 4 processes: image order, largest difference of loss and weights, seconds a step.

    python benchmarks/bench_distributed.py [--worlds 1 2 4] [--strategies ddp fsdp] [--steps 200] [--out out.json]

Trains VAR of depth 2 on cached dead leaves (the tokenizer hardly trained: only its tokens are needed), in float32 and
bf16, as ``varscale train`` does, with label drop and drop path, through torchrun on gloo. The first number of processes
is what the others are compared with. Each process notes the images of its parts; put together they are compared one by
one. The processes share the machine's cores, one thread each: on two cores four are slower, which says nothing of GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from alternation import machine, markdown_table
from safetensors.numpy import load_file
from tqdm import tqdm

from varscale.app.cli import main as varscale
from varscale.cache.reader import TokenCache
from varscale.records import CURVE_FILE, read_curve, read_run

STUDY = ["study=distributed", "logger.mode=disabled", "data=dead_leaves", "model=depth", "model.depth=2"]
STUDY += ["model.drop_path=0.2", "stage1.steps=20", "stage1.batch=16", "stage1.val_images=32"]
STUDY += ["cache.train_images=2000", "cache.val_images=200", "train.val_images=200", "train.val_batch=25"]
WORKER = "--worker"  # then the folder for the image numbers, and the overrides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--strategies", nargs="+", choices=["ddp", "fsdp"], default=["ddp", "fsdp"])
    parser.add_argument("--precisions", nargs="+", default=["32-true", "bf16-mixed"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("distributed.json"))
    options = parser.parse_args()
    first = ("auto", options.worlds[0])
    others = list(product(options.strategies, options.worlds[1:]))
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        study = [*STUDY, f"paths.outputs={name}", f"train.batch={options.batch}", f"train.steps={options.steps}"]
        for verb in ("tokenizer", "cache"):
            run([sys.executable, "-m", "varscale", verb, *study])
        for precision, (strategy, world) in tqdm(list(product(options.precisions, [first, *others])), unit="run"):
            folder, reference = (Path(name) / f"{precision}-{s}-{w}" for s, w in ((strategy, world), first))
            overrides = [f"trainer.precision={precision}", f"trainer.strategy={strategy}", f"trainer.devices={world}"]
            overrides += ["train.evaluations=10", f"hydra.run.dir={folder}"]
            launch = [sys.executable]
            if world > 1:
                launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
            run([*launch, __file__, WORKER, str(folder), *study, *overrides])
            rows.append(
                {
                    "precision": precision,
                    "strategy": strategy,
                    "processes": world,
                    **compared(folder, reference, world, first[1]),
                }
            )
            options.out.write_text(json.dumps({**machine(), "steps": options.steps, "rows": rows}, indent=2))
    print(markdown_table(rows))


def run(command: list[str]) -> None:
    """Run to the end; what it says is shown when it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}")


def compared(folder: Path, reference: Path, world: int, first_world: int) -> dict[str, object]:
    """Order, differences and speed of a run against another."""
    ours, theirs = losses(folder), losses(reference)
    weights, wanted = (load_file(path / "model.safetensors") for path in (folder, reference))
    record = read_run(folder)
    assert record.wall_s is not None
    return {
        "same images in the same order": images(folder, world) == images(reference, first_world),
        "largest difference of loss (nat/token)": max(abs(ours[key] - theirs[key]) for key in theirs),
        "of a weight": max(float(np.abs(weights[name] - wanted[name]).max()) for name in wanted),
        "final loss": record.val_nats_per_token_avg,
        "ms a step": 1e3 * record.wall_s / record.steps,
    }


def losses(folder: Path) -> dict[tuple[str, str, str], float]:
    """Every loss of the curve, training and held out, of all tokens and of each scale."""
    rows = [row for row in read_curve(folder / CURVE_FILE) if row["metric"].startswith("nats")]
    return {(row["step"], f"{row['split']} {row['metric']}", row["scale"]): float(row["value"]) for row in rows}


def images(folder: Path, world: int) -> list[int]:
    """The numbers of the images, in the order of the whole batches."""
    of_ranks = [json.loads((folder / f"images-{rank}.json").read_text()) for rank in range(world)]
    return [image for parts in zip(*of_ranks, strict=True) for part in parts for image in part]


def worker(folder: Path, overrides: list[str]) -> int:
    """``varscale train`` as one of the processes, which notes the images it trains on."""
    noted: list[list[int]] = []
    read = TokenCache.batch

    def batch(self: TokenCache, split: Any, indices: np.ndarray, draw: Any = 0) -> Any:
        if split == "train":
            noted.append(indices.tolist())
        return read(self, split, indices, draw)

    TokenCache.batch = batch  # type: ignore[method-assign]
    code = varscale(["train", *overrides])
    # The first is read for the scale of the inputs, by rank 0 alone.
    rank = int(os.environ.get("RANK", "0"))
    (folder / f"images-{rank}.json").write_text(json.dumps(noted[1:] if rank == 0 else noted))
    return code


if __name__ == "__main__":
    if sys.argv[1:2] == [WORKER]:
        sys.exit(worker(Path(sys.argv[2]), sys.argv[3:]))
    main()
