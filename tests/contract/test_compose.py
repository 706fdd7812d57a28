"""Every verb, every choice of every group and every sweep composes and fits the schema."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from varscale.app.branch import check_settings
from varscale.app.build import build_optim, build_progressive
from varscale.app.cli import VERBS
from varscale.app.compose import compose, composing
from varscale.app.config import OVERLAYS, ConfigError
from varscale.app.identity import scientific
from varscale.app.isoflop import intended_flops
from varscale.app.jobs import run_name
from varscale.app.plan import meta_model, planned
from varscale.app.resources import group_choices, resources_root
from varscale.app.sweeps import swept_overrides
from varscale.app.train import divided
from varscale.models.counting import train_flops_per_image
from varscale.schedule import VAR_256, VAR_512
from varscale.training.progressive import stages_of

CHOICES = [(group, name) for group, names in group_choices(resources_root()).items() for name in names]
SWEEPS = [name for group, name in CHOICES if group == "sweeps"]


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    with composing():
        yield


@pytest.mark.parametrize("verb", [name for name, verb in VERBS.items() if verb.schema == "StudyConfig"])
def test_every_verb_composes(verb: str) -> None:
    cfg, _ = compose(verb, [])
    assert OmegaConf.is_readonly(cfg) and not OmegaConf.missing_keys(cfg)


@pytest.mark.parametrize(("group", "name"), [choice for choice in CHOICES if choice[0] != "sweeps"])
def test_every_choice_composes(group: str, name: str) -> None:
    cfg, hydra = compose("train", [f"{group}={name}"])
    assert hydra.runtime.choices[group] == name
    if group not in OVERLAYS:
        assert cfg[group], f"{group}/{name}.yaml is empty"


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_is_distinct_runs_with_the_steps_it_plans(name: str) -> None:
    _, hydra = compose("train", [f"sweeps={name}"])
    assert hydra.runtime.choices.sweeps == name
    jobs = swept_overrides(hydra)
    assert len(jobs) > 1, f"sweeps/{name}.yaml plans no runs, neither by hydra.sweeper.params nor by runs"
    names = {run_name(job) for job in jobs}
    assert len(names) == len(jobs)
    file: Any = OmegaConf.to_container(OmegaConf.load(resources_root() / "sweeps" / f"{name}.yaml"), resolve=False)
    planned = file.get("train", {}).get("steps")
    for job in (jobs[0], jobs[-1]):  # composing takes a quarter of a second
        cfg, _ = compose("train", [f"sweeps={name}", *job])
        for override in OverridesParser.create().parse_overrides(job):
            assert OmegaConf.select(cfg, override.key_or_group) == override.value()
        if isinstance(planned, int) and not any(override.startswith("train.steps=") for override in job):
            assert cfg.train.steps == planned


# The released recipes: experiment, batch, epochs, rate for 256 images, gates, end of the rate, end of the weight decay.
PUBLISHED = [
    ("var_d16", 768, 200, 1e-4, 1e-3, 0.1, 0.05),
    ("var_d20", 768, 250, 1e-4, 1e-3, 0.1, 0.05),
    ("var_d24", 768, 350, 8e-5, 1e-4, 0.01, 0.05),
    ("var_d30", 1024, 350, 8e-5, 1e-5, 0.01, 0.08),
    ("var_d36_512", 768, 350, 8e-5, 5e-6, 0.01, 0.08),
]
IMAGENET = 1_281_167


@pytest.mark.parametrize(("name", "batch", "epochs", "rate", "gates", "end", "decay"), PUBLISHED)
def test_published_recipes(
    name: str, batch: int, epochs: int, rate: float, gates: float, end: float, decay: float
) -> None:
    cfg, hydra = compose("train", [f"experiment={name}"])
    optim, model = build_optim(cfg), meta_model(cfg)
    steps, depth, large = epochs * math.ceil(IMAGENET / batch), int(name[5:7]), name == "var_d36_512"
    assert (cfg.train.batch, cfg.train.steps, cfg.train.label_drop) == (batch, steps, 0.1)
    assert optim.lr_peak(width=model.width, batch=batch) == pytest.approx(rate * batch / 256, rel=1e-12)
    assert (*optim.betas, optim.eps, optim.clip) == (0.9, 0.95, 1e-8, 2.0)
    assert optim.warmup_steps(steps) == steps / 50 and optim.factor(0, steps) == 0.005
    assert optim.factor(steps - 1, steps) == pytest.approx(end)
    assert optim.weight_decay_at(0, steps) == 0.05 and optim.weight_decay_at(steps - 1, steps) == pytest.approx(decay)
    assert (cfg.model.adaln_std, cfg.model.adaln_gate_std, cfg.model.head_std) == (0.5, gates, 0.02)
    assert (model.depth, model.width, model.heads) == (depth, 64 * depth, depth)
    assert model.blocks[-1].drop_path.rate == pytest.approx(0.1 * depth / 24)  # type: ignore[union-attr]
    assert model.shared_adaln == model.checkpoint_blocks == large
    assert model.schedule == (VAR_512 if large else VAR_256) and cfg.data.resolution == (512 if large else 256)
    assert optim.schedule_name == ("linear, knee 0.8" if large else "linear, hold 0.05")
    stages = stages_of(build_progressive(cfg), optim, steps=steps, num_scales=model.schedule.num_scales)
    assert [stage.scales for stage in stages] == ([5, 6, 7, 8, 9, 10] if large else [10])
    assert hydra.runtime.choices.data == "imagenet" and cfg.cache.crops > 1 and not cfg.data.flip
    assert divided(cfg).passes > 1


def test_in_the_clean_recipe_only_size_changes() -> None:
    """Of the keys that decide a result, the sweep of depths changes the depth; the rate follows as 1 / width."""
    configs = {depth: compose("train", ["sweeps=depth", f"model.depth={depth}"])[0] for depth in (6, 30)}
    kept = [scientific(cfg) for cfg in configs.values()]
    assert [node["model"].pop("depth") for node in kept] == [6, 30]
    assert kept[0] == kept[1]
    assert kept[0]["model"]["drop_path"] is not None  # null would follow depth
    peaks = {d: build_optim(cfg).lr_peak(width=64 * d, batch=cfg.train.batch) for d, cfg in configs.items()}
    assert peaks[6] / peaks[30] == pytest.approx(30 / 6)
    clean, _ = compose("train", ["experiment=var_clean"])
    assert build_optim(clean).lr_peak(width=1024, batch=768) == 3e-4  # the published rate of d16
    assert scientific(clean)["optim"] == kept[0]["optim"] and scientific(clean)["train"] == kept[0]["train"]


def test_an_option_that_is_off_leaves_the_id_of_a_run_as_it_was() -> None:
    off = scientific(compose("train", [])[0])
    assert "progressive" not in off["train"] and "ema_decay" not in off["stage1"]
    assert not {"cache_crops", "cache_precision"} & off.keys()
    changed = ["train.progressive={first: 1, until: 0.5, ramp: 0.1}", "stage1.ema_decay=0.9", "cache.crops=2"]
    on = scientific(compose("train", [*changed, "cache.precision=bf16"])[0])
    assert on["train"]["progressive"] == {"first": 1, "until": 0.5, "ramp": 0.1}
    assert on["stage1"]["ema_decay"] == 0.9
    assert on["cache_crops"] == 2 and on["cache_precision"] == "bf16"


def test_a_base_and_a_budget_that_are_off_leave_the_id_as_it_was() -> None:
    off = scientific(compose("train", [])[0])
    assert not {"base_width", "base_depth"} & off["model"].keys() and "budget_flops" not in off["train"]
    assert not {"warmup_length", "cooldown"} & off["optim"].keys()
    on = scientific(compose("train", ["model.base_width=16", "model.base_depth=2", "optim.lr_rule=complete_p"])[0])
    assert (on["model"]["base_width"], on["model"]["base_depth"], on["optim"]["lr_rule"]) == (16, 2, "complete_p")


@pytest.mark.parametrize(
    ("trunk", "branches"),
    [("trunk", "cooldown"), ("trunk_cifar10", "cooldown_cifar10"), ("depth_trunk", "depth_cooldown")],
)
def test_branches_start_from_what_their_trunk_keeps(trunk: str, branches: str) -> None:
    """Every horizon begins to cool at a step that the trunk keeps, in the folder that the trunk's sweep gives it."""
    _, node = compose("train", [f"sweeps={trunk}"])
    jobs = swept_overrides(node)
    long, _ = compose("train", [f"sweeps={trunk}", *jobs[-1]])
    folder = run_name(jobs[-1])
    _, node = compose("train", [f"sweeps={branches}"])
    cooled = swept_overrides(node)
    horizons = [int(steps) for steps in str(node.sweeper.params["train.steps"]).split(",")]
    assert len(cooled) == len(jobs) * len(horizons)
    optim, kept = build_optim(long), set(long.train.keep_steps)
    branch, _ = compose("train", [f"sweeps={branches}", *cooled[-1]])
    assert {build_optim(branch).cooldown_start(steps) for steps in horizons} == kept
    assert long.train.steps == max(kept) and long.train.steps * 5 == max(horizons) * 4
    assert branch.train.branch.trunk.rpartition("/")[2] == folder
    assert branch.paths.cache == long.paths.cache and branch.paths.tokenizer == long.paths.tokenizer
    assert (Path(branch.paths.runs) / branch.train.branch.trunk).resolve().parent == Path(long.paths.runs).resolve()
    check_settings(long, branch, min(kept), Path("trunk"))
    assert optim.cooldown is None and optim.warmup_steps(horizons[0]) < min(kept)
    anew = sum(horizons) - sum(build_optim(branch).cooldown_start(steps) for steps in horizons)
    assert (long.train.steps + anew) / sum(horizons) < 0.475  # of the steps of separate runs
    _, flops, spent_anew = planned(branch, meta_model(branch))
    assert spent_anew == pytest.approx(0.2 * flops)


def test_isoflop_steps_spend_the_budget() -> None:
    """Exact FLOPs of the model itself, by the run's own rule; at most half a step of 16 images is off."""
    for model, width in (("model.width=12", 12), ("model.width=64", 64)):
        cfg, _ = compose("train", ["sweeps=isoflop", model, "train.budget_flops=4e11"])
        var = meta_model(cfg)
        step = cfg.train.batch * train_flops_per_image(var, cfg.train.flops_rule)
        assert var.width == width and abs(cfg.train.steps * step - 4e11) <= step / 2
        assert intended_flops(cfg.train.budget_flops, cfg.train.steps * step) == 4e11
    depth, _ = compose("train", ["sweeps=depth", "train.steps=${isoflop_steps:1e18}", "model.depth=8"])
    step = depth.train.batch * train_flops_per_image(meta_model(depth), "dense")
    assert abs(depth.train.steps * step - 1e18) <= step / 2
    with pytest.raises(ConfigError, match=r"train\.budget_flops is 4e\+11, but train\.steps cost"):
        intended_flops(4e11, 5e11)
    with pytest.raises(ConfigError, match=r"train\.budget_flops is None"):
        compose("train", ["sweeps=isoflop", "train.budget_flops=null"])


def test_the_folder_of_resources_is_absolute() -> None:
    assert Path(resources_root()).is_absolute()
