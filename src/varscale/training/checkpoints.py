"""The checkpoints of a run on the disk: whole or absent, verified before they are used, kept by rule.

``checkpoints/step_00000300.ckpt`` is written aside, fsynced and renamed; then ``step_00000300.json`` says what it is:
the step, whose it is, and its SHA-256. A checkpoint without that file does not exist. One that does not have its
checksum (a truncated file, a flipped bit) is said and left out, and the one before it is used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io import TorchCheckpointIO
from tqdm import tqdm

from varscale.records import RecordError, atomic_write, read_json, write_json
from varscale.training.disk import Disk
from varscale.training.shards import read_whole, save_to

CHECKPOINTS = "checkpoints"  # in the run's folder
_NAME = "step_{:08d}"
_PART_BYTES = 2**24
# What belongs to the run that wrote a checkpoint and not to one that branches off: sums of its next row, its clock.
_OF_THE_RUN = ("callbacks", "health")
log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: names it, what is wrong and the remedy."""


@dataclass(frozen=True)
class Owner:
    """Whose checkpoints these are.

    Attributes:
        run_id: of the configuration (of stage 1: of the tokenizer's).
        dataset_id: content hash of the data.
        tokenizer_id: content hash of the tokenizer; None in stage 1.
    """

    run_id: str
    dataset_id: str
    tokenizer_id: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as its description says: after ``step`` steps, of ``owner``, ``size`` bytes, with a checksum."""

    path: Path
    step: int
    owner: Owner
    size: int
    sha256: str

    def flaw(self) -> str | None:
        """Why it cannot be used; None when it is whole. Reads it from beginning to end."""
        try:
            if (size := _size(self.path)) != self.size:
                return f"it has {size} bytes of {self.size}"
            return None if sha256_of(self.path) == self.sha256 else "its content has another checksum"
        except OSError as error:
            return str(error)


class Checkpoints(TorchCheckpointIO):
    """The checkpoints of one run; the plugin that Lightning writes and reads them through.

    Args:
        folder: the run's folder.
        owner: whose they are.
        keep: how many of the newest stay.
        keep_steps: steps whose checkpoints stay for good, or every so many steps.
    """

    def __init__(
        self, folder: Path, owner: Owner, *, keep: int = 2, keep_steps: int | Collection[int] | None = None
    ) -> None:
        if keep < 1:
            raise ValueError(f"train.keep is {keep}; at least 1 checkpoint must stay, 2 survive a damaged one")
        rhythm = [keep_steps] if isinstance(keep_steps, int) else list(keep_steps or ())
        if any(step < 1 for step in rhythm):
            raise ValueError(f"train.keep_steps is {keep_steps}; steps are counted from 1")
        self.folder, self.owner = folder / CHECKPOINTS, owner
        self.keep, self.keep_steps = keep, keep_steps
        self.disk = Disk(folder)
        self.branching = False  # whether the checkpoint that is read is another run's

    def path(self, step: int) -> Path:
        """Where the checkpoint of ``step`` lies."""
        return self.folder / f"{_NAME.format(step)}.ckpt"

    def stays(self, step: int) -> bool:
        """Whether the checkpoint of ``step`` is kept for good."""
        if isinstance(self.keep_steps, int):
            return step % self.keep_steps == 0
        return step in (self.keep_steps or ())

    def newest(self, *, before: int | None = None) -> Checkpoint | None:
        """The newest whole checkpoint, of a step below ``before``; None to start at the first step.

        What an interrupted write left is removed.

        Raises:
            CheckpointError: if they are another run's: of other settings, another tokenizer or other data.
        """
        self._clear_remains()
        found = described(self.folder)
        for checkpoint in found:
            self._refuse_another(checkpoint)
        usable = [checkpoint for checkpoint in found if before is None or checkpoint.step < before]
        for checkpoint in reversed(usable):
            if (flaw := checkpoint.flaw()) is None:
                return checkpoint
            log.warning("%s is damaged (%s); the one before it is used", checkpoint.path, flaw)
        if usable:
            log.warning("no checkpoint in %s is whole; the run starts over", self.folder)
        return None

    def _refuse_another(self, checkpoint: Checkpoint) -> None:
        # Never removed instead: a changed line in a sweep would cost the weeks of an unfinished trunk.
        names = {"run_id": "run", "dataset_id": "data set", "tokenizer_id": "tokenizer"}
        its, mine = asdict(checkpoint.owner), asdict(self.owner)
        if different := [f"{names[key]} {its[key]}, not {mine[key]}" for key in names if its[key] != mine[key]]:
            raise CheckpointError(
                f"{checkpoint.path} is another run's ({'; '.join(different)}): bring the old settings and data back, "
                f"or start anew with another study=NAME (or without {self.folder})"
            )

    def last_step(self) -> int | None:
        """Step of the newest checkpoint; None without one."""
        return max((checkpoint.step for checkpoint in described(self.folder)), default=None)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint and remove those that need not stay. What the disk refuses is said, not raised."""
        step = int(checkpoint["global_step"])
        if self.disk.attempt(f"the checkpoint of step {step}", lambda: self._write(checkpoint, Path(path), step)):
            self.disk.attempt("the folder of checkpoints", self._prune)

    def load_checkpoint(self, path: Any, *arguments: Any, **settings: Any) -> dict[str, Any]:
        """Read a checkpoint. From another run's come weights, optimiser, average, position: not its records."""
        if Path(path).is_dir():
            return self.without_records(read_whole(Path(path)))
        return self.without_records(super().load_checkpoint(path, *arguments, **settings))

    def without_records(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """The checkpoint, of another run without what belongs to that run alone."""
        if self.branching:
            for key in _OF_THE_RUN:
                checkpoint.pop(key, None)
        return checkpoint

    def aside(self, path: Path) -> Path:
        """Where the shards of a checkpoint are written before they are ``path``."""
        return path.with_name(f".{path.name}.tmp")

    def take(self, aside: Path, path: Path, step: int, failure: OSError | None) -> None:
        """As ``save_checkpoint``, of shards that all processes have written aside, or failed to."""

        def rename() -> None:
            if failure is not None:
                raise failure
            self._remove(path)  # a damaged checkpoint of this step
            os.replace(aside, path)
            self._describe(path, step)

        if self.disk.attempt(f"the checkpoint of step {step}", rename):
            self.disk.attempt("the folder of checkpoints", self._prune)

    def finish(self) -> None:
        """At the end of the run: only the checkpoints that stay for good remain."""
        for checkpoint in described(self.folder):
            if not self.stays(checkpoint.step):
                self._remove(checkpoint.path)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _write(self, checkpoint: dict[str, Any], path: Path, step: int) -> None:
        _description(path).unlink(missing_ok=True)  # of a damaged checkpoint of this step
        with atomic_write(path) as file:
            save_to(file, checkpoint)
        self._describe(path, step)

    def _describe(self, path: Path, step: int) -> None:
        values = {"step": step, **asdict(self.owner), "size": _size(path), "sha256": sha256_of(path)}
        write_json(_description(path), values)

    def _prune(self) -> None:
        leaving = [checkpoint for checkpoint in described(self.folder) if not self.stays(checkpoint.step)]
        for checkpoint in leaving[: -self.keep]:
            self._remove(checkpoint.path)

    def _remove(self, path: Path) -> None:
        _description(path).unlink(missing_ok=True)  # first: what it describes has to be there
        _delete(path)

    def _clear_remains(self) -> None:
        for temporary in self.folder.glob(".step_*.tmp"):
            _delete(temporary)
        for path in self.folder.glob("step_*.ckpt"):
            if not _description(path).exists():
                _delete(path)


def described(folder: Path) -> list[Checkpoint]:
    """The checkpoints that ``folder`` describes, in the order of their steps; not verified."""
    found = []
    for description in sorted(folder.glob("step_*.json")):
        try:
            values = read_json(description)
            owner = Owner(values["run_id"], values["dataset_id"], values["tokenizer_id"])
            path = description.with_suffix(".ckpt")
            found.append(Checkpoint(path, int(values["step"]), owner, int(values["size"]), str(values["sha256"])))
        except (RecordError, KeyError, TypeError, ValueError) as error:
            log.warning("%s is damaged (%s); its checkpoint is not used", description, error)
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal; a large one shows how far it is. Of a folder that of its names and contents."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(path.iterdir()):
            digest.update(f"{file.name} {sha256_of(file)}\n".encode())
        return digest.hexdigest()
    size = path.stat().st_size
    with (
        path.open("rb") as file,
        tqdm(total=size, desc=path.name, unit="B", unit_scale=True, delay=2, leave=False, disable=None) as bar,
    ):
        while part := file.read(_PART_BYTES):
            digest.update(part)
            bar.update(len(part))
    return digest.hexdigest()


def _size(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _description(path: Path) -> Path:
    return path.with_suffix(".json")
