"""Sampling images of VAR-256 with guidance, side by side with a plain reference of the same mathematics.

    python benchmarks/bench_sampling.py [--threads 2] [--depths 4 6] [--batch 4] [--rounds 5]

From classes to pixels: the transformer scale by scale, the drawing of tokens, and the decoder of a tokenizer with 32
channels; random weights. ``greedy`` takes the likeliest token (top-k 1): in fp32 both must draw the same ids, else this
fails. ``fid`` is the released protocol, top-k 900 and top-p 0.96. The seconds of the decoder are measured on their own
as well. Prints JSON, and a table to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

import torch
from alternation import alternate, machine, markdown_table
from bench_against_reference import CLASSES, DTYPES, C, V, autocast, build
from reference_tokenizer import ReferenceTokenizer
from reference_var import ReferenceVAR
from torch import Tensor

from varscale.models.sampling import Sampler, generate
from varscale.models.var import VAR
from varscale.schedule import VAR_256
from varscale.tokenizers.autoencoder import VQAutoencoder

GUIDANCE = 1.5
RULES = {"greedy": {"top_k": 1}, "fid": {"top_k": 900, "top_p": 0.96}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 6])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--channels", type=int, default=32, help="of the tokenizer's finest level")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = random_tokenizer(options.channels)
    results = [
        measure(depth, precision, rule, tokenizer, options)
        for depth in options.depths
        for precision in options.dtypes
        for rule in options.rules
    ]
    print(markdown_table([{k: v for k, v in r.items() if not isinstance(v, dict)} for r in results]), file=sys.stderr)
    print(json.dumps({**vars(options), **machine(), "guidance": GUIDANCE, "results": results}, indent=2))


def random_tokenizer(channels: int) -> VQAutoencoder:
    """The released architecture at 256 px with random weights."""
    torch.manual_seed(0)
    return VQAutoencoder(
        resolution=256, schedule=str(VAR_256), vocabulary=V, latent_channels=C, trunk="released", width=channels,
        codebook_update="gradient", kmeans_start=False,
    ).eval()  # fmt: skip


def plain_tokenizer(tokenizer: VQAutoencoder) -> ReferenceTokenizer:
    """The reference with the same weights."""
    return ReferenceTokenizer.of(
        tokenizer.state_dict(),
        sides=[h for _, h, _ in VAR_256.scales],
        refiner_of_scale=tokenizer.pyramid.refiner_of_scale,
    )


def awake(depth: int) -> VAR:
    """A model none of whose blocks is near identity, so that its logits differ from token to token."""
    model = build(depth).eval()  # autocast keeps the casts of parameters that ask for a gradient, as of a loaded model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def measure(
    depth: int, precision: str, rule: str, tokenizer: VQAutoencoder, options: argparse.Namespace
) -> dict[str, object]:
    """Both at one size, dtype and rule. Raises ``ValueError`` where equal ids are expected and differ."""
    model, B = awake(depth), options.batch
    plain, other = ReferenceVAR.of(model).eval(), plain_tokenizer(tokenizer)
    labels_B = torch.arange(B) * 7 % CLASSES
    sampler = Sampler(guidance=GUIDANCE, **RULES[rule])
    drawn: dict[str, Tensor] = {}

    @torch.no_grad()
    def ours() -> None:
        with autocast(precision):
            result = generate(model, tokenizer.pyramid, labels_B, sampler=sampler, seed=0)
            tokenizer.decode_latent(result.latent_BCHW)
        drawn["ours"] = result.ids_BL

    @torch.no_grad()
    def reference() -> None:
        with autocast(precision):
            ids, latent = plain.sample(other, labels_B, guidance=GUIDANCE, **RULES[rule])
            other.decode(latent)
        drawn["reference"] = ids

    latent = tokenizer.pyramid.reconstruct(torch.zeros(B, VAR_256.num_tokens, dtype=torch.int64))

    def decoding(decode: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        @torch.no_grad()
        def run() -> None:
            with autocast(precision):
                decode(latent)

        return run

    contestants = {
        "ours": ours,
        "reference": reference,
        "our decoder": decoding(tokenizer.decode_latent),
        "reference decoder": decoding(other.decode),
    }
    times = alternate(contestants, rounds=options.rounds)
    equal = float((drawn["ours"] == drawn["reference"]).float().mean())
    if rule == "greedy" and precision == "fp32" and equal < 1:
        raise ValueError(f"depth {depth}: {equal:.2%} of the greedy ids are equal; both must compute the same")
    row: dict[str, object] = {"depth": depth, "dtype": precision, "rule": rule}
    for name in ("ours", "reference"):
        row[f"{name} images/s"] = B / times[name].median
        row[f"{name} best"] = B / times[name].minimum
    row["ratio"] = times["reference"].median / times["ours"].median
    row["ratio of best"] = times["reference"].minimum / times["ours"].minimum
    row["our decoder's share"] = times["our decoder"].median / times["ours"].median
    row["reference decoder's share"] = times["reference decoder"].median / times["reference"].median
    row["equal ids"] = equal if rule == "greedy" else None
    row["seconds"] = {name: timing.seconds for name, timing in times.items()}
    return row


if __name__ == "__main__":
    main()
