"""Several processes write one cache: the bytes are those of one process, whoever is killed on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from runpy import run_path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from varscale.cache.manifest import CacheError, Manifest
from varscale.cache.reader import TokenCache
from varscale.cache.writer import write_cache
from varscale.data.dead_leaves import DeadLeaves
from varscale.tokenizers.autoencoder import VQAutoencoder

ENDED_EARLY = 3
AUTOENCODER = VQAutoencoder.__module__
RANK = "ARGUMENTS_OF_ONE_RANK"


def tokenizer() -> VQAutoencoder:
    torch.manual_seed(0)
    return VQAutoencoder(width=16, blocks=1).eval()


def write(folder: Path, **changes: object) -> Manifest:
    plan = {"train_images": 50, "val_images": 11, "shard_images": 8, "batch": 5, "progress": False, **changes}
    return write_cache(tokenizer(), DeadLeaves(val_size=30), folder, **plan)  # type: ignore[arg-type]


def of_one_rank(rank: int, world: int, folder: Path, killed: tuple[int, int] | None) -> None:
    """Write the cache as one of ``world``; ``killed`` is the rank that dies, and at which of its batches."""
    dist.init_process_group("gloo", init_method=f"file://{folder}-{world}-{killed}", rank=rank, world_size=world)
    encode, calls = VQAutoencoder.encode, 0

    def encode_or_die(self: VQAutoencoder, pixels: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if killed == (rank, calls):
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(self, pixels)

    VQAutoencoder.encode = encode_or_die  # type: ignore[method-assign]
    try:
        write(folder)
    except CacheError as error:
        assert "another process of this cache ended early" in str(error)
        os._exit(ENDED_EARLY)
    os._exit(0)  # not the test run's own ending


@pytest.fixture(scope="module")
def together() -> Callable[..., list[int | None]]:
    """Runs ranks to their end, and returns their exit codes."""
    # Forks of one process that has only imported torch: importing it costs seconds, and a fork of the test run, with
    # the threads of the tests before, can hang.
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "varscale.cache.writer", "varscale.data.dead_leaves", AUTOENCODER])

    def call(world: int, folder: Path, killed: tuple[int, int] | None = None) -> list[int | None]:
        processes: list[BaseProcess] = [
            # This file by its path: whether a process can import it by name depends on how pytest was started.
            context.Process(target=run_path, args=(__file__, {RANK: (rank, world, folder, killed)}, "__main__"))
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            process.kill()
        return [process.exitcode for process in processes]

    return call


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of one process."""
    folder = tmp_path_factory.mktemp("alone")
    write(folder)
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("world", [2, 3])
def test_the_bytes_are_those_of_one_process(
    together: Callable[..., list[int | None]], alone: dict[str, bytes], tmp_path: Path, world: int
) -> None:
    assert together(world, tmp_path / "cache") == [0] * world
    assert contents(tmp_path / "cache") == alone


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_costs_only_its_shard(
    together: Callable[..., list[int | None]], alone: dict[str, bytes], tmp_path: Path, victim: int
) -> None:
    folder = tmp_path / "cache"
    codes = together(2, folder, (victim, 4))  # in the middle of its second shard
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == ENDED_EARLY
    with pytest.raises(CacheError, match="is incomplete"):
        TokenCache.open(folder)
    (folder / f".train-0000{2 + victim}.ids.npy.xyz.tmp").write_bytes(b"left over by the kill")
    (folder / f"train-0000{2 + victim}.ids.npy").write_bytes(b"of a shard that has no sidecar yet")
    names = [path.name.removesuffix(".shard.json") for path in folder.glob("*.shard.json")]
    assert len(names) == (6 if victim else 5)  # of 9: all of the other's, the first of the victim's
    whole = {name: (folder / f"{name}.ids.npy").stat().st_mtime_ns for name in names}
    if victim:
        write(folder)  # one process goes on where two were
    else:
        assert together(3, folder) == [0, 0, 0]
    assert contents(folder) == alone
    assert whole == {name: (folder / f"{name}.ids.npy").stat().st_mtime_ns for name in whole}


def test_more_processes_than_shards(
    together: Callable[..., list[int | None]], alone: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    write(folder)
    (folder / "val-00001.labels.npy").unlink()
    assert together(3, folder) == [0, 0, 0]
    assert contents(folder) == alone


def test_a_sidecar_of_another_cache_does_not_count(alone: dict[str, bytes], tmp_path: Path) -> None:
    def interrupted(self: VQAutoencoder, pixels: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    folder = tmp_path / "cache"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(VQAutoencoder, "encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(folder)
    other = write(tmp_path / "other", precision="bf16")
    for name, content in contents(tmp_path / "other").items():
        if name.startswith("train-00000"):
            (folder / name).write_bytes(content)
    other.write_sidecar(folder, other.shards[0])
    write(folder)
    assert contents(folder) == alone


if __name__ == "__main__":
    of_one_rank(*globals()[RANK])
