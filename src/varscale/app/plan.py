"""varscale plan: what a sweep will cost, before anything is spent.

Parameters, tokens and FLOPs are exact (counted on the meta device). Memory is what a step must keep. Time comes from a
short measurement of training steps on this machine, or from a stated device's peak and an assumed share of it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from varscale.app.branch import branch_step
from varscale.app.build import (
    arithmetic,
    build_model,
    build_optim,
    build_progressive,
    build_tokenizer,
    device_of,
    use_threads,
)
from varscale.app.config import ConfigError, did_you_mean
from varscale.app.sweeps import PlannedRun, planned_runs
from varscale.codes import CodeSpec
from varscale.models.budget import StepMemory, step_memory
from varscale.models.counting import count_parameters, train_flops_per_image
from varscale.models.var import VAR
from varscale.records import write_json
from varscale.schedule import ScaleSchedule
from varscale.tokenizers.tokens import TokenBatch
from varscale.training.device import synchronize
from varscale.training.optim import build_adamw
from varscale.training.progressive import spent, stage_costs, stages_of

PLAN_FILE = "plan.json"
ASSUMED_MFU = 0.4  # of a stated device's dense bf16 peak; measure yours and compare
MEASURED_STEPS = 5
MOST_MEASURED_FLOP = 2e12  # a step above this is extrapolated, not run: ten seconds or so of a CPU
MOST_MEASURED_BYTES = 4e9


@dataclass(frozen=True)
class Device:
    """A device as its data sheet states it: dense bf16 FLOP/s without sparsity, and memory in bytes."""

    peak_flops: float
    memory: float


# NVIDIA data sheets: H100 and H200 SXM, A100 SXM 80 GB, L40S, RTX 4090, V100 SXM2 32 GB (fp16).
DEVICES = {
    "h200": Device(989e12, 141e9),
    "h100": Device(989e12, 80e9),
    "a100": Device(312e12, 80e9),
    "l40s": Device(362e12, 48e9),
    "rtx4090": Device(165e12, 24e9),
    "v100": Device(125e12, 32e9),
}


@dataclass(frozen=True)
class RunPlan:
    """The cost of one run. FLOPs by the run's own rule; ``flops_anew`` without what a branch's trunk has spent."""

    overrides: tuple[str, ...]
    params_token: int
    params_image: int
    params_embed: int
    params_head: int
    params_blocks: int
    params_nonembed: int
    params_total: int
    flops: float
    flops_anew: float
    tokens: float
    images: float
    steps: int
    batch: int
    memory_bytes: int
    seconds: float


def main(cfg: DictConfig) -> None:
    """Print the table of the sweep and write ``plan.json`` into the study's folder."""
    if cfg.plan.device is not None:
        known_device(cfg.plan.device)
    runs = planned_runs()
    if len(runs) > 1:  # as the launcher will run them
        torch.set_num_threads(HydraConfig.get().launcher.threads_per_job)
    else:
        use_threads(cfg)
    models = [meta_model(run.cfg) for run in runs]
    costs = [train_flops_per_image(model, run.cfg.train.flops_rule) for run, model in zip(runs, models, strict=True)]
    totals = [planned(run.cfg, model) for run, model in zip(runs, models, strict=True)]
    memories = memory_of_each(runs, models)
    step_seconds, basis = time_a_step(cfg, runs, costs, memories)
    plans = []
    measured = zip(runs, models, costs, totals, memories, step_seconds, strict=True)
    for run, model, cost, (tokens, flops, anew), kept, seconds in measured:
        counts = count_parameters(model)
        images = float(run.cfg.train.steps * run.cfg.train.batch)
        plans.append(
            RunPlan(
                overrides=run.overrides,
                params_token=counts.params_token,
                params_image=counts.params_image,
                params_embed=counts.params_embed,
                params_head=counts.params_head,
                params_blocks=counts.params_blocks,
                params_nonembed=counts.params_nonembed,
                params_total=counts.params_total,
                flops=flops,
                flops_anew=anew,
                tokens=tokens,
                images=images,
                steps=run.cfg.train.steps,
                batch=run.cfg.train.batch,
                memory_bytes=kept.of_run(planned_device_type(run.cfg)),
                # Steps that train coarse scales only take their share of a whole step.
                seconds=seconds * (anew / (run.cfg.train.batch * cost) + measuring_steps(run.cfg)),
            )
        )
    print(table(plans, basis, cfg.train.flops_rule))
    path = Path(cfg.paths.study) / PLAN_FILE
    write_json(path, {"design": cfg.design, "basis": basis, "runs": [asdict(plan) for plan in plans]})


def planned(cfg: DictConfig, model: VAR) -> tuple[float, float, float]:
    """Tokens and FLOPs of the whole run, and the FLOPs that are spent anew where it branches off a trunk."""
    optim, steps = build_optim(cfg), cfg.train.steps
    stages = stages_of(build_progressive(cfg), optim, steps=steps, num_scales=model.schedule.num_scales)
    costs = stage_costs(stages, model, cfg.train.flops_rule)
    tokens, flops = spent(costs, steps, cfg.train.batch)
    return tokens, flops, flops - spent(costs, branch_step(cfg), cfg.train.batch)[1]


def measuring_steps(cfg: DictConfig) -> float:
    """What the held-out measurements cost, in training steps: a forward pass is a third of a step's work."""
    images = cfg.train.val_images if cfg.train.val_images is not None else cfg.cache.val_images or 0
    models = 1 if cfg.train.average is None else 2  # the average's measurement stands beside that of the raw weights
    return float(models * cfg.train.evaluations * images / (3 * cfg.train.batch))


def meta_model(cfg: DictConfig) -> VAR:
    """The run's model without storage; schedule and code come from the tokenizer's settings, not from its weights."""
    classes = cfg.data.get("num_classes")
    if classes is None:
        raise ConfigError("data.num_classes is not set, and plan reads no data; give it as data.num_classes=NUMBER")
    with torch.device("meta"):
        model = build_model(
            cfg,
            schedule=ScaleSchedule.parse(cfg.tokenizer.schedule),
            code=CodeSpec.index(cfg.tokenizer.vocabulary),
            latent_channels=cfg.tokenizer.latent_channels,
            num_classes=classes,
        )
    model.checkpoint_blocks = cfg.trainer.checkpoint_blocks
    return model


def known_device(name: str) -> Device:
    """The device of that name. Raises ``ConfigError`` with the names there are."""
    if name not in DEVICES:
        raise ConfigError(
            f"plan.device={name} is not known.{did_you_mean(name, DEVICES)} There are: {', '.join(DEVICES)}"
        )
    return DEVICES[name]


def memory_of_each(runs: Sequence[PlannedRun], models: Sequence[VAR]) -> list[StepMemory]:
    """``memory`` of every run; of runs that differ by their seed only, once."""
    found: dict[str, StepMemory] = {}
    out = []
    for run, model in tqdm(
        zip(runs, models, strict=True), desc="memory", total=len(runs), unit="run", delay=2, leave=False
    ):
        key = OmegaConf.to_yaml(OmegaConf.masked_copy(run.cfg, [name for name in run.cfg if name != "seed"]))
        if key not in found:
            found[key] = memory(run.cfg, model)
        out.append(found[key])
    return out


def memory(cfg: DictConfig, model: VAR) -> StepMemory:
    """What this run takes on each device, at its peak."""
    trainer, devices = cfg.trainer, cfg.trainer.devices * cfg.trainer.num_nodes
    with torch.device("meta"):
        tokenizer = build_tokenizer(cfg)
    images = cfg.train.val_images if cfg.train.val_images is not None else cfg.cache.val_images
    return step_memory(
        model,
        batch_of_a_pass(cfg),
        dtype=arithmetic(cfg),
        device_type=planned_device_type(cfg),
        passes=trainer.accumulate,
        averaged=cfg.train.average is not None,
        measured=min(cfg.train.val_batch, images or cfg.train.val_batch),
        tokenizer=tokenizer,
        encodes=cfg.train.source == "images",
        strategy=trainer.strategy if trainer.strategy != "auto" else "ddp" if devices > 1 else "alone",
        devices=devices,
    )


def planned_device_type(cfg: DictConfig) -> str:
    """``cuda`` or ``cpu``: where the planned runs train."""
    return "cuda" if cfg.plan.device or cfg.trainer.accelerator == "gpu" else "cpu"


def batch_of_a_pass(cfg: DictConfig) -> int:
    """Images of one pass on one device."""
    trainer = cfg.trainer
    return int(max(1, cfg.train.batch // (trainer.devices * trainer.num_nodes * trainer.accumulate)))


def time_a_step(
    cfg: DictConfig, runs: Sequence[PlannedRun], costs: Sequence[float], memories: Sequence[StepMemory]
) -> tuple[list[float], str]:
    """Seconds a step of every run, and in words what they rest on."""
    flops = np.array([cost * run.cfg.train.batch for cost, run in zip(costs, runs, strict=True)])
    name = cfg.plan.device
    if name is not None:
        devices = cfg.trainer.devices * cfg.trainer.num_nodes
        speed = known_device(name).peak_flops * ASSUMED_MFU * devices
        basis = f"{devices} x {name}: {ASSUMED_MFU:.0%} of its data-sheet peak assumed, nothing measured"
        return (flops / speed).tolist(), basis
    order = np.argsort(flops)
    fits = [i for i in order if flops[i] <= MOST_MEASURED_FLOP and memories[i].total <= MOST_MEASURED_BYTES]
    if not fits:
        raise ConfigError(
            f"the smallest step of this sweep takes {flops.min():.2g} FLOP and "
            f"{memories[order[0]].total / 1e9:.0f} GB, "
            "too much to measure on this machine; name a device, such as plan.device=h100: "
            f"{', '.join(DEVICES)}"
        )
    chosen = sorted({fits[0], fits[len(fits) // 2], fits[-1]}, key=lambda i: flops[i])
    measured = [measure_step(runs[i].cfg) for i in tqdm(chosen, desc="measuring", unit="size", leave=False)]
    # A step is a fixed cost plus its FLOPs at some speed; between measured sizes interpolate, beyond the last scale up.
    seconds = np.interp(flops, flops[chosen], measured)
    beyond = flops > flops[chosen[-1]]
    seconds[beyond] = measured[-1] * flops[beyond] / flops[chosen[-1]]
    basis = (
        f"this machine, {len(chosen)} sizes, {MEASURED_STEPS} steps each with {torch.get_num_threads()} thread(s); "
        "starting a run is not counted"
    )
    return seconds.tolist(), basis


def measure_step(cfg: DictConfig) -> float:
    """Median seconds of a training step of this run's model on random tokens: of one device's passes."""
    device = device_of(cfg)
    schedule = ScaleSchedule.parse(cfg.tokenizer.schedule)
    channels, batch = cfg.tokenizer.latent_channels, batch_of_a_pass(cfg)
    model = build_model(
        cfg,
        schedule=schedule,
        code=CodeSpec.index(cfg.tokenizer.vocabulary),
        latent_channels=channels,
        num_classes=cfg.data.num_classes,
    ).to(device)
    model.checkpoint_blocks = cfg.trainer.checkpoint_blocks
    optimizer, _ = build_adamw(model, build_optim(cfg), lr_peak=1e-4, steps=1)
    L, n_0 = schedule.num_tokens, schedule.tokens_per_scale[0]
    tokens = TokenBatch(
        torch.randint(cfg.tokenizer.vocabulary, (batch, L)),
        torch.randint(cfg.data.num_classes, (batch,)),
        torch.randn(batch, L - n_0, channels),
    ).to(device)
    dtype = arithmetic(cfg)
    seconds = []
    for _ in range(MEASURED_STEPS + 1):
        started = time.perf_counter()
        for _ in range(cfg.trainer.accumulate):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = model.loss(tokens).per_token_avg_B.mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[1:]))  # the first one warms up


def table(plans: Sequence[RunPlan], basis: str, rule: str) -> str:
    """The plan as text."""
    names = [",".join(plan.overrides) or "single" for plan in plans]
    width = max(3, *(len(name) for name in names))
    lines = [
        f"{'run':<{width}}  {'params_total':>14}  {'blocks':>14}  {'non-embedding':>14}  {'FLOP':>9}  {'tokens':>9}  "
        f"{'memory':>9}  {'time':>9}"
    ]
    for name, plan in zip(names, plans, strict=True):
        lines.append(
            f"{name:<{width}}  {plan.params_total:>14,}  {plan.params_blocks:>14,}  {plan.params_nonembed:>14,}  "
            f"{plan.flops:>9.2e}  {plan.tokens:>9.2e}  {plan.memory_bytes / 1e9:>6.2f} GB  {duration(plan.seconds):>9}"
        )
    flops, anew, seconds = (sum(getattr(plan, name) for plan in plans) for name in ("flops", "flops_anew", "seconds"))
    branches = "" if anew == flops else f", of which {anew:.3g} anew (the rest is the trunks')"
    lines.append(f"{len(plans)} runs, {flops:.3g} FLOP ({rule}){branches}, {duration(seconds)} one after another")
    lines.append(f"time: {basis}")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds, minutes, hours or days, whichever reads best."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
