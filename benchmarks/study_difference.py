"""Two studies of one configuration, compared bit by bit: weights, checkpoints, cache, records, every batch."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from killing import BATCHES
from safetensors.torch import load_file

from varscale.training.checkpoints import CHECKPOINTS, described

# What a clock decides.
UNLIKE = ("wall_s", "training_s", "images_per_s", "created_utc", "mfu", "peak_mem_bytes")


def compare(whole: Path, study: Path) -> tuple[list[str], int]:
    """Everything that differs and must not, and how many rows of the records are lost."""
    found: list[str] = []
    differ, rows_lost = found.append, 0
    for name in ("tokenizer/tokenizer.safetensors", "runs/single/model.safetensors"):
        one, other = load_file(whole / name), load_file(study / name)
        for key in sorted(one.keys() | other.keys()):
            if key not in one or key not in other or not torch.equal(one[key], other[key]):
                differ(f"{study.parent.name}/{name}: {key}")
    for name in sorted(path.name for path in (whole / "cache").iterdir() if path.suffix in (".npy", ".json")):
        if (whole / "cache" / name).read_bytes() != (study / "cache" / name).read_bytes():
            differ(f"{study.parent.name}/cache/{name}")
    for name in ("tokenizer/metrics.csv", "runs/single/curve.csv"):
        one, other = rows(whole / name), rows(study / name)
        rows_lost += max(0, len(one) - len(other))
        if one != other:
            differ(f"{study.parent.name}/{name}")
    for name in ("tokenizer/tokenizer.json", "runs/single/run.json"):
        one, other = (json.loads((folder / name).read_text()) for folder in (whole, study))
        if stripped(one) != stripped(other):
            differ(f"{study.parent.name}/{name}")
    for name in ("tokenizer", "runs/single"):
        one, other = described(whole / name / CHECKPOINTS), described(study / name / CHECKPOINTS)
        if not one or [c.step for c in one] != [c.step for c in other]:
            differ(f"{study.parent.name}/{name}: checkpoints of other steps")
            continue
        for mine, its in zip(one, other, strict=True):
            if (flaw := its.flaw()) is not None:
                differ(f"{its.path}: {flaw}")
            for where in differences(read(mine.path), read(its.path)):
                differ(f"{its.path}: {where}")
    expected = batches(whole)
    if {key: {digest} for key, digest in expected.items()} != collected(study):
        differ(f"{study.parent.name}: batches of some steps")
    left = [path for path in study.rglob(".*.tmp") if path.parent.name != "cache"]
    if left:
        differ(f"{study.parent.name}: left behind {left}")
    return found, rows_lost


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file of measurements, without those of the clock."""
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["metric"] not in UNLIKE]


def stripped(values: Any) -> Any:
    """Nested values without those of the clock."""
    if isinstance(values, dict):
        return {key: stripped(value) for key, value in values.items() if key not in UNLIKE}
    if isinstance(values, list):
        return [stripped(value) for value in values if not (isinstance(value, dict) and value.get("metric") in UNLIKE)]
    return values


def read(path: Path) -> Any:
    """A checkpoint of one file."""
    return stripped(torch.load(path, map_location="cpu", weights_only=True))


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Places at which two checkpoints differ; tensors are compared bit by bit."""
    if type(one) is not type(other):
        yield where
    elif isinstance(one, dict):
        for key in sorted(one.keys() | other.keys(), key=str):
            yield from differences(one.get(key), other.get(key), f"{where}/{key}")
    elif isinstance(one, list | tuple):
        if len(one) != len(other):
            yield where
        for number, (a, b) in enumerate(zip(one, other, strict=False)):
            yield from differences(a, b, f"{where}/{number}")
    elif isinstance(one, torch.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape or not torch.equal(one, other):
            yield where
    elif one != other:
        yield where


def collected(study: Path) -> dict[str, set[str]]:
    """The hashes of all batches that each step of any attempt was trained on."""
    found: dict[str, set[str]] = {}
    for line in Path(f"{study}.{BATCHES}").read_text().splitlines():
        key, _, digest = line.rpartition(", ")
        found.setdefault(key, set()).add(digest)
    return found


def batches(study: Path) -> dict[str, str]:
    """The hash of the batch of every step of a run that was left alone."""
    return {key: digest for key, (digest,) in collected(study).items()}
