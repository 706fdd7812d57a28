"""Reading tensors from other people's files: ``.pth`` and ``.safetensors``, without executing what they hold.

A ``.pth`` is a pickle, which can run any code; ``torch.load(weights_only=True)`` builds tensors and plain containers
and refuses everything else. Accepted: a bare state dict, the released trainer's checkpoint ({"trainer":
{"var_wo_ddp": ..., "vae_local": ...}, ...}), and names with the prefix of a wrapper (DistributedDataParallel,
torch.compile).
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

Part = Literal["var_wo_ddp", "vae_local"]
WRAPPER = re.compile(r"(module\.|_orig_mod\.)+")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: names the file or the tensors, what is wrong and the remedy."""


def read_state_dict(path: Path | str, part: Part) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their stored names, mapped into memory where the format allows it.

    Args:
        path: a ``.pth`` (or ``.pt``, ``.ckpt``, ``.bin``) or ``.safetensors`` file.
        part: which state dict of a trainer's checkpoint: the transformer's or the tokenizer's. A bare state dict is
            returned whatever it is of.

    Raises:
        CheckpointError: if the file is absent, cut off, would execute code, or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist or is no file; give the path of a .pth or .safetensors file")
    content = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    trainer = content.get("trainer") if isinstance(content, Mapping) else None
    if isinstance(trainer, Mapping):
        if part not in trainer:
            raise CheckpointError(
                f"{path} is a trainer's checkpoint without {part!r} (it holds {', '.join(map(str, trainer))}); "
                "give the file of that state dict itself"
            )
        content = trainer[part]
    return _tensors(path, content)


def _safetensors(path: Path) -> dict[str, Tensor]:
    _refuse_text(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); fetch it again") from None


def _pickled(path: Path) -> Any:
    _refuse_text(path)
    try:
        # The zip form, which torch writes since 1.6, can be mapped: only what is used is read.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if match := re.search(r"(?:GLOBAL|function) ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path} holds more than tensors: unpickling it would run {match[1]}. It was not loaded; save "
                "model.state_dict() alone, or ask for a .safetensors file"
            ) from None
        raise CheckpointError(_damaged(path, error)) from None
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(_damaged(path, error)) from None


def _damaged(path: Path, error: Exception) -> str:
    told = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    reason = told[0] if told else type(error).__name__
    size = path.stat().st_size
    return f"{path} is damaged, cut off or no checkpoint of torch ({size:,} bytes; {reason}); fetch it again"


def _refuse_text(path: Path) -> None:
    """The two things that a failed download leaves under the name of a checkpoint, and an empty file."""
    with path.open("rb") as file:
        head = file.read(200).lstrip()
    if not head:
        raise CheckpointError(f"{path} is empty; fetch it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; run git lfs pull, or download the file")
    if head[:15].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            f"{path} is a web page, not weights: the download failed; use the address of the raw file"
        )


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content:
        what = f"an empty {type(content).__name__}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise CheckpointError(f"{path} holds {what}, not tensors by name; save model.state_dict()")
    other = [f"{name} ({type(value).__name__})" for name, value in content.items() if not isinstance(value, Tensor)]
    if other:
        raise CheckpointError(
            f"{path} holds things that are no tensors: {', '.join(other[:8])}{' ...' if len(other) > 8 else ''}; "
            "give a bare state dict, or the released trainer's checkpoint"
        )
    if all(WRAPPER.match(str(name)) for name in content):
        return {WRAPPER.sub("", str(name), count=1): tensor for name, tensor in content.items()}
    return {str(name): tensor for name, tensor in content.items()}


def agreed_size(state: Mapping[str, Tensor], what: str, *places: tuple[str, int, int]) -> int:
    """The size that most of the places agree on, so that one wrong tensor does not mislead about all others.

    Args:
        state: tensors by name.
        what: the size, for the message.
        places: regular expression of a name, dimensions the tensor must have, axis to read.

    Raises:
        CheckpointError: if none of the tensors is there.
    """
    votes = Counter(
        tensor.shape[axis]
        for pattern, dimensions, axis in places
        for name, tensor in state.items()
        if re.fullmatch(pattern, name) and tensor.ndim == dimensions
    )
    if not votes:
        names = ", ".join(f"{pattern} ({dimensions} dimensions)" for pattern, dimensions, _ in places)
        raise CheckpointError(f"missing: none of the tensors that tell the {what} is there: {names}")
    return votes.most_common(1)[0][0]


def check_tensors(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    """Compare names, shapes and kinds of number; ``wanted`` may lie on the meta device.

    Raises:
        CheckpointError: lists every missing, unexpected and wrong tensor with what it should be.
    """
    problems = [f"missing {name}: should have shape {_shape(wanted[name])}" for name in wanted if name not in found]
    problems += [f"unexpected {name} of shape {_shape(found[name])}" for name in found if name not in wanted]
    for name in wanted:
        if name not in found:
            continue
        if found[name].shape != wanted[name].shape:
            problems.append(f"{name} has shape {_shape(found[name])}, should be {_shape(wanted[name])}")
        elif found[name].is_floating_point() != wanted[name].is_floating_point():
            problems.append(f"{name} holds {found[name].dtype}, should be {wanted[name].dtype}")
    if problems:
        raise CheckpointError(f"not the state dict of {what}:\n  " + "\n  ".join(problems))


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
