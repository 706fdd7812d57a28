"""Reading a token cache: memory-mapped arrays, any rows of a split as one ``TokenBatch``.

Shapes: B batch, L all tokens, N tokens after the first scale, C latent channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
import torch
from tqdm import tqdm

from varscale.cache.manifest import CacheError, Manifest, differences, file_sha256
from varscale.codes import CodeSpec
from varscale.data.source import Split
from varscale.schedule import ScaleSchedule
from varscale.tokenizers.protocol import Tokenizer
from varscale.tokenizers.tokens import TokenBatch

REMEDY = "write the cache again with the verb cache, or name the one that belongs here"


class TokenCache:
    """A complete cache. Made by ``open``; cheap to pickle (a worker opens the files again)."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._arrays = {
            (shard.split, shard.index): {
                array: np.load(folder / shard.file(array), mmap_mode="r") for array in manifest.arrays
            }
            for shard in manifest.shards
        }

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
            counts = ", ".join(f"{manifest.cached(s)} of {n} {s}" for s, n in manifest.images.items())  # type: ignore[arg-type]
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

    def size(self, split: Split) -> int:
        """Images of a split."""
        return self.manifest.images[split]

    def batch(self, split: Split, indices: np.ndarray) -> TokenBatch:
        """The rows ``indices`` (B,) of a split, in their order; inputs only if they are stored.

        Raises:
            CacheError: for an index outside [0, size).
        """
        indices = np.asarray(indices, dtype=np.int64)
        outside = indices[(indices < 0) | (indices >= self.size(split))]
        if outside.size:
            raise CacheError(
                f"row {outside[0]} is outside the {split} split of {self.folder}, which has {self.size(split)}"
            )
        shard_of, offsets = np.divmod(indices, self.manifest.shard_images)
        gathered: dict[str, torch.Tensor] = {}
        for array in self.manifest.arrays:
            dtype = np.float32 if array == "inputs" else np.int64
            first = self._arrays[split, 0][array]
            rows = np.empty((len(indices), *first.shape[1:]), dtype)
            for shard in np.unique(shard_of):
                here = shard_of == shard
                rows[here] = self._arrays[split, int(shard)][array][offsets[here]]
            gathered[array] = torch.from_numpy(rows)
        return TokenBatch(gathered["ids"], gathered["labels"], gathered.get("inputs"))


def _check_files(folder: Path, manifest: Manifest, verify: bool) -> None:
    files = [(folder / name, digest) for shard in manifest.shards for name, digest in shard.sha256.items()]
    for path, _ in files:
        if not path.exists():
            raise CacheError(f"{path} is missing; launch the verb cache again, it writes what is missing")
    if not verify:
        return
    for path, digest in tqdm(files, desc="verify cache", unit="file", delay=2, leave=False):
        if (found := file_sha256(path)) != digest:
            raise CacheError(
                f"{path} has changed: SHA-256 {found}, but the manifest says {digest}; "
                "launch the verb cache again, it writes damaged shards anew"
            )
