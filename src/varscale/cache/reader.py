"""Reading a token cache: memory-mapped arrays, any images of a split, at any draw, as one ``TokenBatch``.

Shapes: B batch, L all tokens, N tokens after the first scale, C latent channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from tqdm import tqdm

from varscale.cache.manifest import SPLITS, CacheError, Manifest, differences, file_sha256, shard_file
from varscale.codes import CodeSpec
from varscale.data.source import Split
from varscale.schedule import ScaleSchedule
from varscale.tokenizers.protocol import Tokenizer
from varscale.tokenizers.tokens import TokenBatch

DTYPES = {"ids": np.int64, "labels": np.int64, "inputs": np.float32}  # of a batch
REMEDY = "write the cache again with the verb cache, or name the one that belongs here"


class TokenCache:
    """A complete cache. Made by ``open``; cheap to pickle (a worker maps the files again).

    A shard is mapped when a row of it is first asked for, and holds no file open: a cache may have thousands.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._mapped: dict[str, np.ndarray[Any, Any]] = {}

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        tokenizer: Tokenizer | None = None,
        fingerprint: str | None = None,
        dataset_fingerprint: str | None = None,
        verify: bool = True,
    ) -> Self:
        """Open the cache in ``folder`` and check that it belongs here.

        Args:
            folder: what ``write_cache`` wrote.
            tokenizer: whose tokens are wanted; its fingerprint and schedule are compared.
            fingerprint: the same by fingerprint alone.
            dataset_fingerprint: of the data whose tokens are wanted.
            verify: whether to compare the checksum of every file (about a second a GB).

        Raises:
            CacheError: if the cache is absent or incomplete, belongs to something else (both values are named), or a
                file is missing or changed.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        found = {
            "tokenizer": manifest.tokenizer_fingerprint,
            "data": manifest.dataset_fingerprint,
            "schedule": manifest.schedule,
        }
        wanted = {"tokenizer": fingerprint, "data": dataset_fingerprint}
        if tokenizer is not None:
            wanted |= {"schedule": str(tokenizer.schedule), "tokenizer": tokenizer.fingerprint}
        if different := differences(found, {name: value for name, value in wanted.items() if value is not None}):
            raise CacheError(f"the cache in {folder} does not belong here: {'; '.join(different)}; {REMEDY}")
        if not manifest.complete:
            so_far = manifest.with_sidecars(folder)
            counts = ", ".join(f"{so_far.cached(split)} of {so_far.rows(split)} {split}" for split in SPLITS)
            raise CacheError(f"the cache in {folder} is incomplete ({counts} images); launch the verb cache again")
        _check_files(folder, manifest, verify)
        return cls(folder, manifest)

    def __reduce__(self) -> tuple[type[TokenCache], tuple[Path, Manifest]]:
        return type(self), (self.folder, self.manifest)

    @property
    def schedule(self) -> ScaleSchedule:
        """The token maps, coarse to fine."""
        return self.manifest.scale_schedule

    @property
    def code(self) -> CodeSpec:
        """What one token is."""
        return self.manifest.code_spec

    @property
    def num_classes(self) -> int:
        """Classes of the labels."""
        return self.manifest.num_classes

    @property
    def dataset_fingerprint(self) -> str:
        """Content hash of the data."""
        return self.manifest.dataset_fingerprint

    @property
    def tokenizer_fingerprint(self) -> str:
        """Content hash of the tokenizer."""
        return self.manifest.tokenizer_fingerprint

    @property
    def crops(self) -> int:
        """Augmentation draws of each training image."""
        return self.manifest.crops

    def size(self, split: Split) -> int:
        """Images of a split; the draws of one image count once."""
        return self.manifest.images[split]

    def batch(self, split: Split, indices: np.ndarray, draw: np.ndarray | int = 0) -> TokenBatch:
        """The images ``indices`` (B,) of a split, in their order; inputs only if they are stored.

        ``draw``, an integer or (B,), is the augmentation draw of each; validation has only draw 0.

        Raises:
            CacheError: for an index outside [0, size) or a draw that is not cached.
        """
        indices = np.asarray(indices, dtype=np.int64)
        draws = np.broadcast_to(draw, indices.shape)
        size = self.size(split)
        for what, asked, limit in (("image", indices, size), ("draw", draws, self.manifest.rows(split) // size)):
            outside = asked[(asked < 0) | (asked >= limit)]
            if outside.size:
                raise CacheError(
                    f"{what} {outside[0]} is outside the {split} split of {self.folder}, which has {limit}"
                )
        shard_of, offsets = np.divmod(draws * size + indices, self.manifest.shard_images)
        gathered: dict[str, torch.Tensor] = {}
        for array in self.manifest.arrays:
            rows = np.empty((len(indices), *self._shard(split, 0, array).shape[1:]), DTYPES[array])
            for shard in np.unique(shard_of):
                here = shard_of == shard
                rows[here] = self._shard(split, int(shard), array)[offsets[here]]
            gathered[array] = torch.from_numpy(rows)
        return TokenBatch(gathered["ids"], gathered["labels"], gathered.get("inputs"))

    def _shard(self, split: Split, index: int, array: str) -> np.ndarray:
        name = shard_file(split, index, array)
        if name not in self._mapped:
            self._mapped[name] = _map(self.folder / name)
        return self._mapped[name]


def _map(path: Path) -> np.ndarray:
    """A ``.npy`` file in memory, read-only. Unlike numpy's map it keeps no descriptor, of which 1,024 are common."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        offset = file.tell()
    storage = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
    values = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()[offset:].view(dtype).reshape(shape)
    values.flags.writeable = False
    return values


def _check_files(folder: Path, manifest: Manifest, verify: bool) -> None:
    files = [(folder / name, digest) for shard in manifest.shards for name, digest in shard.sha256.items()]
    for path, _ in files:
        if not path.exists():
            raise CacheError(f"{path} is missing; launch the verb cache again, it writes what is missing")
    if not verify:
        return
    for path, digest in tqdm(files, desc="verify cache", unit="file", delay=2, leave=False, disable=None):
        if (found := file_sha256(path)) != digest:
            raise CacheError(
                f"{path} has changed: SHA-256 {found}, but the manifest says {digest}; "
                "launch the verb cache again, it writes damaged shards anew"
            )
