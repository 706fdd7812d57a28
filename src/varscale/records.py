"""The run table: one row a run, the contract between training and analysis.

A run is written as ``run.json`` when it starts and replaced atomically when it ends; ``curve.csv`` grows beside it, one
row a measurement. Nothing here needs torch. Counts and FLOPs are float64 once they are in a table; absent is ``None``,
never a sentinel.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self, get_args

SCHEMA_VERSION = 1
RUN_FILE = "run.json"
CURVE_FILE = "curve.csv"
PROGRESS_FILE = "progress.json"  # a running run's sign of life; no record

Status = Literal["running", "finished", "diverged", "failed", "stopped"]
FlopsRule = Literal["dense", "blocksparse", "6nd", "forward_macs"]
CURVE_COLUMNS = ("run_id", "step", "images_seen", "tokens_seen", "flops", "split", "metric", "scale", "value")


class RecordError(ValueError):
    """A run record or a curve that cannot be read: names the file, what is wrong and the remedy."""


def column(unit: str, doc: str) -> Any:
    """A required column of the run table with its unit and meaning."""
    return dataclasses.field(metadata={"unit": unit, "doc": doc})


def optional(unit: str, doc: str) -> Any:
    """A column that may be empty (``None``): not known yet, or not measured."""
    return dataclasses.field(default=None, metadata={"unit": unit, "doc": doc})


@dataclass(frozen=True, kw_only=True)
class Run:
    """One row of the run table. The unit and the meaning of each column stand in its field's metadata."""

    schema_version: int = column("1", "version of these columns")
    run_id: str = column("-", "hash of the scientific keys of the resolved config and the seed")
    created_utc: str = column("-", "start of the run, ISO 8601")
    study: str = column("-", "the study the run belongs to: the folder its runs share")
    design: str = column("-", "the sweep that planned it, or 'single'")
    status: Status = column("-", "running, finished, diverged, failed or stopped")
    exclude_reason: str | None = optional("-", "why a row is left out of fits")

    git_sha: str | None = optional("-", "commit of the code")
    git_dirty: bool | None = optional("-", "whether the checkout had changes")
    varscale_version: str = column("-", "version of the package")
    config_path: str = column("-", "the resolved config, relative to the run's folder")

    family: str = column("-", "model family: var, later raster, dit, infinity")
    tokenizer_id: str = column("-", "content hash of the tokenizer")
    dataset_id: str = column("-", "content hash of the data and its split")
    seed: int = column("1", "seed of initialisation, data order and label drop")

    budget_flops: float | None = optional("FLOP", "intended training compute")
    flops_train: float = column("FLOP", "realised training compute: forward and backward, without the tokenizer")
    flops_rule: FlopsRule = column("-", "how FLOPs were counted")

    resolution_px: int = column("px", "side of the image")
    frames: int = column("1", "frames of the clip, 1 for images")
    schedule: str = column("-", "scale schedule, coarse to fine")
    num_tokens: int = column("token/image", "L, tokens an image")
    code: str = column("-", "what one token is")

    depth: int = column("1", "transformer blocks")
    width: int = column("1", "C, width of the transformer")
    heads: int = column("1", "attention heads")

    params_token: int = column("1", "blocks, used once a token: attention and MLP")
    params_image: int = column("1", "blocks, used once an image: AdaLN")
    params_blocks: int = column("1", "params_token + params_image")
    params_embed: int = column("1", "class, start, position, level and word embeddings")
    params_head: int = column("1", "final AdaLN and head")
    params_total: int = column("1", "all parameters; non-embedding = total - embed")

    batch_images: int = column("image", "global batch")
    steps: int = column("step", "planned steps of the run")
    lr_peak: float = column("1", "peak learning rate")
    weight_decay: float = column("1", "decoupled weight decay at the start")
    warmup_steps: int = column("step", "steps of warm-up")
    lr_schedule: str = column("-", "name of the learning-rate schedule")
    label_drop: float = column("1", "probability that a training label is replaced by the null class")
    trunk_id: str | None = optional("-", "run whose checkpoint the run started from; empty for a run from scratch")
    branch_step: int | None = optional("step", "step of that checkpoint; flops_train counts its steps as well")

    images_seen: float = column("image", "images trained on, repeats counted")
    unique_images: float = column("image", "distinct images trained on")
    tokens_seen: float = column(
        "token", "tokens trained on: images_seen * num_tokens, fewer where stages train coarse scales only"
    )

    val_nats_per_token_avg: float | None = optional("nat", "validation cross-entropy, mean over all L tokens")
    val_nats_per_token_last: float | None = optional("nat", "validation cross-entropy, mean over the last scale")
    val_error_avg: float | None = optional("1", "1 - top-1 accuracy over all tokens")
    val_error_last: float | None = optional("1", "1 - top-1 accuracy over the last scale")
    val_sem: float | None = optional("nat", "standard error of val_nats_per_token_avg over the validation images")
    val_images: float | None = optional("image", "validation images measured")
    ema: str | None = optional("-", "weight average that was evaluated; empty for the raw weights")

    fid: float | None = optional("1", "Frechet distance, if measured")
    fid_images: float | None = optional("image", "images behind fid")
    fid_features: str | None = optional("-", "feature extractor behind fid")
    guidance: float | None = optional("1", "guidance of the samples behind fid")

    wall_s: float | None = optional("s", "wall time of the run, resumptions added up")
    device: str = column("-", "device the run used")
    num_devices: int = column("1", "devices of the run")
    precision: str = column("-", "arithmetic of training")
    mfu: float | None = optional("1", "share of the device's measured matrix peak that training reached")
    peak_mem_bytes: float | None = optional("B", "peak memory of the process or device")

    def __post_init__(self) -> None:
        if self.status not in get_args(Status):
            raise RecordError(f"status is {self.status!r}; it must be one of {', '.join(get_args(Status))}")
        if self.flops_rule not in get_args(FlopsRule):
            raise RecordError(f"flops_rule is {self.flops_rule!r}; it must be one of {', '.join(get_args(FlopsRule))}")
        if self.params_blocks != self.params_token + self.params_image:
            raise RecordError("params_blocks must be params_token + params_image")
        if self.params_total != self.params_blocks + self.params_embed + self.params_head:
            raise RecordError("params_total must be params_blocks + params_embed + params_head")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a row from a mapping. Raises ``RecordError`` that lists every missing and unknown column."""
        names = {field.name for field in dataclasses.fields(cls)}
        needed = {field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
        missing, unknown = sorted(needed - values.keys()), sorted(values.keys() - names)
        if missing or unknown:
            raise RecordError(f"not a run record: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The row as plain values, in the order of the columns."""
        return dataclasses.asdict(self)

    def replace(self, **changes: Any) -> Self:
        """A copy with some columns changed."""
        return dataclasses.replace(self, **changes)


def columns_table() -> str:
    """The columns of the run table as a Markdown table, for the documentation."""
    lines = ["| column | unit | meaning |", "|---|---|---|"]
    lines += [f"| `{f.name}` | {f.metadata['unit']} | {f.metadata['doc']} |" for f in dataclasses.fields(Run)]
    return "\n".join(lines) + "\n"


def run_id(scientific: Mapping[str, Any]) -> str:
    """Twelve hex digits that identify a run: a hash of its scientific keys (not of paths, devices or loggers)."""
    text = json.dumps(scientific, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Write a file whole or not at all: a temporary file beside it, fsync, rename, fsync of the folder.

    On any error, a full disk included, the old file stays as it was and the temporary one is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    try:
        with open(temporary, "wb") as file:  # opened by name, for writers that want one (``file.name``)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def clear_remains(folder: Path) -> None:
    """Remove what killed writes left in ``folder``; for a process that alone writes there."""
    for temporary in folder.glob(".*.tmp"):
        temporary.unlink()


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON atomically. Raises ``ValueError`` for NaN or infinity: they are not JSON, and never a result."""
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    with atomic_write(path) as file:
        file.write(text.encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ``RecordError`` when the file is absent, cut off or holds something else."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} is not whole JSON ({error}); delete it and launch the run again") from None
    if not isinstance(values, dict):
        raise RecordError(f"{path} holds {type(values).__name__}, not an object")
    return values


def read_run(folder: Path) -> Run:
    """The record of the run in ``folder``. Raises ``RecordError`` that names the file."""
    path = folder / RUN_FILE
    try:
        return Run.from_dict(read_json(path))
    except RecordError as error:
        raise error if str(path) in str(error) else RecordError(f"{path}: {error}") from None


def write_run(folder: Path, run: Run) -> None:
    """Write or replace ``run.json`` in ``folder``, atomically."""
    write_json(folder / RUN_FILE, run.to_dict())


class CurveWriter:
    """Appends measurements of one run to ``curve.csv``; rows after a resumption's step are dropped first.

    Args:
        folder: the run's folder.
        run_id: written into every row.
        keep: whether a row already there (as strings by column) is kept; resuming at step s keeps the rows up to s.
    """

    def __init__(self, folder: Path, run_id: str, keep: Callable[[Mapping[str, str]], bool] = lambda row: False):
        self.path = folder / CURVE_FILE
        self.run_id = run_id
        kept = [row for row in read_curve(self.path) if keep(row)] if self.path.exists() else []
        self.rows = len(kept)
        self.last_step = max((int(row["step"]) for row in kept), default=0)
        lines = [",".join(CURVE_COLUMNS)] + [",".join(row[name] for name in CURVE_COLUMNS) for row in kept]
        whole = ("\n".join(lines) + "\n").encode()
        self.size = len(whole)  # bytes that are known to be written
        with atomic_write(self.path) as file:
            file.write(whole)

    def append(
        self,
        *,
        step: int,
        images_seen: float,
        tokens_seen: float,
        flops: float,
        values: Mapping[str, Sequence[tuple[str, int | None, float]]],
    ) -> None:
        """Append one row a (metric, scale or None, value) of each split, all in one write.

        Raises ``ValueError`` for a value that is not finite, nothing is written then; ``OSError`` where the disk
        refuses, and what it took before it did is overwritten by the next call.
        """
        rows: list[tuple[object, ...]] = []
        for split, measured in values.items():
            for metric, scale, value in measured:
                if not math.isfinite(value):
                    raise ValueError(f"{metric} at step {step} is {value}; only finite numbers go into {self.path}")
                where = "" if scale is None else scale
                axes = (self.run_id, step, repr(images_seen), repr(tokens_seen), repr(flops))
                rows.append((*axes, split, metric, where, repr(float(value))))
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        added = text.getvalue().encode()
        with self.path.open("r+b") as file:  # not made anew where it has gone
            file.truncate(self.size)
            file.seek(self.size)
            file.write(added)
            file.flush()
            os.fsync(file.fileno())
        self.last_step, self.rows, self.size = step, self.rows + len(rows), self.size + len(added)


def read_curve(path: Path) -> list[dict[str, str]]:
    """The rows of a ``curve.csv`` as strings. A last line cut off by a crash is left out, any other is an error."""
    lines = path.read_text().split("\n")
    if lines[0].split(",") != list(CURVE_COLUMNS):
        raise RecordError(f"{path} starts with {lines[0]!r}; the columns are {','.join(CURVE_COLUMNS)}")
    rows = []
    for number, line in enumerate(lines[1:-1], start=2):  # what follows the last newline was never finished
        cells = line.split(",")
        if len(cells) != len(CURVE_COLUMNS):
            raise RecordError(f"{path}, line {number}: {len(cells)} cells where {len(CURVE_COLUMNS)} are needed")
        rows.append(dict(zip(CURVE_COLUMNS, cells, strict=True)))
    return rows
