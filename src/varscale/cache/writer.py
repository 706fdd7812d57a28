"""Writing a token cache: encode every image once, shard by shard, resumable after any interruption.

A shard's files are written whole (temporary file, fsync, rename) before its sidecar says so; what an interruption left
over is written again. Several processes (``torch.distributed``) divide the shards that are missing among them; which
process writes a shard, and with how many others, changes no byte.
Shapes: n images of a shard, L all tokens, C latent channels.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from varscale.cache.encoding import PRECISIONS, SpanBatches, encode
from varscale.cache.manifest import (
    MANIFEST_FILE,
    SIDECARS,
    CacheError,
    Manifest,
    Shard,
    Span,
    differences,
    file_sha256,
    shard_file,
)
from varscale.cache.ranks import of_all
from varscale.data.source import ImageBatch, ImageSource, Split
from varscale.ranks import place
from varscale.records import atomic_write, clear_remains
from varscale.tokenizers.protocol import Tokenizer

COMPARED_IMAGES = 8  # whose first two draws are compared, to see that a draw changes anything


def write_cache(
    tokenizer: Tokenizer,
    source: ImageSource,
    folder: Path,
    *,
    train_images: int | None,
    val_images: int | None,
    crops: int = 1,
    shard_images: int = 8192,
    batch: int = 256,
    store_inputs: bool = False,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    workers: int = 0,
    progress: bool = True,
) -> Manifest:
    """Encode ``train_images`` and ``val_images`` images into ``folder``; continues what is there.

    Where ``torch.distributed`` is initialised, every process must call it, with the same arguments but for the device,
    on a folder that all of them see.

    Args:
        tokenizer: on ``device``, in evaluation mode.
        source: images and labels at the tokenizer's resolution.
        folder: made if it is absent.
        train_images: images of the training split; ``None`` for every image of a finite split.
        val_images: images of the validation split; ``None`` for all.
        crops: augmentation draws of each training image, 0 ... crops - 1.
        shard_images: rows of a shard; the arrays of one shard are held in memory.
        batch: images encoded at a time.
        store_inputs: also store the teacher-forcing input, 4 (L - n_0) C bytes an image, instead of computing it from
            the ids whenever a batch is read.
        device: where to encode.
        precision: of the trunk, ``fp32`` or ``bf16`` (faster; some ids differ). The quantiser is always float32.
        workers: processes that prepare images for this one; 0 prepares them in between.
        progress: whether to show a bar, of this process's share; only the first process shows one.

    Raises:
        CacheError: if the folder holds the cache of another tokenizer, data set, schedule or form, the disk is full,
            another process has ended, or the settings do not fit the data.
    """
    folder = Path(folder)
    rank, world = place()
    counts = {"crops": (crops, 1), "shard_images": (shard_images, 1), "batch": (batch, 1), "workers": (workers, 0)}
    for name, (value, least) in counts.items():
        if value < least:
            raise CacheError(f"{name} is {value}; it must be at least {least}")
    planned = _planned(
        tokenizer,
        source,
        images={"train": _images(source, "train", train_images), "val": _images(source, "val", val_images)},
        crops=crops,
        shard_images=shard_images,
        store_inputs=store_inputs,
        precision=precision,
    )
    _refuse_another(planned, folder)
    progress = progress and rank == 0
    # The folder as the first process sees it: on a network's file system the others may see it later.
    recorded = of_all(_opened(planned, folder, source).shards if rank == 0 else ())[0]
    kept = [shard for share in of_all(_whole(recorded[rank::world], folder, progress)) for shard in share]
    there = {shard.key for shard in kept}
    missing = [span for span in planned.spans() if span.key not in there]
    if missing and rank == 0:
        # A source may decode or map its files when it is first read: once, before workers and other processes read.
        source.read("train", np.zeros(1, dtype=np.int64), 0)
    of_all(None)
    mine = missing[rank::world]
    batches = SpanBatches(source, mine, dict(planned.images), batch)
    loaded = batches.load(workers=workers, pin_memory=torch.device(device).type == "cuda")
    done = sum(shard.images for shard in kept) // world
    total = done + sum(span.images for span in mine)
    title = "cache" if world == 1 else f"cache, process 1 of {world}"
    written = []
    with tqdm(total=total, initial=done, unit="image", desc=title, disable=not progress) as bar:
        for span in mine:
            arrays = _encoded(tokenizer, planned, span, loaded, device, bar)
            written.append(_write_shard(folder, planned, span, arrays))
    manifest = planned.with_shards([*kept, *(shard for share in of_all(written) for shard in share)])
    if rank == 0 and missing:
        with _disk_that_may_be_full(folder, "the manifest"):
            manifest.write(folder)
    if rank == 0:
        for path in folder.glob(SIDECARS):
            path.unlink()
    of_all(None)  # nobody reads a cache whose manifest is not written
    return manifest


def _images(source: ImageSource, split: Split, wanted: int | None) -> int:
    size = source.size(split)
    if wanted is None:
        if size is None:
            raise CacheError(f"the {split} split of {source.name} is infinite; state {split}_images")
        return size
    if wanted < 1:
        raise CacheError(f"{split}_images is {wanted}; it must be at least 1")
    if size is not None and wanted > size:
        raise CacheError(
            f"{split}_images is {wanted}, but the {split} split of {source.name} has {size}; ask for at most that"
        )
    return wanted


def _planned(
    tokenizer: Tokenizer,
    source: ImageSource,
    *,
    images: dict[str, int],
    crops: int,
    shard_images: int,
    store_inputs: bool,
    precision: str,
) -> Manifest:
    """The manifest of the wanted cache, without shards."""
    if precision not in PRECISIONS:
        raise CacheError(f"unknown precision {precision!r}; it is {' or '.join(PRECISIONS)}")
    if crops > 1 and source.size("train") is None:
        raise CacheError(
            f"crops is {crops}, but the training images of {source.name} never repeat; raise train_images instead"
        )
    if tokenizer.code.kind != "index":
        raise CacheError(f"the code {tokenizer.code} is no index; the cache stores indices")
    if source.resolution != tokenizer.resolution:
        raise CacheError(
            f"{source.name} has a resolution of {source.resolution} px, the tokenizer takes {tokenizer.resolution}; "
            f"set the data's resolution to {tokenizer.resolution}"
        )
    return Manifest(
        tokenizer_fingerprint=tokenizer.fingerprint,
        dataset_fingerprint=source.fingerprint,
        dataset=source.name,
        resolution=source.resolution,
        num_classes=source.num_classes,
        schedule=str(tokenizer.schedule),
        code=str(tokenizer.code),
        latent_channels=tokenizer.latent_channels,
        dtype="uint16" if tokenizer.code.size <= 2**16 else "uint32",
        store_inputs=store_inputs,
        precision=precision,
        images=images,
        crops=crops,
        shard_images=shard_images,
    )


def _refuse_another(planned: Manifest, folder: Path) -> None:
    if not (folder / MANIFEST_FILE).exists():
        return
    found = Manifest.read(folder)
    wanted = {name: value for name, value in asdict(planned).items() if name != "shards"}
    if different := differences(asdict(found), wanted):
        raise CacheError(
            f"{folder} holds another cache ({'; '.join(different)}); delete the folder or choose another one"
        )


def _opened(planned: Manifest, folder: Path, source: ImageSource) -> Manifest:
    """``planned`` with the shards that are recorded in ``folder``, which from now on says whose cache it holds."""
    clear_remains(folder)
    if not (folder / MANIFEST_FILE).exists():
        if planned.crops > 1:
            _refuse_equal_crops(source, planned)
        with _disk_that_may_be_full(folder, "the manifest"):
            planned.write(folder)
    return planned.with_shards(Manifest.read(folder).shards).with_sidecars(folder)


def _whole(shards: Sequence[Shard], folder: Path, progress: bool) -> list[Shard]:
    """The shards whose files are there and unchanged."""
    bar = tqdm(shards, desc="verify cache", unit="shard", delay=2, leave=False, disable=not progress)
    return [shard for shard in bar if shard.whole(folder)]


def _refuse_equal_crops(source: ImageSource, planned: Manifest) -> None:
    """Raise where a source ignores the draw: its crops would be copies."""
    indices = np.arange(min(COMPARED_IMAGES, planned.images["train"]))
    first, second = (source.read("train", indices, draw).pixels for draw in (0, 1))
    if torch.equal(first, second):
        raise CacheError(
            f"crops is {planned.crops}, but {source.name} is not augmented: every draw of an image is the same; "
            "set crops to 1"
        )


def _encoded(
    tokenizer: Tokenizer,
    manifest: Manifest,
    span: Span,
    batches: Iterator[ImageBatch],
    device: torch.device | str,
    bar: tqdm,
) -> dict[str, np.ndarray]:
    """The arrays of one shard, from the next batches."""
    schedule = tokenizer.schedule
    arrays = {
        "ids": np.empty((span.images, schedule.num_tokens), manifest.dtype),
        "labels": np.empty(span.images, np.int64),
    }
    if manifest.store_inputs:
        shape = (span.images, schedule.num_tokens - schedule.tokens_per_scale[0], tokenizer.latent_channels)
        arrays["inputs"] = np.empty(shape, np.float32)
    at = 0
    while at < span.images:
        batch = next(batches)
        part = slice(at, at + len(batch.labels))
        ids = encode(tokenizer, batch.pixels.to(device, non_blocking=True), manifest.precision)
        arrays["ids"][part] = ids.cpu().numpy()
        arrays["labels"][part] = batch.labels.numpy()
        if manifest.store_inputs:
            arrays["inputs"][part] = tokenizer.pyramid.inputs(ids).cpu().numpy()
        bar.update(len(batch.labels))
        at = part.stop
    return arrays


def _write_shard(folder: Path, manifest: Manifest, span: Span, arrays: dict[str, np.ndarray]) -> Shard:
    digests = {}
    size = sum(array.nbytes for array in arrays.values())
    try:
        with _disk_that_may_be_full(folder, f"shard {span.index} of {span.split} ({size / 1e6:.1f} MB)"):
            for array, values in arrays.items():
                path = folder / shard_file(span.split, span.index, array)
                with atomic_write(path) as file:
                    np.save(file, values)
                digests[path.name] = file_sha256(path)
            shard = Shard(span.split, span.index, span.start, span.images, digests)
            manifest.write_sidecar(folder, shard)
    except BaseException:
        for path in folder.glob(shard_file(span.split, span.index, "*")):
            path.unlink()
        raise
    return shard


@contextmanager
def _disk_that_may_be_full(folder: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CacheError(
            f"no space left in {folder} for {what}; the shards before it are safe: free space or choose another "
            "folder, then launch again"
        ) from error
