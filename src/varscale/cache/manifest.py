"""Manifest of a token cache: whose tokens these are, how they are stored, and the checksum of every file.

``manifest.json`` is replaced atomically after each shard, so what it lists is whole; a shard it does not list does not
exist. Arrays are plain ``.npy``: per shard the ids (n, L), the labels (n,) and, if asked for, the inputs of teacher
forcing (n, L - n_0, C).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, get_args

from varscale.codes import CodeSpec
from varscale.data.source import Split
from varscale.records import RecordError, read_json, write_json
from varscale.schedule import ScaleSchedule

MANIFEST_FILE = "manifest.json"
FORMAT = 1
SPLITS: tuple[Split, ...] = get_args(Split)


class CacheError(ValueError):
    """A cache that is absent, incomplete, damaged or of another tokenizer, data set or schedule; names the remedy."""


@dataclass(frozen=True)
class Shard:
    """Images ``start ... start + images - 1`` of a split."""

    split: Split
    index: int
    start: int
    images: int
    sha256: Mapping[str, str]  # by file name

    def file(self, array: str) -> str:
        """Name of the file of ``ids``, ``labels`` or ``inputs``."""
        return shard_file(self.split, self.index, array)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that decides the tokens in a cache, and the shards that are written."""

    tokenizer_fingerprint: str
    dataset_fingerprint: str
    dataset: str  # name, for people
    resolution: int  # px
    num_classes: int
    schedule: str
    code: str
    latent_channels: int  # C
    dtype: str  # of the ids
    store_inputs: bool
    precision: str  # of the trunk while encoding: fp32 or bf16
    images: Mapping[str, int]  # by split, when complete
    shard_images: int  # images of every shard but a split's last
    shards: tuple[Shard, ...] = ()

    @property
    def scale_schedule(self) -> ScaleSchedule:
        """The schedule, parsed."""
        return ScaleSchedule.parse(self.schedule)

    @property
    def code_spec(self) -> CodeSpec:
        """The code, parsed."""
        return CodeSpec.parse(self.code)

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays of a shard."""
        return ("ids", "labels", "inputs") if self.store_inputs else ("ids", "labels")

    @property
    def complete(self) -> bool:
        """Whether every image of both splits is in a shard."""
        return all(self.cached(split) == self.images[split] for split in SPLITS)

    def cached(self, split: Split) -> int:
        """Images of a split that are in a shard."""
        return sum(shard.images for shard in self.shards if shard.split == split)

    def with_shards(self, shards: tuple[Shard, ...]) -> Self:
        """The same cache with these shards, in the order of the splits and of their index."""
        return replace(self, shards=tuple(sorted(shards, key=lambda shard: (SPLITS.index(shard.split), shard.index))))

    def write(self, folder: Path) -> None:
        """Replace ``manifest.json``, atomically."""
        write_json(folder / MANIFEST_FILE, {"format": FORMAT} | asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest in ``folder``. Raises ``CacheError`` when it is absent, damaged or of another format."""
        path = folder / MANIFEST_FILE
        if not path.exists():
            raise CacheError(f"no token cache in {folder} ({MANIFEST_FILE} is missing); write one with the verb cache")
        try:
            values = read_json(path)
            if values.pop("format") != FORMAT:
                raise CacheError(
                    f"{path} is of another version of the cache; delete {folder} and write the cache again"
                )
            shards = tuple(Shard(**shard) for shard in values.pop("shards"))
            return cls(**values, shards=shards)
        except (RecordError, KeyError, TypeError) as error:
            raise CacheError(f"{path} cannot be read ({error}); delete {folder} and write the cache again") from None


def shard_file(split: Split, index: int, array: str) -> str:
    """``train-00000.ids.npy``."""
    return f"{split}-{index:05d}.{array}.npy"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """``name: found, not wanted`` for each value that differs."""
    return [f"{name} {found[name]}, not {value}" for name, value in wanted.items() if found[name] != value]
