"""The runs that a sweep plans, composed without starting any: for ``plan``, and to find the held-out size."""

from __future__ import annotations

from dataclasses import dataclass

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from varscale.app.config import checked, reference


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep: its overrides, without those given for all runs, and its checked configuration."""

    overrides: tuple[str, ...]
    cfg: DictConfig


def planned_runs() -> list[PlannedRun]:
    """The runs of the sweep that the present verb was called with, in order; one run when there is no sweep."""
    hydra = HydraConfig.get()
    given = list(hydra.overrides.task)
    keys = {override.split("=", 1)[0].lstrip("+~") for override in given}
    params = OmegaConf.to_container(hydra.sweeper).get("params") or {}  # type: ignore[union-attr]
    swept = [f"{key}={value}" for key, value in params.items() if key.lstrip("+") not in keys]
    parsed = OverridesParser.create().parse_overrides(swept)
    jobs = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0] if swept else [[]]
    loader = GlobalHydra.instance().config_loader()
    runs = []
    for job in jobs:
        composed = loader.load_configuration(hydra.job.config_name, [*given, *job], run_mode=RunMode.RUN)
        node = composed.hydra
        with open_dict(composed):
            del composed["hydra"]
        runs.append(PlannedRun(tuple(job), checked(composed, reference(node))))
    return runs
