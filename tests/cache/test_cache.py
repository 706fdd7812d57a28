"""The token cache: its tokens are the tokenizer's, it resumes, it refuses what is foreign, damaged or too large."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch

from varscale.cache import writer
from varscale.cache.manifest import MANIFEST_FILE, CacheError, Manifest
from varscale.cache.reader import TokenCache
from varscale.cache.writer import write_cache
from varscale.data.dead_leaves import DeadLeaves
from varscale.data.source import ImageBatch, Split
from varscale.tokenizers.autoencoder import VQAutoencoder


class Finite:
    """Twenty training images with an augmentation that shifts the brightness by the draw."""

    name, resolution, num_classes, fingerprint = "finite", 32, 10, "f" * 12

    def __init__(self) -> None:
        self.leaves = DeadLeaves()
        self.reads = 0

    def size(self, split: Split) -> int:
        return 20

    def read(self, split: Split, indices: np.ndarray, draw: np.ndarray | int) -> ImageBatch:
        self.reads += 1
        assert indices.max() < 20
        batch = self.leaves.read(split, indices, 0)
        shift = torch.as_tensor(np.broadcast_to(draw, indices.shape) * 0.2).float()[:, None, None, None]
        return ImageBatch((batch.pixels + shift).clamp(-1, 1), batch.labels, batch.ids)


def small(seed: int = 0, **settings: object) -> VQAutoencoder:
    torch.manual_seed(seed)
    return VQAutoencoder(**{"width": 16, "blocks": 1, **settings}).eval()


@pytest.fixture(scope="module")
def tokenizer() -> VQAutoencoder:
    return small()


@pytest.fixture(scope="module")
def source() -> DeadLeaves:
    return DeadLeaves(val_size=30)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def written(tokenizer: VQAutoencoder, source: object, folder: Path, **changes: object) -> Manifest:
    plan = {"train_images": 50, "val_images": 11, "shard_images": 20, "batch": 8, "progress": False, **changes}
    return write_cache(tokenizer, source, folder, **plan)  # type: ignore[arg-type]


@pytest.mark.parametrize("store_inputs", [False, True])
def test_tokens_equal_freshly_encoded_ones(
    tokenizer: VQAutoencoder, source: DeadLeaves, tmp_path: Path, store_inputs: bool
) -> None:
    manifest = written(tokenizer, source, tmp_path, store_inputs=store_inputs)
    assert manifest.complete and [s.images for s in manifest.shards] == [20, 20, 10, 11]
    cache = TokenCache.open(tmp_path, tokenizer=tokenizer, dataset_fingerprint=source.fingerprint)
    assert (cache.size("train"), cache.size("val"), cache.num_classes) == (50, 11, 10)
    assert cache.schedule == tokenizer.schedule and cache.code == tokenizer.code
    for split, rows in (("train", [49, 3, 20, 19, 3, 0]), ("val", [10, 0])):
        batch = cache.batch(split, np.array(rows))  # type: ignore[arg-type]
        fresh = source.read(split, np.array(rows), 0)  # type: ignore[arg-type]
        ids = tokenizer.encode(fresh.pixels)
        assert batch.ids_BL.dtype == torch.int64 and torch.equal(batch.ids_BL, ids)
        assert torch.equal(batch.labels_B, fresh.labels)
        if store_inputs:
            assert batch.inputs_BNC is not None and batch.inputs_BNC.dtype == torch.float32
            torch.testing.assert_close(batch.inputs_BNC, tokenizer.pyramid.inputs(ids), rtol=0, atol=1e-6)
        else:
            assert batch.inputs_BNC is None
    assert np.load(tmp_path / "train-00000.ids.npy").dtype == np.uint16


def test_ids_beyond_sixteen_bits(source: DeadLeaves, tmp_path: Path) -> None:
    tokenizer = small(vocabulary=2**16 + 1, latent_channels=2)
    with torch.no_grad():
        tokenizer.pyramid.quantizer.codebook[:-1] = 1e3
        tokenizer.pyramid.quantizer.codebook[-1] = 0
    written(tokenizer, source, tmp_path, train_images=4, val_images=2)
    assert (TokenCache.open(tmp_path).batch("train", np.arange(4)).ids_BL == 2**16).all()


def test_crops_are_draws_of_the_same_images(tokenizer: VQAutoencoder, tmp_path: Path) -> None:
    finite = Finite()
    manifest = written(tokenizer, finite, tmp_path, train_images=15, val_images=None, crops=3)
    assert [shard.images for shard in manifest.shards] == [20, 20, 5, 20]
    cache = TokenCache.open(tmp_path)
    assert (cache.size("train"), cache.size("val"), cache.crops) == (15, 20, 3)
    indices, draws = np.array([3, 14, 3, 0, 3]), np.array([0, 2, 1, 1, 2])
    fresh = tokenizer.encode(finite.read("train", indices, draws).pixels)
    assert torch.equal(cache.batch("train", indices, draws).ids_BL, fresh)
    assert not torch.equal(fresh[0], fresh[4])
    assert torch.equal(cache.batch("val", indices).ids_BL, tokenizer.encode(finite.read("val", indices, 0).pixels))
    for split, index, draw, message in (
        ("train", 15, 0, "image 15 is outside the train split of .* has 15"),
        ("train", 0, 3, "draw 3 is outside the train split of .* has 3"),
        ("val", 0, 1, "draw 1 is outside the val split of .* has 1"),
    ):
        with pytest.raises(CacheError, match=message):
            cache.batch(split, np.array([index]), draw)  # type: ignore[arg-type]
    with pytest.raises(CacheError, match="crops 3, not 2"):
        written(tokenizer, finite, tmp_path, train_images=15, val_images=None, crops=2)


def test_crops_that_would_all_be_the_same_are_refused(
    tokenizer: VQAutoencoder, source: DeadLeaves, tmp_path: Path
) -> None:
    class Unaugmented(Finite):
        def read(self, split: Split, indices: np.ndarray, draw: np.ndarray | int) -> ImageBatch:
            return super().read(split, indices, 0)

    with pytest.raises(CacheError, match="crops is 2, but finite is not augmented"):
        written(tokenizer, Unaugmented(), tmp_path / "same", train_images=None, crops=2)
    with pytest.raises(CacheError, match="crops is 2, but the training images of dead_leaves never repeat"):
        written(tokenizer, source, tmp_path / "endless", crops=2)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_written_before_there_were_crops_is_read(
    tokenizer: VQAutoencoder, source: DeadLeaves, tmp_path: Path
) -> None:
    manifest = written(tokenizer, source, tmp_path)
    path = tmp_path / MANIFEST_FILE
    values = json.loads(path.read_text())
    assert values.pop("crops") == 1
    path.write_text(json.dumps(values))
    assert TokenCache.open(tmp_path, tokenizer=tokenizer).manifest == manifest
    assert written(tokenizer, source, tmp_path) == manifest


def test_workers_change_nothing(tokenizer: VQAutoencoder, source: DeadLeaves, tmp_path: Path) -> None:
    for workers in (0, 2):
        written(tokenizer, source, tmp_path / str(workers), workers=workers)
    assert contents(tmp_path / "0") == contents(tmp_path / "2")


def test_more_shards_than_a_process_may_open_files(
    tokenizer: VQAutoencoder, source: DeadLeaves, tmp_path: Path
) -> None:
    written(tokenizer, source, tmp_path, train_images=30, val_images=1, shard_images=1)
    cache = TokenCache.open(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    unused = os.dup(0)  # the lowest number that is free
    os.close(unused)
    resource.setrlimit(resource.RLIMIT_NOFILE, (unused + 10, limits[1]))
    try:
        ids = cache.batch("train", np.arange(30)).ids_BL
        assert torch.equal(cache.batch("train", np.arange(29, -1, -1)).ids_BL, ids.flip(0))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_reading_is_picklable(tokenizer: VQAutoencoder, source: DeadLeaves, tmp_path: Path) -> None:
    written(tokenizer, source, tmp_path)
    cache = TokenCache.open(tmp_path)
    text = pickle.dumps(cache)
    assert len(text) < 4000
    rows = np.array([1, 30])
    assert torch.equal(pickle.loads(text).batch("train", rows).ids_BL, cache.batch("train", rows).ids_BL)
    with pytest.raises(CacheError, match=r"image 50 is outside the train split .* has 50"):
        cache.batch("train", np.array([0, 50]))


def test_an_interruption_is_resumed_where_it_was(
    tokenizer: VQAutoencoder, source: DeadLeaves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    encode = VQAutoencoder.encode

    def interrupted(self: VQAutoencoder, pixels: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 5:  # inside the second shard
            raise KeyboardInterrupt
        return encode(self, pixels)

    with monkeypatch.context() as patched:
        patched.setattr(VQAutoencoder, "encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            written(tokenizer, source, tmp_path / "a")
    (tmp_path / "a" / ".train-00001.ids.npy.xyz.tmp").write_bytes(b"left over by a kill")
    with pytest.raises(CacheError, match=r"incomplete \(20 of 50 train, 0 of 11 val images\)"):
        TokenCache.open(tmp_path / "a")
    first = (tmp_path / "a" / "train-00000.ids.npy").stat().st_mtime_ns
    resumed = written(tokenizer, source, tmp_path / "a")
    assert (tmp_path / "a" / "train-00000.ids.npy").stat().st_mtime_ns == first
    assert resumed == written(tokenizer, source, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_finished_cache_is_not_written_again(tokenizer: VQAutoencoder, tmp_path: Path) -> None:
    finite = Finite()
    manifest = written(tokenizer, finite, tmp_path, train_images=20)
    reads = finite.reads
    assert written(tokenizer, finite, tmp_path, train_images=20) == manifest
    assert finite.reads == reads


def test_a_flipped_byte_is_found_and_repaired(tokenizer: VQAutoencoder, source: DeadLeaves, tmp_path: Path) -> None:
    manifest = written(tokenizer, source, tmp_path)
    path = tmp_path / "train-00001.ids.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CacheError, match=r"train-00001\.ids\.npy has changed: SHA-256 \w+, but the manifest says \w+;"):
        TokenCache.open(tmp_path, tokenizer=tokenizer)
    TokenCache.open(tmp_path, tokenizer=tokenizer, verify=False)
    assert written(tokenizer, source, tmp_path) == manifest
    TokenCache.open(tmp_path, tokenizer=tokenizer)
    path.unlink()
    with pytest.raises(CacheError, match="is missing; launch the verb cache again"):
        TokenCache.open(tmp_path, tokenizer=tokenizer, verify=False)


def test_a_foreign_cache_is_refused(tokenizer: VQAutoencoder, source: DeadLeaves, tmp_path: Path) -> None:
    written(tokenizer, source, tmp_path)
    other = small(1)
    both = f"tokenizer {tokenizer.fingerprint}, not {other.fingerprint}"
    with pytest.raises(CacheError, match=f"{both}; write the cache again"):
        TokenCache.open(tmp_path, tokenizer=other)
    with pytest.raises(CacheError, match=both):
        TokenCache.open(tmp_path, fingerprint=other.fingerprint)
    with pytest.raises(CacheError, match=f"data {source.fingerprint}, not 0123"):
        TokenCache.open(tmp_path, dataset_fingerprint="0123")
    with pytest.raises(CacheError, match="schedule 1-2-3-4-6-8, not 1-2-4-8"):
        TokenCache.open(tmp_path, tokenizer=small(schedule="1-2-4-8"))
    before = contents(tmp_path)
    with pytest.raises(CacheError, match=rf"another cache .*{tokenizer.fingerprint}, not {other.fingerprint}.*delete"):
        written(other, source, tmp_path)
    with pytest.raises(CacheError, match=r"dataset_fingerprint \w+, not"):
        written(tokenizer, DeadLeaves(val_size=30, seed=1), tmp_path)
    with pytest.raises(CacheError, match="precision fp32, not bf16"):
        written(tokenizer, source, tmp_path, precision="bf16")
    assert before == contents(tmp_path)


@pytest.mark.parametrize("failing", ["ids", "labels", "shard.json"])
def test_a_full_disk_leaves_no_half_shard(
    tokenizer: VQAutoencoder, source: DeadLeaves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    from varscale import records

    whole = records.atomic_write

    @contextmanager
    def full(path: Path) -> Iterator[IO[bytes]]:
        with whole(path) as file:
            yield file
            if failing in path.name and (tmp_path / "train-00000.shard.json").exists():
                raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(writer, "atomic_write", full)
        patched.setattr(records, "atomic_write", full)
        with pytest.raises(CacheError, match=r"no space left in .* shard 1 of train \(.* MB\); the shards before"):
            written(tokenizer, source, tmp_path)
    first = {"train-00000.ids.npy", "train-00000.labels.npy", "train-00000.shard.json"}
    assert set(contents(tmp_path)) == {MANIFEST_FILE, *first}
    assert written(tokenizer, source, tmp_path).complete


@pytest.mark.parametrize("shards", [0, 4])
def test_a_full_disk_at_the_manifest(
    tokenizer: VQAutoencoder, source: DeadLeaves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    write = Manifest.write

    def full(self: Manifest, folder: Path) -> None:
        if len(self.shards) == shards:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, folder)

    with monkeypatch.context() as patched:
        patched.setattr(Manifest, "write", full)
        with pytest.raises(CacheError, match=r"no space left in .* for the manifest"):
            written(tokenizer, source, tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")}
    assert len(stamps) == 2 * shards
    assert written(tokenizer, source, tmp_path).complete
    assert stamps.items() <= {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")}.items()


def test_other_errors_of_the_disk_are_not_disguised(
    tokenizer: VQAutoencoder, source: DeadLeaves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def broken(path: Path) -> Iterator[IO[bytes]]:
        raise OSError(errno.EIO, "Input/output error")
        yield

    monkeypatch.setattr(writer, "atomic_write", broken)
    with pytest.raises(OSError, match="Input/output error"):
        written(tokenizer, source, tmp_path)


def test_refuses_settings_that_do_not_fit(tokenizer: VQAutoencoder, source: DeadLeaves, tmp_path: Path) -> None:
    for changes, message in (
        ({"train_images": None}, "train split of .* is infinite; state train_images"),
        ({"train_images": 0}, "train_images is 0; it must be at least 1"),
        ({"val_images": 31}, "val_images is 31, but .* has 30"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"shard_images": 0}, "shard_images is 0; it must be at least 1"),
        ({"batch": 0}, "batch is 0"),
        ({"workers": -1}, "workers is -1; it must be at least 0"),
        ({"crops": 0}, "crops is 0"),
    ):
        with pytest.raises(CacheError, match=message):
            written(tokenizer, source, tmp_path, **changes)
    with pytest.raises(CacheError, match="train_images is 21, but the train split of finite has 20"):
        written(tokenizer, Finite(), tmp_path, train_images=21)
    with pytest.raises(CacheError, match="resolution of 64 px, the tokenizer takes 32"):
        written(tokenizer, DeadLeaves(resolution=64), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_refuses_an_absent_or_damaged_manifest(tokenizer: VQAutoencoder, source: DeadLeaves, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"no token cache in .*manifest\.json is missing\); write one"):
        TokenCache.open(tmp_path)
    written(tokenizer, source, tmp_path)
    path = tmp_path / MANIFEST_FILE
    whole = path.read_text()
    for text in (whole[:100], "[]", json.dumps({"format": 1}), json.dumps({**json.loads(whole), "format": 0})):
        path.write_text(text)
        with pytest.raises(CacheError, match=r"delete .* and write the cache again"):
            TokenCache.open(tmp_path)


def test_bf16_is_of_the_trunk_and_recorded(tokenizer: VQAutoencoder, source: DeadLeaves, tmp_path: Path) -> None:
    assert written(tokenizer, source, tmp_path, precision="bf16", train_images=8).precision == "bf16"
    with torch.autocast("cpu", torch.bfloat16):
        ids = tokenizer.encode(source.read("train", np.arange(8), 0).pixels)
    assert torch.equal(TokenCache.open(tmp_path).batch("train", np.arange(8)).ids_BL, ids)
