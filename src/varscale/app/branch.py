"""A run that branches off another one, its trunk: it starts from a checkpoint that the trunk kept.

One trunk at a constant rate, and a cooldown from each of several of its steps, give every horizon for about the cost of
the longest (Hagele et al., arXiv:2405.18392). A branch is bit for bit what a run from scratch with its schedule would
be, so everything that decides the steps before it must be the trunk's: settings, data, tokenizer, rate, weight decay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from varscale.app.build import build_optim
from varscale.app.config import ConfigError
from varscale.app.identity import CONFIG_FILE, identify, scientific
from varscale.records import RecordError, read_run
from varscale.training.checkpoints import CHECKPOINTS, Checkpoint, Owner, described

# What may differ: the end of the run, when it is measured, and what is compared step by step.
_FREE = ("train.steps", "train.branch", "train.evaluations", "train.val_images", "train.budget_flops")
_RATE = (
    "warmup",
    "warmup_start",
    "warmup_length",
    "schedule",
    "hold",
    "knee",
    "final",
    "final_at_last_step",
    "cooldown",
)


@dataclass(frozen=True)
class Trunk:
    """The run that a branch starts from.

    Attributes:
        run_id: of the trunk.
        step: steps that the trunk has done there.
        checkpoint: of that step; not verified. None where it is no longer needed.
    """

    run_id: str
    step: int
    checkpoint: Checkpoint | None = None


def branch_step(cfg: DictConfig) -> int:
    """The step that the run starts from: 0 from scratch, of a branch where its cooldown begins unless it is stated.

    Raises ``ConfigError`` for a step at which the rate has begun to fall.
    """
    if cfg.train.branch is None:
        return 0
    optim, steps = build_optim(cfg), cfg.train.steps
    last = min(optim.cooldown_start(steps), steps - 1)
    step = last if cfg.train.branch.step is None else int(cfg.train.branch.step)
    if not 0 < step <= last:
        raise ConfigError(
            f"train.branch.step is {step}; with train.steps={steps} and optim.cooldown={optim.cooldown} a branch "
            f"starts from step 1 to {last}, where its rate begins to fall"
        )
    return step


def recorded_trunk(cfg: DictConfig, folder: Path) -> Trunk | None:
    """The trunk that the branch in ``folder`` has started from, by its own record; None where that does not say.

    The trunk itself may be gone once a branch has checkpoints of its own.
    """
    if cfg.train.branch is None:
        return None
    try:
        run = read_run(folder)
    except RecordError:
        return None
    if run.run_id != identify(cfg) or run.trunk_id is None:
        return None
    return Trunk(run.trunk_id, branch_step(cfg))


def trunk_of(cfg: DictConfig, owner: Owner) -> Trunk | None:
    """The trunk of ``train.branch``; None for a run from scratch.

    Args:
        owner: of the branch's checkpoints: its data and tokenizer must be the trunk's.

    Raises:
        ConfigError: if the trunk is not there, has no checkpoint of the step, or is another run than the branch needs.
    """
    if cfg.train.branch is None:
        return None
    folder = Path(cfg.paths.runs) / cfg.train.branch.trunk
    step = branch_step(cfg)
    if cfg.train.progressive is not None:
        raise ConfigError(
            "train.progressive stages are shares of a run; a branch cannot take them over: set it to null"
        )
    launch = f"launch it first, with {step} among its train.keep_steps: varscale train -m sweeps=trunk"
    try:
        run = read_run(folder)
        trunk = OmegaConf.load(folder / CONFIG_FILE)
    except (RecordError, OSError) as error:
        raise ConfigError(f"the trunk {folder} cannot be read ({error}); {launch}") from None
    assert isinstance(trunk, DictConfig)
    check_settings(trunk, cfg, step, folder)
    found, its_id = described(folder / CHECKPOINTS), identify(trunk)
    if others := {checkpoint.owner.run_id for checkpoint in found} - {its_id}:
        raise ConfigError(
            f"the trunk {folder} has the settings of run {its_id}, but checkpoints of {', '.join(sorted(others))}; "
            "launch it again, which says how to go on"
        )
    checkpoint = next((checkpoint for checkpoint in found if checkpoint.step == step), None)
    if checkpoint is None:
        there = ", ".join(str(checkpoint.step) for checkpoint in found) or "none"
        raise ConfigError(
            f"the trunk {folder} ({run.status}, {run.steps} steps) has no checkpoint of step {step}; it has {there}. "
            f"Let it get there, or {launch}"
        )
    for what, mine, its in (
        ("data set", owner.dataset_id, checkpoint.owner.dataset_id),
        ("tokenizer", owner.tokenizer_id, checkpoint.owner.tokenizer_id),
    ):
        if mine != its:
            raise ConfigError(f"the trunk {folder} was trained with the {what} {its}, not {mine}; train it again")
    return Trunk(its_id, step, checkpoint)


def check_settings(trunk: DictConfig, branch: DictConfig, step: int, folder: Path) -> None:
    """Raise ``ConfigError`` unless a run of either configuration is the same up to ``step``."""
    its, mine = flat(scientific(trunk)), flat(scientific(branch))
    free = (*_FREE, *(f"optim.{name}" for name in (*_RATE, "weight_decay_final")))
    if branch.train.average is None:
        free += ("train.average",)  # the trunk's changes none of its steps, and is left behind
    different = [
        f"{key} is {its.get(key)}, not {mine.get(key)}"
        for key in sorted(its.keys() | mine.keys())
        if its.get(key) != mine.get(key) and not key.startswith(free)
    ]
    if different:
        raise ConfigError(
            f"the trunk {folder} is another run: {'; '.join(different)}; branch off one of these settings"
        )
    optims = (build_optim(trunk), trunk.train.steps), (build_optim(branch), branch.train.steps)
    for at in range(step + 1):  # the branch's first step too takes the rate that the trunk had set for it
        rates, decays = zip(*((o.factor(at, steps), o.weight_decay_at(at, steps)) for o, steps in optims), strict=True)
        if rates[0] != rates[1] or decays[0] != decays[1]:
            raise ConfigError(
                f"at step {at} the trunk {folder} has {rates[0]:.6g} of the peak rate and a weight decay of "
                f"{decays[0]:.6g}, this run {rates[1]:.6g} and {decays[1]:.6g}; both need optim.schedule=constant and "
                "one warm-up in steps (optim.warmup_length)"
            )


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested settings by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves
