"""The typed schema every composed configuration is merged into: an unknown key or a wrong type is an error.

The meaning of each key stands beside its default in ``conf/``. Group nodes (data, tokenizer, model, optim) name their
class by ``_target_`` and are checked against its signature when they are built.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class Stage1:
    """Training of the tokenizer."""

    steps: int = MISSING
    batch: int = MISSING
    seed: int = MISSING
    val_images: int = MISSING
    validate_every: int | None = None
    checkpoint_every: int = MISSING
    optim: dict[str, Any] = field(default_factory=dict)


@dataclass
class Cache:
    """Tokens on disk."""

    train_images: int | None = None
    val_images: int | None = None
    shard_images: int = MISSING
    batch: int = MISSING
    precision: str = MISSING
    store_inputs: bool = MISSING


@dataclass
class Train:
    """Stage 2."""

    source: str = MISSING
    steps: int = MISSING
    batch: int = MISSING
    label_drop: float = MISSING
    evaluations: int = MISSING
    val_images: int | None = None
    val_batch: int = MISSING
    checkpoint_every: int = MISSING
    flops_rule: str = MISSING


@dataclass
class Sample:
    """Pictures drawn from trained models."""

    run: str | None = None
    images: int = MISSING
    guidance: float = MISSING
    top_k: int = MISSING
    top_p: float = MISSING
    temperature: float = MISSING
    seed: int = MISSING
    labels: list[int] | None = None


@dataclass
class Plan:
    """What a sweep will cost."""

    device: str | None = None


@dataclass
class Analysis:
    """Laws, frontier and hold-out."""

    n: str = MISSING
    y: str = MISSING
    holdout: str | None = None
    bootstrap: int = MISSING
    seed: int = MISSING


@dataclass
class Trainer:
    """Where and how training runs."""

    accelerator: str = MISSING
    devices: int = MISSING
    accumulate: int = MISSING
    precision: str = MISSING
    threads: int | None = None
    workers: int = MISSING
    compile: bool = MISSING


@dataclass
class Logger:
    """The Weights & Biases mirror."""

    mode: str = MISSING
    project: str = MISSING
    tags: list[str] = field(default_factory=list)


@dataclass
class Paths:
    """Folders of a study."""

    outputs: str = MISSING
    study: str = MISSING
    tokenizer: str = MISSING
    cache: str = MISSING
    runs: str = MISSING


@dataclass
class StudyConfig:
    """The whole configuration."""

    study: str = MISSING
    design: str = MISSING
    seed: int = MISSING
    data: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    optim: dict[str, Any] = field(default_factory=dict)
    stage1: Stage1 = field(default_factory=Stage1)
    cache: Cache = field(default_factory=Cache)
    train: Train = field(default_factory=Train)
    sample: Sample = field(default_factory=Sample)
    plan: Plan = field(default_factory=Plan)
    analysis: Analysis = field(default_factory=Analysis)
    trainer: Trainer = field(default_factory=Trainer)
    logger: Logger = field(default_factory=Logger)
    paths: Paths = field(default_factory=Paths)
    # Groups that change keys above rather than having a section of their own.
    experiment: Any = None
    debug: Any = None
    sweeps: Any = None
