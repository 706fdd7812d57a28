"""varscale export: a trained model for others, by the released names of VAR or as a model folder, with a model card."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from omegaconf import DictConfig
from safetensors.torch import save_file
from torch import Tensor

from varscale.app.config import ConfigError
from varscale.app.identity import INCIDENTAL, TOKENIZER_FILE
from varscale.app.model_folder import open_model, run_config
from varscale.models.card import RELEASED_USE, Facts, describe, model_card
from varscale.models.pretrained import released_state_dict
from varscale.models.storage import CARD_FILE, MODEL_FILE, Pretrained, from_pretrained, save_pretrained
from varscale.records import atomic_write, read_json, read_run
from varscale.tokenizers.checkpoint_file import CheckpointError, Part, read_state_dict
from varscale.tokenizers.pretrained import released_tokenizer_state_dict

FIT_FILE = "fit.json"  # of the verb fit
FORMATS = ("pth", "safetensors", "varscale")


def main(cfg: DictConfig) -> None:
    """Open the model, print what it is, write it."""
    for key in ("run", "out"):
        if cfg[key] is None:
            raise ConfigError(f"{key} has no value; give it as {key}=FOLDER")
    if cfg.format not in FORMATS:
        raise ConfigError(f"format is {cfg.format!r}; it must be one of {', '.join(FORMATS)}")
    folder, out = Path(cfg.run), Path(cfg.out)
    if (folder / MODEL_FILE).exists():
        trained = from_pretrained(folder)
    else:
        model, tokenizer = open_model(folder, cfg)
        trained = Pretrained(model, tokenizer, facts_of_run(folder))
    for label, value in describe(trained.model, trained.tokenizer).items():
        print(f"{label:<14} {value}")
    if cfg.format == "varscale":
        save_pretrained(out, trained.model, trained.tokenizer, trained.facts)
        print(f"written: {out / MODEL_FILE}, with weights, tokenizer and {CARD_FILE}")
    else:
        export_released(trained, out, cfg.format)


def export_released(trained: Pretrained, out: Path, suffix: str) -> None:
    """Write ``var`` and ``vae`` by their released names, and the card; all of it is checked before any is written."""
    files: dict[Part, tuple[Path, dict[str, Tensor]]] = {
        "vae_local": (out / f"vae.{suffix}", released_tokenizer_state_dict(trained.tokenizer)),
        "var_wo_ddp": (out / f"var.{suffix}", released_state_dict(trained.model)),
    }
    present = {path for part, (path, state) in files.items() if path.exists() and refuse_other(path, state, part)}
    for path, state in files.values():
        if path not in present:
            write_tensors(path, state)
    (vae, _), (var, _) = files.values()
    use = RELEASED_USE.format(vae=vae.name, var=var.name)
    with atomic_write(out / CARD_FILE) as file:
        card = model_card(trained.model, trained.tokenizer, trained.facts, name=out.resolve().name, use=use)
        file.write(card.encode())
    print(f"written: {var}, {vae} and {CARD_FILE}")


def refuse_other(path: Path, state: dict[str, Tensor], part: Part) -> bool:
    """True if the file holds exactly these tensors. Raises ``CheckpointError`` if it holds others."""
    stored = read_state_dict(path, part)
    if stored.keys() != state.keys() or not all(torch.equal(stored[name], state[name]) for name in state):
        raise CheckpointError(f"{path} holds another model; choose another out=FOLDER or remove that file")
    return True


def write_tensors(path: Path, state: dict[str, Tensor]) -> None:
    """Write tensors by name as ``.pth`` or ``.safetensors``, atomically."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    with atomic_write(path) as file:
        if path.suffix == ".safetensors":
            save_file(tensors, file.name)
        else:
            torch.save(tensors, file)


def facts_of_run(folder: Path) -> Facts:
    """What the records of a run and of its study say of it."""
    run, cfg = read_run(folder), run_config(folder)
    settings = {
        key: value
        for key, value in cfg.data.items()
        if (not str(key).startswith("_") and key not in INCIDENTAL["data"]) or key == "name"
    }
    listed = ", ".join(f"{key} {value}" for key, value in settings.items())
    kind = str(cfg.data["_target_"]).rpartition(".")[2]
    return Facts(
        source=f"run {run.run_id} of varscale {run.varscale_version}",
        data=f"{kind} ({listed}), {run.unique_images:,.0f} distinct images, dataset id {run.dataset_id}",
        tokenizer_data=tokenizer_data(Path(cfg.paths.tokenizer), run.dataset_id),
        images_seen=run.images_seen,
        tokens_seen=run.tokens_seen,
        flops_train=f"{run.flops_train:.4g} FLOP (rule {run.flops_rule})",
        val_nats_per_token_avg=run.val_nats_per_token_avg,
        val_nats_per_token_last=run.val_nats_per_token_last,
        val_images=run.val_images,
        study=f"{run.study}, design {run.design}",
        law=law_of(Path(cfg.paths.study), run.run_id, str(cfg.analysis.y)),
    )


def tokenizer_data(folder: Path, dataset_id: str) -> str | None:
    """What the tokenizer was trained on, as far as its folder tells."""
    if not (folder / TOKENIZER_FILE).exists():
        return None
    found = read_json(folder / TOKENIZER_FILE).get("dataset_id")
    if found is None:
        return None
    return f"dataset id {found}" + (", the data of the transformer" if found == dataset_id else "")


def law_of(study: Path, run_id: str, y: str) -> str | None:
    """The first law of ``y`` that the study fitted, if the run is among its rows."""
    if not (study / FIT_FILE).exists() or not (study / "runs.csv").exists():
        return None
    with (study / "runs.csv").open(newline="") as file:
        if run_id not in {row["run_id"] for row in csv.DictReader(file)}:
            return None
    from varscale_analysis import LawFit  # with matplotlib and pandas, which nothing else here needs

    for name, fit in read_json(study / FIT_FILE)["fits"].items():
        if name.rpartition("/")[2] == y:
            form, values, *_ = LawFit.from_dict(fit).summary().splitlines()
            return f"{form}\n{values.strip()}"
    return None
