"""Runs of equal compute: the number of steps that a budget of FLOPs buys a model, as the resolver ``isoflop_steps``.

``train.steps: ${isoflop_steps:${train.budget_flops}}`` gives every size the steps of its budget, counted exactly by
the run's own FLOP rule (Hoffmann et al., arXiv:2203.15556, approach 2). Torch-free: every job of a sweep resolves it.
"""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from varscale.app.config import ConfigError
from varscale.models.closed_form import ClosedForm
from varscale.models.shape import Shape, depth_rule, ladder_rule
from varscale.schedule import ScaleSchedule

TOLERANCE = 0.05  # steps are whole; beyond it the steps are not those of the budget


def isoflop_steps(budget: float, *, _root_: DictConfig) -> int:
    """Steps whose training FLOPs come nearest to ``budget`` (FLOP), at least one.

    Raises:
        ConfigError: for a budget that is not positive, a model whose size cannot be told, and progressive training.
    """
    if not isinstance(budget, int | float) or not budget > 0:
        raise ConfigError(f"train.budget_flops is {budget}; an IsoFLOP run needs a number of FLOPs above 0, as 1e12")
    if _root_.train.progressive is not None:
        raise ConfigError("IsoFLOP steps are whole steps of all scales; set train.progressive=null")
    return max(1, round(budget / (_root_.train.batch * flops_per_image(_root_))))


def flops_per_image(cfg: DictConfig) -> float:
    """Training FLOPs an image of the configured model, on the tokens of the configured tokenizer."""
    model = cfg.model
    counts = ClosedForm(
        shape_of(model),
        ScaleSchedule.parse(cfg.tokenizer.schedule),
        vocabulary=cfg.tokenizer.vocabulary,
        latent_channels=cfg.tokenizer.latent_channels,
        shared_adaln=model.shared_adaln,
        l2_norm=model.l2_norm,
    )
    return counts.train_flops_per_image(cfg.train.flops_rule)


def shape_of(model: DictConfig) -> Shape:
    """The shape that a model group stands for. Raises ``ConfigError`` for a target without a size rule."""
    rule = str(model["_target_"]).rpartition(".")[2]
    if rule == "by_width":
        return ladder_rule(model.width, model.depth, model.head_dim)
    if rule == "by_depth":
        return depth_rule(model.depth)
    raise ConfigError(f"model._target_ is {model['_target_']}; the FLOPs of VAR.by_width and VAR.by_depth are known")


def intended_flops(budget: float | None, planned: float) -> float:
    """The run's ``budget_flops``: the stated budget, else what its steps cost.

    Raises:
        ConfigError: when the steps do not spend the stated budget.
    """
    if budget is None:
        return planned
    if abs(planned / budget - 1) > TOLERANCE:
        raise ConfigError(
            f"train.budget_flops is {budget:.4g}, but train.steps cost {planned:.4g} FLOP; let them follow from it: "
            "train.steps='${isoflop_steps:${train.budget_flops}}'"
        )
    return budget


def register() -> None:
    """Make the resolver known, before anything is composed."""
    OmegaConf.register_new_resolver("isoflop_steps", isoflop_steps, replace=True)
