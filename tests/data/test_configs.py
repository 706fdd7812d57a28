"""Every YAML of conf/data makes the source it names."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from varscale.data.source import DataError, ImageSource


def source_of(repository: Path, name: str, **changes: object) -> ImageSource:
    source: ImageSource = instantiate(OmegaConf.load(repository / "conf" / "data" / f"{name}.yaml"), **changes)
    return source


@pytest.mark.parametrize(("name", "classes", "resolution"), [("dead_leaves", 10, 32), ("dead_leaves_rich", 10, 32)])
def test_procedural_sources(repository: Path, name: str, classes: int, resolution: int) -> None:
    source = source_of(repository, name)
    assert (source.name, source.num_classes, source.resolution) == (name, classes, resolution)
    assert source.read("train", np.arange(2), 0).pixels.shape == (2, 3, 32, 32)


def test_sources_on_real_data(
    repository: Path, test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VARSCALE_DATA", str(test_data))
    cifar = source_of(repository, "cifar10", cache_dir=str(tmp_path))
    assert (cifar.name, cifar.num_classes, cifar.resolution, cifar.size("train")) == ("cifar10", 10, 32, 50_000)
    samples = source_of(repository, "imagenet_samples", resolution=128)
    assert (samples.name, samples.num_classes, samples.resolution) == ("imagenet_samples", 1000, 128)
    assert samples.read("val", np.arange(2), 0).pixels.shape == (2, 3, 128, 128)


def test_imagenet_reads_train_and_val_folders(repository: Path, test_data: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).symlink_to(test_data / "imagenet-1k-samples")
    source = source_of(repository, "imagenet", path=str(tmp_path))
    assert (source.size("train"), source.size("val"), source.num_classes) == (1000, 1000, 1000)


@pytest.mark.parametrize(
    ("name", "hint"), [("cifar10", "uoft-cs/cifar10"), ("imagenet", "data.path"), ("imagenet_samples", "data.path")]
)
def test_absent_data_is_explained(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, hint: str
) -> None:
    monkeypatch.setenv("VARSCALE_DATA", str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
    # Hydra adds the key that failed and keeps the error as the cause.
    with pytest.raises(InstantiationException, match=rf"{name} at {tmp_path}/.*VARSCALE_DATA.*{hint}") as raised:
        source_of(repository, name)
    assert isinstance(raised.value.__cause__, DataError)
