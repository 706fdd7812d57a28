"""How far varscale is from the released VAR code: the maximal difference of every golden quantity, as Markdown.

    python benchmarks/released_equality.py DATA [--threads 1]

DATA holds ``golden/`` (outputs of the released code on its own random weights, fp32, CPU). Ids are compared exactly;
tensors by their largest absolute difference; gradients by the norm of the difference over the norm, the worst tensor;
AdamW starts from the golden gradients. The tests hold the same limits; this prints how much room is left.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from varscale.models.editing import EditMode, box_mask, edit
from varscale.models.pretrained import load_released_var, released_name, released_state_dict
from varscale.models.sampling import Sampler, generate
from varscale.models.var import VAR
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.tokenizers.pretrained import load_released_tokenizer, released_tokenizer_state_dict
from varscale.tokenizers.tokens import TokenBatch
from varscale.training.groups import parameter_groups
from varscale.training.optim import Optimisation, build_adamw, clip_gradients, released_schedule

SETS = ("var_d2_256", "var_d3_256_shared_adaln")
TOKENIZER = "var_d2_256"  # both sets have the same
EQUAL, DIFFERENT = "equal", "DIFFERENT"
Row = tuple[str, float | None, float | bool]  # quantity, limit (None: must be equal), difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    golden = options.data / "golden"
    stored = load_file(golden / TOKENIZER / "vae.safetensors")
    tokenizer = load_released_tokenizer(stored)
    table: dict[str, dict[str, Row]] = {}
    for name in SETS:
        folder = golden / name
        weights, io = load_file(folder / "var.safetensors"), load_file(folder / "io.safetensors")
        model = load_released_var(weights)
        rows = [("tokenizer's state dict out and in", None, same(released_tokenizer_state_dict(tokenizer), stored))]
        rows += [("model's state dict out and in", None, same(released_state_dict(model), weights))]
        meta = json.loads((folder / "meta.json").read_text())
        rows += [*tokens(tokenizer, io), *predictions(model, io), *groups(model, meta)]
        rows += [*draws(model, tokenizer, io)]
        if (folder / "train.safetensors").exists():
            train = load_file(folder / "train.safetensors")
            rows += [*quantiser_training(tokenizer, io, train), *step(model, io, train, meta)]
        for row in rows:
            table.setdefault(row[0], {})[name] = row
    table |= {row[0]: {SETS[0]: row} for row in schedules(json.loads((golden / "lr_schedule.json").read_text()))}
    print(f"torch {torch.__version__}, {options.threads} thread(s), float32, CPU\n")
    print("\n".join(["| quantity | limit | " + " | ".join(SETS) + " |", "|---" * (2 + len(SETS)) + "|"]))
    for quantity, cells in table.items():
        limit = next(iter(cells.values()))[1]
        shown = [cell(cells[name]) if name in cells else "" for name in SETS]
        print(f"| {quantity} | {EQUAL if limit is None else f'{limit:.0e}'} | {' | '.join(shown)} |")


def cell(row: Row) -> str:
    """The difference; one above its limit stands out."""
    _, limit, value = row
    if limit is None:
        return EQUAL if value else DIFFERENT
    return f"{value:.1e}" if value <= limit else f"**{value:.1e}**"


def joined(io: dict[str, Tensor], prefix: str) -> Tensor:
    """Ids (B, L) of all scales."""
    return torch.cat([io[f"{prefix}idx_{k}"].flatten(1) for k in range(10)], dim=1)


def difference(ours: Tensor, golden: Tensor) -> float:
    """Largest absolute difference."""
    return float((ours.detach() - golden).abs().max())


def worst(ours: dict[str, Tensor | None], golden: dict[str, Tensor]) -> float:
    """Largest relative difference by norm of any tensor."""
    return max(float((ours[name].view_as(g) - g).norm() / g.norm()) for name, g in golden.items())  # type: ignore[union-attr]


def same(ours: dict[str, Tensor], golden: dict[str, Tensor]) -> bool:
    """Whether every golden tensor is there, bit by bit. A set may lack buffers."""
    return all(torch.equal(ours[name], tensor) for name, tensor in golden.items())


@torch.no_grad()
def tokens(tokenizer: VQAutoencoder, io: dict[str, Tensor]) -> Iterator[Row]:
    """Encoder, quantiser and decoder."""
    ids_BL = joined(io, "")
    optional: dict[str, tuple[str, float, Callable[[], Tensor]]] = {
        "encoder_out": ("encoder output", 1e-4, lambda: tokenizer.trunk.encoder(io["image"])),
        "f": ("f", 1e-4, lambda: tokenizer.latent(io["image"])),
        "recon": ("reconstruction", 1e-4, lambda: tokenizer.decode(ids_BL)),
        "var_input": ("teacher-forcing input", 1e-5, lambda: tokenizer.pyramid.inputs(ids_BL)),
    }
    yield "token ids of images", None, torch.equal(tokenizer.encode(io["image"]), ids_BL)
    for key, (quantity, limit, compute) in optional.items():
        if key in io:
            yield quantity, limit, difference(compute(), io[key])
    if "fhat_0" in io:
        sums = enumerate(tokenizer.pyramid.partial_sums(ids_BL))
        yield "f_hat, all scales", 1e-4, max(difference(f_hat, io[f"fhat_{k}"]) for k, f_hat in sums)


@torch.no_grad()
def predictions(model: VAR, io: dict[str, Tensor]) -> Iterator[Row]:
    """Logits and cross-entropy under teacher forcing."""
    logits = model(io["var_input"], io["labels"])
    yield "logits", 1e-4, difference(logits, io["logits"])
    null = model(io["var_input"], torch.full_like(io["labels"], model.num_classes))
    yield "logits of the null class", 1e-4, difference(null, io["logits_uncond"])
    nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), joined(io, ""), reduction="none")
    yield "cross-entropy a token", 1e-4, difference(nats, io["ce_per_token"])


def groups(model: VAR, meta: dict[str, dict[str, list[str]]]) -> Iterator[Row]:
    """Which parameters decay."""
    names = {id(parameter): released_name(name) for name, parameter in model.named_parameters()}
    found = [{names[id(p)] for p in group["params"]} for group in parameter_groups(model, 0.05)]
    wanted = [set(meta["metrics"][key]) for key in ("decay", "no_decay")]
    yield "decay and no-decay groups", None, found == wanted


def draws(model: VAR, tokenizer: VQAutoencoder, io: dict[str, Tensor]) -> Iterator[Row]:
    """Greedy samples and edits."""
    drawn = generate(model, tokenizer.pyramid, io["labels"], sampler=Sampler(guidance=1.5, top_k=1), seed=0)
    yield "greedy sample ids", None, torch.equal(drawn.ids_BL, joined(io, "sample_"))
    if "sample_img" in io:
        with torch.no_grad():
            image = (tokenizer.decode_latent(drawn.latent_BCHW) + 1) / 2
        yield "sampled image", 1e-4, difference(image, io["sample_img"])
    modes: tuple[EditMode, ...] = ("inpaint", "outpaint")
    for mode in modes:
        if f"{mode}_mask" not in io:
            continue
        keep_HW = box_mask((0.25, 0.25, 0.75, 0.75), (16, 16), mode)
        yield f"{mode}ing mask", None, torch.equal(keep_HW, io[f"{mode}_mask"])
        sampler = Sampler(guidance=3.0, top_k=1)
        edited = edit(model, tokenizer.pyramid, joined(io, ""), keep_HW, io["labels"], sampler=sampler, seed=0)
        yield f"{mode}ing ids", None, torch.equal(edited.drawn_BL, joined(io, f"{mode}_"))
        if f"{mode}_img" in io:
            image = (tokenizer.decode(edited.ids_BL) + 1) / 2
            yield f"{mode}ed image", 1e-4, difference(image, io[f"{mode}_img"])


def quantiser_training(tokenizer: VQAutoencoder, io: dict[str, Tensor], train: dict[str, Tensor]) -> Iterator[Row]:
    """The quantiser's training forward and the gradients of vq_loss + mean(f_hat * linspace(-1, 1))."""
    tokenizer.zero_grad()
    f = io["f"].clone().requires_grad_()
    out = tokenizer.pyramid(f)
    weights = torch.linspace(-1, 1, out.latent.numel()).view_as(out.latent)
    (out.vq_loss + (out.latent * weights).mean()).backward()
    yield "VQ loss", 1e-6, abs(float(out.vq_loss.detach()) - float(train["vq_loss"]))
    yield "f_hat in training", 1e-4, difference(out.latent, train["vq_fhat_out"])
    ours = {"vq_grad_f": f.grad, "vq_grad_embedding": tokenizer.pyramid.quantizer.codebook.grad}
    ours |= {f"vq_grad_phi{i}_weight": phi.conv.weight.grad for i, phi in enumerate(tokenizer.pyramid.refiners)}  # type: ignore[union-attr]
    golden = {name: tensor for name, tensor in train.items() if name.startswith("vq_grad_")}
    yield "VQ gradients, by norm", 1e-5, worst(ours, golden)


def step(
    model: VAR, io: dict[str, Tensor], train: dict[str, Tensor], meta: dict[str, dict[str, float]]
) -> Iterator[Row]:
    """The transformer's loss, its clipped gradients, and one AdamW step from the golden ones."""
    settings = meta["adamw_step"]
    loss = model.loss(TokenBatch(joined(io, ""), io["labels"], io["var_input"])).per_token_avg_B.mean()
    loss.backward()
    yield "transformer loss", 1e-5, abs(float(loss.detach()) - float(train["var_loss"]))
    parameters = {released_name(name): parameter for name, parameter in model.named_parameters()}
    norm = math.sqrt(sum(float(p.grad.norm()) ** 2 for p in parameters.values()))  # type: ignore[union-attr]
    golden_norm = float(train["var_grad_norm"])
    yield "gradient norm before clipping, relative", 1e-5, abs(norm - golden_norm) / golden_norm
    clip_gradients(model.parameters(), settings["clip"])
    gradients = {name[5:]: tensor for name, tensor in train.items() if name.startswith("grad.")}
    yield "clipped gradients, by norm", 1e-5, worst({name: p.grad for name, p in parameters.items()}, gradients)
    for name, parameter in parameters.items():
        parameter.grad = gradients[name].view_as(parameter).clone()
    optim = Optimisation(lr=settings["lr"], weight_decay=settings["wd"], warmup=0.0, schedule="constant")
    optimizer, _ = build_adamw(model, optim, lr_peak=optim.lr, steps=1)
    optimizer.step()
    after = {name[12:]: tensor for name, tensor in train.items() if name.startswith("after_adamw.")}
    differences = [difference(parameters[name].view_as(tensor), tensor) for name, tensor in after.items()]
    yield "parameters after an AdamW step", 1e-6, max(differences)


def schedules(table: dict[str, dict[str, list[tuple[int, float, float, float]]]]) -> Iterator[Row]:
    """Learning rate and weight decay of every released schedule, relative, the worst of all rows."""
    run = table["args"]
    for name, rows in table["rows_it_lr_wd_wdND"].items():
        optim = Optimisation(
            lr=run["peak_lr"], weight_decay=run["wd"], weight_decay_final=run["wd_end"],
            warmup=run["wp_it"] / run["max_it"], warmup_start=run["wp0"], final=run["wpe"], **released_schedule(name),
        )  # fmt: skip
        relative = 0.0
        for iteration, lr, decay, _ in rows:
            relative = max(relative, abs(optim.lr * optim.factor(iteration, run["max_it"]) / lr - 1))
            relative = max(relative, abs(optim.weight_decay_at(iteration, run["max_it"]) / decay - 1))
        yield f"schedule {name}, {len(rows)} rows, relative", 1e-12, relative


if __name__ == "__main__":
    main()
