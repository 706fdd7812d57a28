"""The typed schemas that configurations are merged into: an unknown key or a wrong type is an error.

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
    checkpoint_every: int | None = None
    time_limit: float | None = None
    ema_decay: float | None = None
    optim: dict[str, Any] = field(default_factory=dict)


@dataclass
class Cache:
    """Tokens on disk."""

    train_images: int | None = None
    val_images: int | None = None
    crops: int = MISSING
    shard_images: int = MISSING
    batch: int = MISSING
    precision: str = MISSING
    store_inputs: bool = MISSING


@dataclass
class Progressive:
    """Coarse scales first."""

    first: int = MISSING
    until: float = MISSING
    ramp: float = MISSING


@dataclass
class Average:
    """An average of the weights."""

    kind: str = MISSING
    gamma: float = MISSING


@dataclass
class Branch:
    """Where a run starts from."""

    trunk: str = MISSING
    step: int | None = None


@dataclass
class Train:
    """Stage 2."""

    source: str = MISSING
    steps: int = MISSING
    batch: int = MISSING
    label_drop: float = MISSING
    budget_flops: float | None = None
    progressive: Progressive | None = None
    average: Average | None = None
    branch: Branch | None = None
    evaluations: int = MISSING
    val_images: int | None = None
    val_batch: int = MISSING
    checkpoint_every: int | None = None
    keep: int = MISSING
    keep_steps: Any = None
    time_limit: float | None = None
    flops_rule: str = MISSING


@dataclass
class Draws:
    """How tokens are drawn."""

    seed: int = MISSING
    guidance: float = MISSING
    guidance_per_scale: list[float] | None = None
    top_k: int = MISSING
    top_p: float = MISSING
    temperature: float = MISSING
    temperature_per_scale: list[float] | None = None
    smooth: bool = MISSING
    precision: str = MISSING


@dataclass
class Sample(Draws):
    """Pictures drawn from trained models."""

    run: str | None = None
    format: str = MISSING
    out: str | None = None
    images: int = MISSING
    per_class: int | None = None
    batch: int = MISSING
    labels: list[int] | None = None


@dataclass
class Edit(Draws):
    """A user's image, edited."""

    run: str | None = None
    image: str | None = None
    mode: str = MISSING
    box: list[float] | None = None
    mask: str | None = None
    label: int | None = None
    images: int = MISSING
    out: str = MISSING


@dataclass
class Inspect:
    """What a model sees."""

    run: str | None = None
    image: str | None = None
    held_out: int | None = None
    images: int = MISSING
    label: int | None = None
    queries: list[list[int]] | None = None
    block: int | None = None
    out: str | None = None


@dataclass
class Plan:
    """What a sweep will cost."""

    device: str | None = None


@dataclass
class Status:
    """How the runs of a study stand."""

    watch: float | None = None
    json: bool = MISSING


@dataclass
class Dashboard:
    """A workspace of W&B."""

    entity: str | None = None
    name: str = MISSING


@dataclass
class Collect:
    """How the runs of others are read from W&B."""

    columns: dict[str, str] | None = None
    curves: dict[str, str] | None = None


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
    num_nodes: int = 1
    strategy: str = "auto"
    accumulate: int = MISSING
    precision: str = MISSING
    threads: int | None = None
    workers: int = MISSING
    compile: bool = MISSING
    checkpoint_blocks: bool = MISSING
    deterministic: bool = False


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
    edit: Edit = field(default_factory=Edit)
    inspect: Inspect = field(default_factory=Inspect)
    plan: Plan = field(default_factory=Plan)
    source: str = MISSING
    project: str | None = None
    collect: Collect = field(default_factory=Collect)
    analysis: Analysis = field(default_factory=Analysis)
    status: Status = field(default_factory=Status)
    dashboard: Dashboard = field(default_factory=Dashboard)
    trainer: Trainer = field(default_factory=Trainer)
    logger: Logger = field(default_factory=Logger)
    paths: Paths = field(default_factory=Paths)
    # Groups that change keys above rather than having a section of their own.
    experiment: Any = None
    debug: Any = None
    sweeps: Any = None
    launcher: Any = None


@dataclass
class Design:
    """The next sweep."""

    law: str | None = None
    fit: str | None = None
    form: str = MISSING
    guess: dict[str, float | None] = field(default_factory=dict)
    spread: float = MISSING
    goal: str = MISSING
    at: float | None = None
    at_tokens: float | None = None
    budget: float | None = None
    gpu_hours: float | None = None
    money: float | None = None
    price: float | None = None
    device: str | None = None
    mfu: float = MISSING
    jobs: int = MISSING
    wall_hours: float | None = None
    noise: float | None = None
    size_noise: float | None = None
    sizes: str | None = None
    steps: list[int] | None = None
    max_size: float | None = None
    max_tokens: float | None = None
    unique_tokens: float | None = None
    max_epochs: float = MISSING
    min_sizes: int = MISSING
    max_seeds: int = MISSING
    max_runs: int = MISSING
    seed: int = MISSING
    name: str = MISSING
    folder: str | None = None


@dataclass
class DesignConfig(StudyConfig):
    """The verb design, whose section bears the name that is elsewhere the sweep's."""

    design: Design = field(default_factory=Design)  # type: ignore[assignment]


@dataclass
class ImportConfig:
    """The verb import: files of others into a model folder."""

    tokenizer: str | None = None
    model: str | None = None
    out: str | None = None
    schedule: str | None = None
    hub: str | None = None
    revision: str | None = None


@dataclass
class TokenizerPath:
    """The part of ``Paths`` that a run needs beside its own folder."""

    tokenizer: str | None = None


@dataclass
class ExportConfig:
    """The verb export: a trained model for others."""

    run: str | None = None
    out: str | None = None
    format: str = MISSING
    paths: TokenizerPath = field(default_factory=TokenizerPath)
