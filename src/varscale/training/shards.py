"""Sharded checkpoints: written by all processes into one folder, read by any number of them, or as a whole by one.

The folder holds what torch.distributed.checkpoint writes (a file a process, and ``.metadata``) and ``rest.pt``: all
that is no tensor of the model or the optimiser, as rank 0 knows it. Parameters go by their names, so that a checkpoint
fits every strategy and every number of devices.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
from torch.distributed.tensor import DTensor

from varscale.ranks import place

REST = "rest.pt"
OPTIMIZER = "optimizer"
MODEL = "state_dict"


def write_shards(checkpoint: dict[str, Any], folder: Path) -> None:
    """Write a checkpoint of Lightning's into the new ``folder``; every process must call it.

    Raises:
        OSError: in every process, when one of them could not write its part; in the first, when it could not the rest.
    """
    rest = dict(checkpoint)
    (optimizer,) = rest.pop("optimizer_states")
    state = {MODEL: rest.pop("state_dict"), OPTIMIZER: optimizer}
    if place()[0] == 0:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        dcp.save(state, storage_writer=dcp.FileSystemWriter(folder, sync_files=True))
    except CheckpointException as error:
        raise OSError("; ".join(str(cause[0]) for cause in error.failures.values())) from error
    if place()[0] == 0:
        with (folder / REST).open("wb") as file:
            save_to(file, rest)
            file.flush()
            os.fsync(file.fileno())
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)  # the names in it
        finally:
            os.close(handle)


def save_to(file: IO[bytes], values: dict[str, Any]) -> None:
    """``torch.save``. Raises ``OSError`` for a refused write, of which torch makes a ``RuntimeError``."""
    try:
        torch.save(values, file)
    except RuntimeError as error:
        raise OSError(str(error).splitlines()[0]) from error


def read_shards(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, *, left_out: str) -> dict[str, Any]:
    """Load the weights and the optimiser's state from ``folder`` in place; every process must call it.

    Args:
        left_out: beginning of the names that no checkpoint holds.

    Returns:
        The rest of the checkpoint, with an empty ``state_dict``.
    """
    weights = {name: t for name, t in get_model_state_dict(module).items() if not name.startswith(left_out)}
    dcp.load({MODEL: weights}, checkpoint_id=folder)
    set_model_state_dict(module, weights, options=StateDictOptions(strict=False))
    state = get_optimizer_state_dict(module, optimizer)
    dcp.load({OPTIMIZER: state}, checkpoint_id=folder)
    set_optimizer_state_dict(module, optimizer, state)
    rest: dict[str, Any] = torch.load(folder / REST, map_location="cpu", weights_only=True)
    return rest | {"state_dict": {}}


def read_whole(folder: Path) -> dict[str, Any]:
    """A sharded checkpoint in the form of an unsharded one, in the memory of this process alone."""
    state: dict[str, Any] = {}
    reader = dcp.FileSystemReader(folder)
    _load_state_dict(state, storage_reader=reader, planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    rest: dict[str, Any] = torch.load(folder / REST, map_location="cpu", weights_only=True)
    by_name = state[OPTIMIZER]
    names = [name for group in by_name["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    groups = [group | {"params": [numbers[name] for name in group["params"]]} for group in by_name["param_groups"]]
    optimizer = {"state": {numbers[name]: value for name, value in by_name["state"].items()}, "param_groups": groups}
    return rest | {"state_dict": state[MODEL], "optimizer_states": [optimizer]}


def spread_whole(checkpoint: dict[str, Any], module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load an unsharded checkpoint into sharded parameters, each process its part; returns as ``read_shards`` does."""
    rest = dict(checkpoint)
    (state,) = rest.pop("optimizer_states")
    whole = StateDictOptions(full_state_dict=True, strict=False)
    set_model_state_dict(module, rest.pop("state_dict"), options=whole)
    known = {id(parameter): name for name, parameter in module.named_parameters()}
    names = [known[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    groups = [group | {"params": [names[number] for number in group["params"]]} for group in state["param_groups"]]
    by_name = {"state": {names[number]: value for number, value in state["state"].items()}, "param_groups": groups}
    set_optimizer_state_dict(module, optimizer, by_name, options=whole)
    return rest | {"state_dict": {}}


def whole_weights(model: nn.Module) -> Mapping[str, Tensor]:
    """The parameters and buffers of a model as they are on one device, in memory of the CPU; empty but on rank 0.

    Every process must call it where the model is sharded.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        gathered = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if place()[0] == 0:
            weights[name] = gathered.detach().cpu()
    return weights
