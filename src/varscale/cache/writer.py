"""Writing a token cache: encode every image once, shard by shard, resumable after any interruption.

A shard's files are written whole (temporary file, fsync, rename) before the manifest lists them; what an interruption
left over is written again. Row i of a split is the image at index i, or, where more rows than images are wanted, image
i mod size at its augmentation draw i // size.
Shapes: n images of a shard, L all tokens, C latent channels.
"""

from __future__ import annotations

import errno
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from varscale.cache.manifest import (
    MANIFEST_FILE,
    SPLITS,
    CacheError,
    Manifest,
    Shard,
    differences,
    file_sha256,
    shard_file,
)
from varscale.data.source import ImageSource, Split
from varscale.records import atomic_write
from varscale.tokenizers.protocol import Tokenizer

PRECISIONS = ("fp32", "bf16")


def write_cache(
    tokenizer: Tokenizer,
    source: ImageSource,
    folder: Path,
    *,
    train_images: int | None,
    val_images: int | None,
    shard_images: int = 8192,
    batch: int = 256,
    store_inputs: bool = False,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    progress: bool = True,
) -> Manifest:
    """Encode ``train_images`` and ``val_images`` images into ``folder``; continues what is there.

    Args:
        tokenizer: on ``device``, in evaluation mode.
        source: images and labels at the tokenizer's resolution.
        folder: made if it is absent.
        train_images: rows of the training split; ``None`` for every image of a finite split.
        val_images: rows of the validation split, at most its size; ``None`` for all.
        shard_images: rows of a shard.
        batch: images encoded at a time.
        store_inputs: also store the teacher-forcing input, 4 (L - n_0) C bytes an image, instead of computing it from
            the ids whenever a batch is read.
        device: where to encode.
        precision: of the trunk, ``fp32`` or ``bf16`` (faster; some ids differ). The quantiser is always float32.
        progress: whether to show a bar.

    Raises:
        CacheError: if the folder holds the cache of another tokenizer, data set, schedule or form, the disk is full, or
            the settings do not fit the data.
    """
    folder = Path(folder)
    manifest = _planned(
        tokenizer,
        source,
        images={"train": _rows(source, "train", train_images), "val": _rows(source, "val", val_images)},
        shard_images=shard_images,
        store_inputs=store_inputs,
        precision=precision,
    )
    if batch < 1 or shard_images < 1:
        raise CacheError(f"batch {batch}, shard_images {shard_images}: both must be at least 1")
    manifest = _continued(manifest, folder)
    total = sum(manifest.images.values())
    done = sum(manifest.cached(split) for split in SPLITS)
    with tqdm(total=total, initial=done, unit="image", desc="cache", disable=not progress) as bar:
        for split in SPLITS:
            while (start := manifest.cached(split)) < manifest.images[split]:
                index = start // shard_images
                images = min(shard_images, manifest.images[split] - start)
                arrays = _encode(tokenizer, source, manifest, split, start, images, batch, device, bar)
                try:
                    shard = _write_shard(folder, split, index, start, arrays)
                    manifest = manifest.with_shards((*manifest.shards, shard))
                    manifest.write(folder)
                except OSError as error:
                    _remove_shard(folder, split, index)
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    needed = sum(array.nbytes for array in arrays.values())
                    raise CacheError(
                        f"no space left in {folder} for shard {index} of {split} ({needed / 1e6:.1f} MB; {start} of "
                        f"{manifest.images[split]} images are safe); free space or choose another folder, "
                        "then launch again"
                    ) from error
    return manifest


def _rows(source: ImageSource, split: Split, wanted: int | None) -> int:
    size = source.size(split)
    if wanted is None:
        if size is None:
            raise CacheError(f"the {split} split of {source.name} is infinite; state {split}_images")
        return size
    if wanted < 1:
        raise CacheError(f"{split}_images is {wanted}; it must be at least 1")
    if split == "val" and size is not None and wanted > size:
        raise CacheError(
            f"val_images is {wanted}, but the validation split of {source.name} has {size}; ask for at most that"
        )
    return wanted


def _planned(
    tokenizer: Tokenizer,
    source: ImageSource,
    *,
    images: dict[str, int],
    shard_images: int,
    store_inputs: bool,
    precision: str,
) -> Manifest:
    """The manifest of the wanted cache, without shards."""
    if precision not in PRECISIONS:
        raise CacheError(f"unknown precision {precision!r}; it is fp32 or bf16")
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
        shard_images=shard_images,
    )


def _continued(planned: Manifest, folder: Path) -> Manifest:
    """``planned`` with the shards in ``folder`` that are whole; refuses the cache of something else."""
    for left_over in folder.glob(".*.tmp"):
        left_over.unlink()
    if not (folder / MANIFEST_FILE).exists():
        return planned
    found = Manifest.read(folder)
    wanted = {name: value for name, value in asdict(planned).items() if name != "shards"}
    if different := differences(asdict(found), wanted):
        raise CacheError(
            f"{folder} holds another cache ({'; '.join(different)}); delete the folder or choose another one"
        )
    kept: list[Shard] = []
    for split in SPLITS:
        for shard in (shard for shard in found.shards if shard.split == split):
            paths = {folder / name: digest for name, digest in shard.sha256.items()}
            if not all(path.exists() and file_sha256(path) == digest for path, digest in paths.items()):
                break  # this shard and those after it are written again
            kept.append(shard)
    return planned.with_shards(tuple(kept))


@torch.no_grad()
def _encode(
    tokenizer: Tokenizer,
    source: ImageSource,
    manifest: Manifest,
    split: Split,
    start: int,
    images: int,
    batch: int,
    device: torch.device | str,
    bar: tqdm,
) -> dict[str, np.ndarray]:
    """The arrays of one shard."""
    schedule = tokenizer.schedule
    arrays = {
        "ids": np.empty((images, schedule.num_tokens), manifest.dtype),
        "labels": np.empty(images, np.int64),
    }
    if manifest.store_inputs:
        shape = (images, schedule.num_tokens - schedule.tokens_per_scale[0], tokenizer.latent_channels)
        arrays["inputs"] = np.empty(shape, np.float32)
    size = source.size(split)
    device = torch.device(device)
    for at in range(0, images, batch):
        part = slice(at, min(at + batch, images))
        rows = np.arange(start + part.start, start + part.stop)
        indices, draws = (rows, np.zeros_like(rows)) if size is None else (rows % size, rows // size)
        loaded = source.read(split, indices, draws)
        trunk_in_bf16 = torch.autocast(device.type, torch.bfloat16) if manifest.precision == "bf16" else nullcontext()
        with trunk_in_bf16:
            ids = tokenizer.encode(loaded.pixels.to(device))
        arrays["ids"][part] = ids.cpu().numpy()
        arrays["labels"][part] = loaded.labels.numpy()
        if manifest.store_inputs:
            arrays["inputs"][part] = tokenizer.pyramid.inputs(ids).cpu().numpy()
        bar.update(len(rows))
    return arrays


def _write_shard(folder: Path, split: Split, index: int, start: int, arrays: dict[str, np.ndarray]) -> Shard:
    digests = {}
    for array, values in arrays.items():
        path = folder / shard_file(split, index, array)
        with atomic_write(path) as file:
            np.save(file, values)
        digests[path.name] = file_sha256(path)
    return Shard(split, index, start, len(arrays["ids"]), digests)


def _remove_shard(folder: Path, split: Split, index: int) -> None:
    for path in folder.glob(shard_file(split, index, "*")):
        path.unlink()
