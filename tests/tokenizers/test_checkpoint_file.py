"""Files of tensors from elsewhere: every form that is read, and what is refused without running it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from varscale.tokenizers.checkpoint_file import CheckpointError, read_state_dict


def store(path: Path, content: object) -> Path:
    """A ``.pth`` in torch's zip form, or ``legacy.pth`` in the one before; ``.safetensors`` by its suffix."""
    if path.suffix == ".safetensors":
        save_file(content, path)  # type: ignore[arg-type]
    else:
        torch.save(content, path, _use_new_zipfile_serialization=path.stem != "legacy")
    return path


@pytest.mark.parametrize("name", ["var.pth", "legacy.pth", "var.safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_forms_of_files(tmp_path: Path, name: str, prefix: str) -> None:
    state = {"head.weight": torch.randn(3, 2), "head.bias": torch.randn(3)}
    path = store(tmp_path / name, {prefix + key: tensor for key, tensor in state.items()})
    read = read_state_dict(path, "var_wo_ddp")
    assert read.keys() == state.keys() and all(torch.equal(read[key], state[key]) for key in state)


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["code.pth", "legacy.pth"])
def test_a_pickle_that_executes_code_does_not(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "executed"
    path = store(tmp_path / name, {"head.weight": Malicious(marker)})
    with pytest.raises(CheckpointError, match=rf"{name} holds more than tensors: unpickling it would run getattr"):
        read_state_dict(path, "var_wo_ddp")
    assert not marker.exists()
    torch.load(path, weights_only=False)  # it would have
    assert marker.exists()


@pytest.mark.parametrize("name", ["var.pth", "legacy.pth", "var.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file(tmp_path: Path, name: str, share: float) -> None:
    path = store(tmp_path / name, {"head.weight": torch.ones(1000), "head.bias": torch.ones(1000)})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=rf"{name} is .*fetch it again"):
        read_state_dict(path, "var_wo_ddp")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 4\n", "Git LFS pointer"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 4\n", "Git LFS pointer"),
        ("a.pth", b"\n<!DOCTYPE html><html>404</html>", "web page"),
        ("a.pth", b"just some text", "damaged, cut off or no checkpoint"),
        ("a.safetensors", b"just some text", "not a whole safetensors file"),
    ],
)
def test_a_file_that_is_no_checkpoint(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(tmp_path / name, "vae_local")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(2), "holds a Tensor, not tensors by name"),
        ({}, "holds an empty dict"),
        ({"a": torch.ones(1), "epoch": 3}, r"no tensors: epoch \(int\)"),
        ({"state_dict": {"a": torch.ones(1)}}, r"no tensors: state_dict \(dict\)"),
    ],
)
def test_contents_that_are_no_state_dict(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(store(tmp_path / "a.pth", content), "vae_local")
