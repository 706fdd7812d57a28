"""Models on disk: the weights of a run, and a model folder that stands alone.

A run's folder holds ``model.safetensors``; its config says how to build the model. A model folder holds model and
tokenizer with all that is needed to rebuild them: ``model.safetensors`` and ``model.json``, the tokenizer's two files
(so that ``paths.tokenizer=FOLDER`` trains on it) and a model card, ``README.md``. ``model.json`` is written last and
removed first, so a folder with one holds a whole model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from varscale.codes import CodeSpec
from varscale.models.card import Facts, model_card
from varscale.models.hub import fetch_folder
from varscale.models.shape import Shape
from varscale.models.var import VAR
from varscale.records import RecordError, atomic_write, read_json, write_json
from varscale.schedule import ScaleSchedule
from varscale.tokenizers.autoencoder import FINGERPRINT_DIGITS, VQAutoencoder
from varscale.tokenizers.storage import TOKENIZER_FILE, UNMEASURED, load_tokenizer, save_tokenizer

WEIGHTS = "model.safetensors"
MODEL_FILE = "model.json"
CARD_FILE = "README.md"
FORMAT = 1


class ModelError(ValueError):
    """A stored model that is absent, damaged or not what its description says; names the file and the remedy."""


@dataclass(frozen=True)
class Pretrained:
    """A model folder in memory: transformer and tokenizer in evaluation mode, and what is known about them."""

    model: VAR
    tokenizer: VQAutoencoder
    facts: Facts


def save_weights(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write the parameters, a model's ``state_dict()``, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_write(folder / WEIGHTS) as file:
        try:
            save_file(tensors, file.name)  # straight to the disk: two billion parameters are not copied in memory
        except SafetensorError as error:
            raise OSError(f"{folder / WEIGHTS} could not be written ({error}); free some space") from error


def load_weights(folder: Path, model: nn.Module, device: torch.device | str = "cpu") -> None:
    """Load the parameters into a model built like the stored one.

    Raises:
        RecordError: if there are none yet, or a key or shape differs.
    """
    path = folder / WEIGHTS
    if not path.exists():
        raise RecordError(f"{path} does not exist; the run in this folder has not finished, launch it again")
    try:
        model.load_state_dict(load_file(path, device=str(device)))
    except RuntimeError as error:
        raise RecordError(f"{path} does not fit the model of the run's config: {error}") from None


def stored_classes(folder: Path) -> int:
    """Number of classes of the stored model, without the null class. Raises ``RecordError`` if there is none yet."""
    path = folder / WEIGHTS
    if not path.exists():
        raise RecordError(f"{path} does not exist; the run in this folder has not finished, launch it again")
    with safe_open(path, framework="pt") as file:
        return int(file.get_slice("class_embed.weight").get_shape()[0]) - 1


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules built inside have parameters without storage and real buffers: for ``load_state_dict(assign=True)``.

    Two billion parameters are then neither allocated twice nor filled with random numbers first.
    """
    handle = register_module_parameter_registration_hook(
        lambda module, name, parameter: nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
    )
    try:
        yield
    finally:
        handle.remove()


def fingerprint(model: VAR) -> str:
    """Hash of the schedule and of every stored tensor of a model."""
    digest = hashlib.sha256(str(model.schedule).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:FINGERPRINT_DIGITS]


def architecture(model: VAR) -> dict[str, Any]:
    """Everything but the weights that is needed to build the model again, as plain values."""
    first, last = model.blocks[0], model.blocks[-1]
    return {
        "depth": model.depth,
        "width": model.width,
        "heads": model.heads,
        "drop_path": last.drop_path.rate,
        "mlp_ratio": first.feed_forward.up.out_features / model.width,
        "schedule": str(model.schedule),
        "code": str(model.code),
        "latent_channels": model.latent_channels,
        "num_classes": model.num_classes,
        "shared_adaln": model.shared_adaln,
        "l2_norm": first.attention.l2_norm,
        "base_width": model.base_width,
        "base_depth": model.base_depth,
    }


def build(settings: Mapping[str, Any]) -> VAR:
    """The model of what ``architecture`` returns, without storage for its parameters; see ``parameters_on_meta``."""
    rest = dict(settings)
    shape = Shape(*(rest.pop(name) for name in ("depth", "width", "heads", "drop_path")))
    schedule, code = ScaleSchedule.parse(rest.pop("schedule")), CodeSpec.parse(rest.pop("code"))
    with parameters_on_meta():
        return VAR(shape, schedule=schedule, code=code, **rest)


def save_pretrained(folder: Path | str, model: VAR, tokenizer: VQAutoencoder, facts: Facts | None = None) -> None:
    """Write a model folder; see the file's header.

    Raises:
        ModelError: if model and tokenizer do not fit together, or the folder holds another model or tokenizer. The
            same one is written again (its card may have changed).
    """
    folder = Path(folder)
    facts = Facts() if facts is None else facts
    check_pair(model, tokenizer)
    description = {
        "format": FORMAT,
        "family": "var",
        "fingerprint": fingerprint(model),
        "tokenizer_id": tokenizer.fingerprint,
        "architecture": architecture(model),
        "facts": facts.to_dict(),
    }
    refuse_other(folder / TOKENIZER_FILE, tokenizer.fingerprint)
    refuse_other(folder / MODEL_FILE, description["fingerprint"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_FILE).unlink(missing_ok=True)
    if not (folder / TOKENIZER_FILE).exists():  # the same one may carry metrics of its training
        save_tokenizer(folder, tokenizer, UNMEASURED)
    save_weights(folder, model.state_dict())
    with atomic_write(folder / CARD_FILE) as file:
        file.write(model_card(model, tokenizer, facts, name=folder.resolve().name).encode())
    write_json(folder / MODEL_FILE, description)


def from_pretrained(source: Path | str, *, revision: str | None = None) -> Pretrained:
    """Read a model folder.

    Args:
        source: a folder, or the id of a Hub repository that holds one (``org/name``, or ``org/name@revision``). A path
            that exists always wins; a Hub id needs the package huggingface_hub and a network.
        revision: branch, tag or commit of the Hub repository.

    Raises:
        ModelError: if the folder is absent, damaged or does not hold what its description says.
    """
    folder = fetch_folder(str(source), revision)
    path = folder / MODEL_FILE
    try:
        description = read_json(path)
    except RecordError as error:
        raise ModelError(f"no model in {folder}: {error}; write one with varscale import or export") from None
    if description.get("format") != FORMAT:
        raise ModelError(f"{path} has format {description.get('format')!r}, this version reads {FORMAT}; export again")
    tokenizer = load_tokenizer(folder)
    try:
        model = build(description["architecture"]).eval()
        model.load_state_dict(load_file(folder / WEIGHTS), assign=True)
        facts = Facts.from_dict(description["facts"])
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise ModelError(f"the model in {folder} cannot be read ({error}); import or export it again") from error
    if (found := fingerprint(model)) != description.get("fingerprint"):
        raise ModelError(
            f"the tensors in {folder / WEIGHTS} have fingerprint {found}, but {MODEL_FILE} says "
            f"{description.get('fingerprint')}: a file was changed; import or export the model again"
        )
    if tokenizer.fingerprint != description.get("tokenizer_id"):
        raise ModelError(
            f"{folder} holds tokenizer {tokenizer.fingerprint}, the model belongs to "
            f"{description.get('tokenizer_id')}; import or export both again"
        )
    return Pretrained(model, tokenizer, facts)


def check_pair(model: VAR, tokenizer: VQAutoencoder) -> None:
    """Raise ``ModelError`` unless the model predicts this tokenizer's tokens."""
    for what, mine, its in (
        ("schedule", model.schedule, tokenizer.schedule),
        ("code", model.code, tokenizer.code),
        ("number of code channels", model.latent_channels, tokenizer.latent_channels),
    ):
        if mine != its:
            raise ModelError(
                f"the model has the {what} {mine}, the tokenizer {its}; give the tokenizer that it was trained with"
            )


def refuse_other(path: Path, wanted: str) -> None:
    """Raise ``ModelError`` when ``path`` describes something with another fingerprint."""
    if path.exists() and (found := read_json(path).get("fingerprint")) != wanted:
        raise ModelError(
            f"{path} describes something else (fingerprint {found}; this one has {wanted}); "
            "choose another folder or remove that one"
        )
