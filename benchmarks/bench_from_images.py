"""Training VAR-256 from images, as the release does, against training from a token cache.

    python benchmarks/bench_from_images.py [--threads 2] [--depth 6] [--batch 4] [--rounds 3]

The reference encodes each batch of 256 px images by the tokenizer of the released size (160 channels, random weights)
and takes a plain fp32 step; both are ``reference_var`` and ``reference_tokenizer``. Ours reads the same ids from a
memory-mapped cache and takes its step, in fp32 and in bf16. Ours from images in fp32 stands beside them. Images are
already decoded and in memory. Prints JSON, and a table to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from alternation import alternate, machine, markdown_table
from bench_against_reference import V, batches, build, our_step, stored_tokens
from bench_sampling import plain_tokenizer, random_tokenizer
from reference_var import ReferenceVAR, reference_adamw, reference_step

from varscale.tokenizers.tokens import TokenBatch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--channels", type=int, default=160, help="of the tokenizer's finest level")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        times = alternate(contestants(Path(folder), options), rounds=options.rounds)
    base = times["reference from images, fp32"]
    rows = [
        {
            "training": name,
            "images/s": options.batch / timing.median,
            "best": options.batch / timing.minimum,
            "times the reference": base.median / timing.median,
            "of best": base.minimum / timing.minimum,
        }
        for name, timing in times.items()
    ]
    print(markdown_table(rows), file=sys.stderr)
    seconds = {name: timing.seconds for name, timing in times.items()}
    print(json.dumps({**vars(options), **machine(), "results": rows, "seconds": seconds}, indent=2))


def contestants(folder: Path, options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """The four ways to take a step of one size."""
    B = options.batch
    rng = torch.Generator().manual_seed(0)
    pixels, labels_B = torch.rand(B, 3, 256, 256, generator=rng) * 2 - 1, torch.arange(B)
    tokenizer = random_tokenizer(options.channels)
    plain, other = ReferenceVAR.of(build(options.depth)).train(), plain_tokenizer(tokenizer)
    optimizer = reference_adamw(plain, 1e-4)
    assert tokenizer.pyramid.quantizer.vocabulary == V

    def reference() -> None:
        ids, inputs = other.encode(pixels)
        reference_step(plain, optimizer, inputs, ids, labels_B, bf16=False)

    def encoded() -> TokenBatch:
        ids_BL = tokenizer.encode(pixels)
        return TokenBatch(ids_BL, labels_B, tokenizer.pyramid.inputs(ids_BL))

    arrays = stored_tokens(folder)
    return {
        "reference from images, fp32": reference,
        "ours from images, fp32": our_step(build(options.depth), encoded, "fp32"),
        "ours from the cache, fp32": our_step(build(options.depth), batches(arrays, B), "fp32"),
        "ours from the cache, bf16": our_step(build(options.depth), batches(arrays, B), "bf16"),
    }


if __name__ == "__main__":
    main()
