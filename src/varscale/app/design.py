"""varscale design: the sweep that narrows one number most for a budget, written as a file that can be launched.

Candidates are sizes of the model's family and, for a law of N and D, numbers of steps; their parameters and FLOPs are
counted exactly, as ``plan`` does. Which of them is the analysis package's work (`varscale_analysis.design`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from varscale.app.config import ConfigError, did_you_mean
from varscale.app.plan import DEVICES, meta_model, planned
from varscale.app.proposal import option, sweep_path, write_sweep
from varscale.app.sweeps import PlannedRun, composed_runs
from varscale.models.counting import count_parameters
from varscale.records import read_json
from varscale_analysis import (
    Budget,
    Candidates,
    ChinchillaLaw,
    ComputeCost,
    FitError,
    Goal,
    Guess,
    Law,
    LawFit,
    PowerLaw,
    SaturatingPowerLaw,
    SweepDesign,
    design_sweep,
)

FORMS: dict[str, type[Law]] = {"chinchilla": ChinchillaLaw, "saturating": SaturatingPowerLaw, "power": PowerLaw}
SIZES = ("params_nonembed", "params_total", "params_blocks", "params_token")
TOKENS, IMAGES, FLOPS = "tokens_seen", "images_seen", "flops_train"
STEP_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
# The sizes of a family, by the rule that its model is built by.
FAMILIES = {
    "by_depth": "model.depth=range(4,38,2)",
    "by_width": "model.width=8,12,16,24,32,48,64,96,128,192,256",
}


@dataclass(frozen=True)
class Candidate:
    """A run that may be proposed: its overrides, and its columns of the run table."""

    overrides: tuple[str, ...]
    columns: dict[str, float]


def main(cfg: DictConfig) -> None:
    """Print the proposal and write the sweep."""
    settings, path = cfg.design, sweep_path(cfg)
    prior, budget = prior_of(cfg), budget_of(cfg)
    law = prior.form if isinstance(prior, LawFit) else prior.law
    candidates = candidates_of(cfg, law)
    check_tokens(prior, candidates)
    offered = Candidates.of(
        law,
        {role: [c.columns[name] for c in candidates] for role, name in law.roles.items()},
        flops=[c.columns[FLOPS] for c in candidates],
        tokens=[c.columns[TOKENS] for c in candidates],
    )
    try:
        design = design_sweep(
            prior,
            offered.within(
                max_size=settings.max_size,
                max_tokens=settings.max_tokens,
                unique_tokens=settings.unique_tokens,
                max_epochs=settings.max_epochs,
            ),
            budget,
            goal_of(cfg, law, offered),
            noise=settings.noise,
            size_noise=settings.size_noise,
            sizes=settings.min_sizes,
            max_seeds=settings.max_seeds,
            max_runs=settings.max_runs,
            seed=settings.seed,
        )
    except FitError as error:
        raise ConfigError(f"design.goal={settings.goal}: {error}") from error
    summary = design.summary()
    runs = jobs(design, candidates, prior)
    write_sweep(path, runs, summary)
    print(f"{summary}\n\nwritten: {path}, {len(runs)} runs")
    cd, name = option(path), path.stem
    print(f"  varscale plan {cd}sweeps={name}\n  varscale train {cd}-m sweeps={name}")


def prior_of(cfg: DictConfig) -> LawFit | Guess:
    """The law that the sweep is designed for. Raises ``ConfigError`` unless one of ``law`` and ``guess`` says it."""
    settings = cfg.design
    values = {str(name): float(value) for name, value in settings.guess.items() if value is not None}
    if (settings.law is None) == (not values):
        raise ConfigError(
            "a sweep is designed for a law that is known: give a study's design.law=outputs/STUDY/fit.json, or a "
            "guess, such as design.form=saturating design.guess.E=3.2 design.guess.beta=2.8e-4 design.guess.alpha=-0.5"
        )
    if settings.law is not None:
        return read_fit(Path(settings.law), settings.fit, cfg.analysis.y)
    if settings.form not in FORMS:
        raise ConfigError(
            f"design.form={settings.form} is not known.{did_you_mean(settings.form, FORMS)} There are: "
            f"{', '.join(FORMS)}"
        )
    return Guess(FORMS[settings.form](n=cfg.analysis.n), values, spread=settings.spread)  # type: ignore[call-arg]


def read_fit(path: Path, name: str | None, y: str) -> LawFit:
    """A fit of ``fit.json``, or of a file that holds one fit. Raises ``ConfigError`` for a fit that is not there."""
    values = read_json(path)
    if "form" in values:
        return LawFit.from_dict(values)
    fits: dict[str, Any] = values.get("fits", {})
    wanted = [name] if name is not None else [f"{form}/{y}" for form in ("chinchilla", "saturating")]
    found = next((fits[one] for one in wanted if one in fits), None)
    if found is None:
        there = ", ".join(fits) or "none"
        raise ConfigError(f"{path} has no fit {' or '.join(wanted)}; name one with design.fit=..., there are: {there}")
    return LawFit.from_dict(found)


def budget_of(cfg: DictConfig) -> Budget:
    """What may be spent. Raises ``ConfigError`` unless exactly one of FLOP, GPU-hours and money is given."""
    settings = cfg.design
    given = [name for name in ("budget", "gpu_hours", "money") if settings[name] is not None]
    if len(given) != 1:
        raise ConfigError(
            "give one budget: design.budget=1e20 (FLOP), design.gpu_hours=500 design.device=h100, or "
            f"design.money=1000 design.price=2.5 design.device=h100; got {' and '.join(given) or 'none'}"
        )
    if settings.device is not None and settings.device not in DEVICES:
        raise ConfigError(
            f"design.device={settings.device} is not known.{did_you_mean(settings.device, DEVICES)} There are: "
            f"{', '.join(DEVICES)}"
        )
    if settings.device is None:
        if given != ["budget"] or settings.wall_hours is not None:
            raise ConfigError("hours need a device: give design.device=h100 and the design.mfu you measured")
        return Budget(settings.budget)
    if settings.money is not None and settings.price is None:
        raise ConfigError("design.money buys hours at design.price, the price of a GPU-hour; give it")
    peak, hours = DEVICES[settings.device].peak_flops, settings.gpu_hours
    if settings.budget is not None:
        if not settings.mfu > 0:
            raise ConfigError(f"design.mfu={settings.mfu} must be above 0")
        hours = settings.budget / (peak * settings.mfu * 3600.0)
    machine = {"peak_flops": peak, "mfu": settings.mfu, "devices": cfg.trainer.devices, "jobs": settings.jobs}
    machine |= {"wall_hours": settings.wall_hours}
    if settings.money is not None:
        return Budget.money(settings.money, settings.price, **machine)
    return Budget.gpu_hours(hours, **machine, basis=f"{hours:.4g} GPU-hours of {settings.device}")


def goal_of(cfg: DictConfig, law: Law, offered: Candidates) -> Goal:
    """What to narrow. Raises ``ConfigError`` where ``at`` is missing or means nothing."""
    settings = cfg.design
    wanted = {"n_opt": ["at"], "loss": ["at", "at_tokens"] if "d" in law.roles else ["at"]}.get(settings.goal, [])
    for name in ("at", "at_tokens"):
        if (settings[name] is None) == (name in wanted):
            what = "needs" if name in wanted else "has no use for"
            raise ConfigError(f"design.goal={settings.goal} {what} design.{name}")
    if settings.goal == "n_opt":
        if "d" not in law.roles:
            raise ConfigError(f"n_opt follows from a law of N and D; {law.formula} has none")
        return Goal.n_opt(settings.at, ComputeCost.from_columns(offered.flops, offered.x["n"], offered.x["d"]))
    if settings.goal == "loss":
        return Goal.loss(**dict(zip(law.roles, (settings.at, settings.at_tokens), strict=False)))
    return Goal.parameter(settings.goal)


def candidates_of(cfg: DictConfig, law: Law) -> list[Candidate]:
    """Sizes, and for a law of N and D steps, with exact counts. Raises ``ConfigError`` for columns it cannot count."""
    known = (*SIZES, TOKENS, IMAGES, FLOPS)
    unknown = [name for name in law.roles.values() if name not in known]
    if unknown:
        raise ConfigError(f"the law is of {', '.join(unknown)}, which is not planned; a sweep has {', '.join(known)}")
    by_steps = any(name not in SIZES for name in law.roles.values())
    if cfg.design.steps is not None and not by_steps:
        raise ConfigError(f"design.steps is for a law of N and D; {law.formula} holds for one D, that of train.steps")
    out = []
    for run in composed_runs([[override] for override in size_overrides(cfg)]):
        model = meta_model(run.cfg)
        counts = count_parameters(model)
        for steps in _steps(run, cfg.design.steps) if by_steps else [run.cfg.train.steps]:
            sized = copy.deepcopy(run.cfg)
            OmegaConf.set_readonly(sized, False)
            sized.train.steps = steps
            tokens, flops, _ = planned(sized, model)
            columns = {name: float(getattr(counts, name)) for name in SIZES}
            columns |= {TOKENS: tokens, IMAGES: float(steps * sized.train.batch), FLOPS: flops}
            overrides = (*run.overrides, f"train.steps={steps}") if by_steps else run.overrides
            out.append(Candidate(overrides, columns))
    return out


def size_overrides(cfg: DictConfig) -> list[str]:
    """One override a size, such as model.width=8."""
    sizes = cfg.design.sizes
    if sizes is None:
        sizes = FAMILIES.get(cfg.model["_target_"].rpartition(".")[2])
        if sizes is None:
            raise ConfigError(
                f"the sizes of {cfg.model['_target_']} are not known; give design.sizes=model.KEY=A,B,..."
            )
    (parsed,) = OverridesParser.create().parse_overrides([sizes])
    if not parsed.is_discrete_sweep():
        raise ConfigError(f"design.sizes={sizes} names one size; give several, as 'model.width=8,16,32'")
    return [f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator()]


def check_tokens(prior: LawFit | Guess, candidates: Sequence[Candidate]) -> None:
    """A law of N holds for the D of its runs. Raises ``ConfigError`` when the candidates have another."""
    if not isinstance(prior, LawFit) or not prior.form.fixed_tokens or not prior.at.startswith("at D = "):
        return
    tokens = candidates[0].columns[TOKENS]
    if not (prior.at + ",").startswith(f"at D = {tokens:.4g} tokens,"):
        raise ConfigError(
            f"the law holds {prior.at}, but these runs would train on {tokens:.4g}; give the groups and train.steps of "
            "its runs, such as sweeps=NAME of its study"
        )


def jobs(design: SweepDesign, candidates: Sequence[Candidate], prior: LawFit | Guess) -> list[list[str]]:
    """The overrides of every run, by cost. Seeds go on from the runs of the same size that the law was fitted to."""
    out = []
    for run in design.runs:
        done = 0
        if isinstance(prior, LawFit):
            same = [np.isclose(prior.points.x[role], run.at[name]) for role, name in prior.form.roles.items()]
            done = int(np.all(same, axis=0).sum())
        overrides = candidates[run.candidate].overrides
        out += [[*overrides, f"seed={seed}"] for seed in range(done, done + run.seeds)]
    return out


def _steps(run: PlannedRun, given: Sequence[int] | None) -> list[int]:
    return sorted(set(given or [max(1, round(factor * run.cfg.train.steps)) for factor in STEP_FACTORS]))
