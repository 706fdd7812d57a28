"""One optimiser step of the 2.0B VAR (d = 30) on a CPU in less than 24 GiB: the moments of AdamW live on disk.

    python benchmarks/step_d30.py [--depth 30] [--batch 1] [--threads 2] [--folder DIR]

Weights, gradients and two moments of 2,010,020,356 float32 parameters are 8.0 GB each, 32 GB in all. Weights and
gradients stay in memory (16.1 GB, 15.0 GiB), because the clip at norm 2 needs every gradient before the first update.
The moments, 16.1 GB, are files: AdamW takes one parameter at a time, with its moments, and frees its gradient. Blocks
are computed again in backward (``checkpoint_blocks``), so an image's activations take a fraction of a GB. Nothing is
approximated: two such steps equal two of the ordinary fused AdamW to the bit (tests/training/test_step_d30.py).

Random ids and inputs. Prints JSON: seconds of each part, peak resident memory, loss before and after.
Needs at d = 30: 16.1 GB of free disk; 5.8 TFLOP an image by the ``dense`` rule, a third more in fact.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from varscale.codes import CodeSpec
from varscale.models.counting import train_flops_per_image
from varscale.models.var import VAR
from varscale.schedule import VAR_256
from varscale.tokenizers.tokens import TokenBatch
from varscale.training.device import peak_memory_bytes
from varscale.training.groups import parameter_groups
from varscale.training.optim import Optimisation, clip_gradients

V, C, CLASSES = 4096, 32, 1000
MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamWOnDisk:
    """AdamW over the groups of ``parameter_groups``, its moments in one file a parameter.

    Args:
        folder: of the files; empty before the first step.
    """

    def __init__(self, model: nn.Module, optim: Optimisation, folder: Path, *, lr: float) -> None:
        self.optim, self.folder, self.lr, self.steps = optim, folder, lr, 0
        self.parameters: list[tuple[nn.Parameter, float]] = [
            (parameter, group["weight_decay"])
            for group in parameter_groups(model, optim.weight_decay)
            for parameter in group["params"]
        ]

    def step(self) -> None:
        """Update every parameter and free its gradient."""
        for i, (parameter, decay) in enumerate(tqdm(self.parameters, desc="AdamW on disk", unit="tensor")):
            adamw = torch.optim.AdamW(
                [parameter], lr=self.lr, betas=self.optim.betas, eps=self.optim.eps, weight_decay=decay, fused=True
            )
            path = self.folder / f"{i}.f32"
            if self.steps:
                stored = torch.from_numpy(np.fromfile(path, np.float32)).view(2, *parameter.shape)
                state: dict[str, Tensor] = dict(zip(MOMENTS, stored, strict=True))
                adamw.state[parameter] = {"step": torch.tensor(float(self.steps)), **state}
            adamw.step()
            with path.open("wb") as file:
                for name in MOMENTS:
                    adamw.state[parameter][name].numpy().tofile(file)
            parameter.grad = None
        self.steps += 1


def build(depth: int, seed: int = 0) -> VAR:
    """VAR-256 of this depth on a CPU, released initialisation, blocks computed again in backward."""
    torch.manual_seed(seed)
    model = VAR.by_depth(depth, schedule=VAR_256, code=CodeSpec.index(V), latent_channels=C, num_classes=CLASSES)
    model.checkpoint_blocks = True
    return model.train()


def random_tokens(batch: int) -> TokenBatch:
    """Ids, labels and inputs of no image."""
    rng = torch.Generator().manual_seed(1)
    L = VAR_256.num_tokens
    return TokenBatch(
        torch.randint(V, (batch, L), generator=rng),
        torch.randint(CLASSES, (batch,), generator=rng),
        torch.randn(batch, L - 1, C, generator=rng),
    )


def run(depth: int, batch: int, folder: Path, lr: float) -> dict[str, object]:
    """One step at this depth. Raises ``ValueError`` when the disk is too small for the moments."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        print(f"{name} ...", flush=True)
        started = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - started

    with timed("build"):
        model = build(depth)
    parameters = sum(p.numel() for p in model.parameters())
    if shutil.disk_usage(folder).free < 8 * parameters:
        raise ValueError(f"the moments take {8 * parameters:,} bytes, more than {folder} has; give another --folder")
    optim, tokens = Optimisation(lr=lr), random_tokens(batch)
    optimizer = AdamWOnDisk(model, optim, folder, lr=lr)
    with timed("forward"):
        loss = model.loss(tokens, label_drop=0.1).per_token_avg_B.mean()
    with timed("backward"):
        loss.backward()
    with timed("clip"):
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        clip_gradients(model.parameters(), optim.clip)
    with timed("update"):
        optimizer.step()
    with timed("loss after"), torch.no_grad():
        after = model.loss(tokens).per_token_avg_B.mean()
    return {
        "depth": depth,
        "batch": batch,
        "threads": torch.get_num_threads(),
        "parameters": parameters,
        "peak_memory_gib": peak_memory_bytes(torch.device("cpu")) / 2**30,
        "weights_and_gradients_gib": 8 * parameters / 2**30,
        "moments_on_disk_gib": sum(path.stat().st_size for path in folder.iterdir()) / 2**30,
        "loss_before": float(loss.detach()),
        "loss_after": float(after),
        "gradient_norm": float(norm),
        "step_s": sum(seconds[name] for name in ("forward", "backward", "clip", "update")),
        "seconds": seconds,
        "flops_dense": batch * train_flops_per_image(model),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=30)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--folder", type=Path, help="of a temporary folder for the moments")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        print(json.dumps(run(options.depth, options.batch, Path(folder), options.lr), indent=2))


if __name__ == "__main__":
    main()
