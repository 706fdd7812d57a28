"""Every verb, every choice of every group and every sweep composes and fits the schema."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from varscale.app.cli import VERBS
from varscale.app.config import OVERLAYS, checked, reference
from varscale.app.entry import SweepsSearchPath
from varscale.app.launcher import register, run_name
from varscale.app.resources import group_choices, resources_root

CHOICES = [(group, name) for group, names in group_choices(resources_root()).items() for name in names]
SWEEPS = [name for group, name in CHOICES if group == "sweeps"]


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    Plugins.instance().register(SweepsSearchPath)
    register()
    before = HydraConfig.instance().cfg
    with initialize_config_dir(config_dir=str(resources_root() / "conf"), version_base="1.3"):
        yield
    HydraConfig.instance().cfg = before


def compose(verb: str, overrides: list[str]) -> tuple[DictConfig, DictConfig]:
    """The checked config of a run, and Hydra's node."""
    composed = GlobalHydra.instance().config_loader().load_configuration(verb, overrides, run_mode=RunMode.RUN)
    OmegaConf.set_struct(composed, False)
    composed.hydra.runtime.output_dir = "outputs"
    HydraConfig.instance().set_config(composed)
    hydra = composed.pop("hydra")
    return checked(composed, reference(hydra)), hydra


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_composes(verb: str) -> None:
    cfg, _ = compose(verb, [])
    assert OmegaConf.is_readonly(cfg) and not OmegaConf.missing_keys(cfg)


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_composes(group: str, name: str) -> None:
    cfg, hydra = compose("train", [f"{group}={name}"])
    assert hydra.runtime.choices[group] == name
    if group not in OVERLAYS:
        assert cfg[group], f"{group}/{name}.yaml is empty"


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_is_distinct_runs_with_the_steps_it_plans(name: str) -> None:
    _, hydra = compose("train", [f"sweeps={name}"])
    params: dict[str, Any] = OmegaConf.to_container(hydra.sweeper)["params"]  # type: ignore[index,call-overload,assignment]
    assert params, f"sweeps/{name}.yaml sets no hydra.sweeper.params"
    jobs = expand(params)
    assert len(jobs) > 1
    names = {run_name(job, hydra.launcher.unnamed) for job in jobs}
    assert len(names) == len(jobs)
    file = OmegaConf.load(resources_root() / "sweeps" / f"{name}.yaml")
    for job in (jobs[0], jobs[-1]):  # composing takes a quarter of a second
        cfg, _ = compose("train", [f"sweeps={name}", *job])
        for override in job:
            key, value = override.split("=", 1)
            assert str(OmegaConf.select(cfg, key)) == str(OmegaConf.create({"x": value}).x)
        planned = OmegaConf.select(file, "train.steps")
        if isinstance(planned, int) and not any(override.startswith("train.steps=") for override in job):
            assert cfg.train.steps == planned


def expand(params: dict[str, Any]) -> list[list[str]]:
    """The overrides of every run, as Hydra's basic sweeper expands them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    overrides = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    (batch,) = BasicSweeper.split_arguments(overrides, None)
    return batch


def test_the_folder_of_resources_is_absolute() -> None:
    assert Path(resources_root()).is_absolute()
