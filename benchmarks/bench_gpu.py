"""Training and sampling of VAR-256 on an NVIDIA GPU: images/s, memory, share of the measured bf16 matrix peak.

    python benchmarks/bench_gpu.py [--depths 16 20 24 30] [--variants eager checkpoint compile compile+checkpoint]
    python benchmarks/bench_gpu.py --device cpu --depths 2 --batch 2 --channels 32 --sample-batches 1 --rounds 1

A training step is forward, backward, clip and fused AdamW under bf16 autocast with float32 weights, on random tokens
that lie on the device, with the largest batch that fits: predicted from the memory of two small ones, then tried.
``checkpoint`` computes the blocks again in backward, ``compile`` is ``torch.compile``. FLOPs by the ``dense`` rule,
without the recomputation; the peak is the best bf16 product at the model's MLP shapes, measured before every round.
Sampling draws with guidance 1.5, top-k 900 and top-p 0.96 and decodes with a tokenizer of the released size, in bf16.
Every result is written to ``--out`` as soon as it is there. Needs torch and varscale's torch floors only.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from alternation import Timing, alternate, machine, markdown_table
from bench_against_reference import CLASSES, C, V, autocast, build, our_step, peak_meter
from bench_sampling import GUIDANCE, RULES, random_tokenizer

from varscale.models.counting import count_parameters, train_flops_per_image
from varscale.models.sampling import Sampler, generate
from varscale.models.var import VAR
from varscale.schedule import VAR_256
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.tokenizers.tokens import TokenBatch
from varscale.training.device import peak_memory_bytes

VARIANTS = ("eager", "checkpoint", "compile", "compile+checkpoint")
PROBES = (2, 6)  # images, to predict the largest batch
MARGIN = 0.92  # of the device's memory, for fragments and the library's workspace
OOM = torch.cuda.OutOfMemoryError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--depths", type=int, nargs="+", default=[16, 20, 24, 30])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--batch", type=int, help="instead of the largest that fits")
    parser.add_argument("--largest", type=int, default=512, help="batch beyond which none is tried")
    parser.add_argument("--sample-batches", type=int, nargs="*", default=[1, 64])
    parser.add_argument("--channels", type=int, default=160, help="of the tokenizer's finest level")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; use --device cpu to try the script")
    if device.type == "cpu" and options.batch is None:
        parser.error("the largest batch is searched on a GPU only; give --batch")
    training: list[dict[str, object]] = []
    sampling: list[dict[str, object]] = []

    def keep(rows: list[dict[str, object]], row: dict[str, object]) -> None:
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        report = {**machine(device), "memory_gib": total_memory(device) / 2**30, "guidance": GUIDANCE}
        options.out.write_text(json.dumps({**report, "training": training, "sampling": sampling}, indent=2))

    for depth in options.depths:
        for variant in options.variants:
            keep(training, train(depth, variant, device, options))
    tokenizer = random_tokenizer(options.channels).to(device)
    for depth in options.depths:
        for batch in options.sample_batches:
            keep(sampling, draw(depth, batch, tokenizer, device, options))
    for rows in (training, sampling):
        if rows:
            print(markdown_table(rows), end="\n\n")


def tokens(batch: int, device: torch.device) -> TokenBatch:
    """Random tokens on the device."""
    L = VAR_256.num_tokens
    return TokenBatch(
        torch.randint(V, (batch, L), device=device),
        torch.randint(CLASSES, (batch,), device=device),
        torch.randn(batch, L - 1, C, device=device),
    )


def train(depth: int, variant: str, device: torch.device, options: argparse.Namespace) -> dict[str, object]:
    """The row of one size and variant; without numbers where not even one image fits."""
    with torch.device(device):
        model = build(depth)
    model.checkpoint_blocks = "checkpoint" in variant
    flops = train_flops_per_image(model)
    row: dict[str, object] = {
        "depth": depth,
        "parameters": count_parameters(model).params_total,
        "variant": variant,
    }
    batch = options.batch or fitting_batch(model, device, options.largest)
    if "compile" in variant:
        model.compile(dynamic=False)
    while batch:
        try:
            model.zero_grad()
            clear(device)
            meter, peaks = peak_meter(torch.bfloat16, batch * VAR_256.num_tokens, model.width, device)
            time = timed(model, batch, device, options.rounds, meter)
        except OOM:
            batch = batch * 15 // 16
            continue
        peak = statistics.median(peaks)
        return row | {
            "batch": batch,
            "images/s": batch / time.median,
            "best": batch / time.minimum,
            "memory GiB": peak_memory_bytes(device) / 2**30,
            "TFLOP/s": batch * flops / time.median / 1e12,
            "peak TFLOP/s": peak / 1e12,
            "share of peak": batch * flops / time.median / peak,
        }
    return row | dict.fromkeys(
        ("batch", "images/s", "best", "memory GiB", "TFLOP/s", "peak TFLOP/s", "share of peak"), None
    )


def timed(model: VAR, batch: int, device: torch.device, rounds: int, meter: Callable[[], None]) -> Timing:
    """Seconds of a training step."""
    data = tokens(batch, device)
    step = our_step(model, lambda: data, "bf16", device)
    return alternate({"step": step}, rounds=rounds, warmup=2, device=device, between=meter)["step"]


def fitting_batch(model: VAR, device: torch.device, largest: int) -> int:
    """The batch that should just fit, from the memory that two small ones take."""
    used = []
    try:
        for batch in PROBES:
            model.zero_grad()
            clear(device)
            data = tokens(batch, device)
            step = our_step(model, lambda data=data: data, "bf16", device)
            step()
            step()  # the second has the optimiser's moments from its start
            used.append(int(peak_memory_bytes(device)))
            del step
    except OOM:
        return PROBES[0] if used else 1
    per_image = (used[1] - used[0]) / (PROBES[1] - PROBES[0])
    room = MARGIN * total_memory(device) - (used[0] - PROBES[0] * per_image)
    batch = max(1, min(largest, int(room / per_image)))
    return batch - batch % 8 if batch > 16 else batch


def draw(
    depth: int, batch: int, tokenizer: VQAutoencoder, device: torch.device, options: argparse.Namespace
) -> dict[str, object]:
    """The row of sampling one batch, from classes to pixels."""
    clear(device)
    with torch.device(device):
        model = build(depth).eval()
    labels_B = torch.arange(batch, device=device) * 7 % CLASSES
    sampler = Sampler(guidance=GUIDANCE, **RULES["fid"])

    @torch.no_grad()
    def run() -> None:
        with autocast("bf16", device):
            drawn = generate(model, tokenizer.pyramid, labels_B, sampler=sampler, seed=0)
            tokenizer.decode_latent(drawn.latent_BCHW)

    time = alternate({"sample": run}, rounds=options.rounds, warmup=2, device=device)["sample"]
    return {
        "depth": depth,
        "batch": batch,
        "s": time.median,
        "images/s": batch / time.median,
        "best": batch / time.minimum,
        "memory GiB": peak_memory_bytes(device) / 2**30,
    }


def clear(device: torch.device) -> None:
    """Give back what earlier measurements used."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def total_memory(device: torch.device) -> int:
    """Bytes of the device; of a CPU, what this process used at most."""
    return (
        torch.cuda.get_device_properties(device).total_memory
        if device.type == "cuda"
        else int(peak_memory_bytes(device))
    )


if __name__ == "__main__":
    main()
