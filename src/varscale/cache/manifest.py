"""Manifest of a token cache: whose tokens these are, how they are stored, and the checksum of every file.

``manifest.json`` says from the start what the cache is going to hold. While it is written, each shard gets a sidecar
with its checksums, last and atomically: a shard with neither a sidecar nor an entry in the manifest does not exist. The
manifest of the whole takes the sidecars in. Arrays are plain ``.npy``: per shard the ids (n, L), the labels (n,) and,
if asked for, the inputs of teacher forcing (n, L - n_0, C).
Rows of the training split: image i of draw d is row d * images + i, so a draw is a contiguous copy of the split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, get_args

from varscale.codes import CodeSpec
from varscale.data.source import Split
from varscale.records import RecordError, read_json, write_json
from varscale.schedule import ScaleSchedule

MANIFEST_FILE = "manifest.json"
SIDECARS = "*.shard.json"
FORMAT = 1
SPLITS: tuple[Split, ...] = get_args(Split)


class CacheError(ValueError):
    """A cache that is absent, incomplete, damaged or of another tokenizer, data set or schedule; names the remedy."""


@dataclass(frozen=True)
class Span:
    """Where a shard lies: the rows ``start ... start + images - 1`` of a split."""

    split: Split
    index: int
    start: int
    images: int

    @property
    def key(self) -> tuple[Split, int]:
        """What tells a shard from the others."""
        return self.split, self.index


@dataclass(frozen=True)
class Shard(Span):
    """A shard that is written."""

    sha256: Mapping[str, str]  # by file name

    def file(self, array: str) -> str:
        """Name of the file of ``ids``, ``labels`` or ``inputs``."""
        return shard_file(self.split, self.index, array)

    def whole(self, folder: Path) -> bool:
        """Whether every file is there with its checksum."""
        paths = {folder / name: digest for name, digest in self.sha256.items()}
        return all(path.exists() and file_sha256(path) == digest for path, digest in paths.items())


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
    images: Mapping[str, int]  # by split, when complete; draws of an image are not counted
    shard_images: int  # rows of every shard but a split's last
    crops: int = 1  # augmentation draws of each training image
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
        """Whether every row of both splits is in a shard."""
        return all(self.cached(split) == self.rows(split) for split in SPLITS)

    @property
    def plan_id(self) -> str:
        """Hash of all but the shards: what decides their bytes and their places."""
        plan = {name: value for name, value in asdict(self).items() if name != "shards"}
        return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:12]

    def rows(self, split: Split) -> int:
        """Rows of a split, when complete: its images, times the draws for training."""
        return self.images[split] * (self.crops if split == "train" else 1)

    def spans(self) -> Iterator[Span]:
        """The places of all shards, in the order of the splits and of their index."""
        for split in SPLITS:
            rows = self.rows(split)
            for index, start in enumerate(range(0, rows, self.shard_images)):
                yield Span(split, index, start, min(self.shard_images, rows - start))

    def cached(self, split: Split) -> int:
        """Rows of a split that are in a shard."""
        return sum(shard.images for shard in self.shards if shard.split == split)

    def with_shards(self, shards: Iterable[Shard]) -> Self:
        """The same cache with these shards, in the order of the splits and of their index."""
        return replace(self, shards=tuple(sorted(shards, key=lambda shard: (SPLITS.index(shard.split), shard.index))))

    def with_sidecars(self, folder: Path) -> Self:
        """The same cache with the shards that sidecars in ``folder`` tell of, each before one that is listed."""
        told = {shard.key: shard for path in folder.glob(SIDECARS) if (shard := self._read_sidecar(path)) is not None}
        return self.with_shards(({shard.key: shard for shard in self.shards} | told).values())

    def write_sidecar(self, folder: Path, shard: Shard) -> None:
        """Record, atomically, that a shard of this cache is whole."""
        write_json(folder / sidecar_file(shard), {"plan_id": self.plan_id} | asdict(shard))

    def _read_sidecar(self, path: Path) -> Shard | None:
        """The shard of a sidecar; None for that of another cache, whose shard is going to be written anew."""
        try:
            values = read_json(path)
            return Shard(**values) if values.pop("plan_id") == self.plan_id else None
        except (RecordError, KeyError, TypeError) as error:
            raise CacheError(f"{path} cannot be read ({error}); delete it and launch the verb cache again") from None

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


def sidecar_file(span: Span) -> str:
    """``train-00000.shard.json``."""
    return f"{span.split}-{span.index:05d}{SIDECARS[1:]}"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """``name: found, not wanted`` for each value that differs."""
    return [f"{name} {found[name]}, not {value}" for name, value in wanted.items() if found[name] != value]
