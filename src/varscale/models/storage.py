"""Weights of a trained model: one safetensors file in the run's folder; the run's config says how to build it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn

from varscale.records import RecordError, atomic_write

WEIGHTS = "model.safetensors"


def save_weights(folder: Path, model: nn.Module) -> None:
    """Write the parameters atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_write(folder / WEIGHTS) as file:
        file.write(save(tensors))


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
