"""Sharded checkpoints on a disk that refuses them."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from varscale.training.shards import REST, write_shards


@contextmanager
def full_disk() -> Iterator[None]:
    """Files take 16 KiB, then the kernel refuses them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def _alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize("large", ["weights", "rest"])
def test_a_refused_write_is_an_error_of_the_disk(tmp_path: Path, large: str) -> None:
    """So that the run goes on: ``Sharded.save_checkpoint`` says it and tries again later."""
    optimizer: dict[str, Any] = {"state": {}, "param_groups": [{"params": ["w"], "lr": 0.1}]}
    sizes = {"weights": 8, "rest": 8} | {large: 50_000}
    checkpoint = {
        "state_dict": {"w": torch.zeros(sizes["weights"])},
        "optimizer_states": [optimizer],
        "global_step": 1,
        "random": torch.zeros(sizes["rest"]),
    }
    with full_disk(), pytest.raises(OSError):
        write_shards(checkpoint, tmp_path / "aside")
    write_shards(checkpoint, tmp_path / "aside")  # over what is left of it
    assert (tmp_path / "aside" / REST).exists()
