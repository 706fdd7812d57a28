"""The runs that a sweep plans, composed without starting any: for ``plan``, and to find the held-out size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from tqdm import tqdm

from varscale.app.config import checked, reference
from varscale.app.sweeper import combined, override_key


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep: its overrides, without those given for all runs, and its checked configuration."""

    overrides: tuple[str, ...]
    cfg: DictConfig


def planned_runs() -> list[PlannedRun]:
    """The runs of the sweep that the present verb was called with, in order; one run when there is no sweep."""
    return composed_runs(swept_overrides(HydraConfig.get()))


def swept_overrides(hydra: Any) -> list[list[str]]:
    """What the sweep says of each of its runs, without the keys that the command line gives; one run without a sweep.

    ``hydra`` is Hydra's node.
    """
    given = {override_key(override) for override in hydra.overrides.task}
    sweeper: Any = OmegaConf.to_container(hydra.sweeper)
    swept = [f"{k}={v}" for k, v in (sweeper.get("params") or {}).items() if override_key(k) not in given]
    parsed = OverridesParser.create().parse_overrides(swept)
    jobs = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0] if swept else [[]]
    listed = [[o for o in run if override_key(o) not in given] for run in sweeper.get("runs") or []]
    return combined(listed, jobs)


def is_sweep(hydra: Any) -> bool:
    """Whether a sweep plans runs."""
    sweeper: Any = OmegaConf.to_container(hydra.sweeper)
    return bool(sweeper.get("params") or sweeper.get("runs"))


def open_keys(hydra: Any) -> list[str]:
    """The keys that the command line would have to give as well, to be one run of the sweep; empty without a sweep."""
    given = {override_key(override) for override in hydra.overrides.task}
    sweeper: Any = OmegaConf.to_container(hydra.sweeper)
    open_params = [key for key in map(override_key, sweeper.get("params") or {}) if key not in given]
    of_runs = [[k for k in map(override_key, run) if k not in given] for run in sweeper.get("runs") or []]
    return open_params + min(of_runs, key=len, default=[])


def composed_runs(jobs: Sequence[Sequence[str]]) -> list[PlannedRun]:
    """Runs of the present verb's command line and each of ``jobs``, checked. Raises ``ConfigError``."""
    hydra = HydraConfig.get()
    loader = GlobalHydra.instance().config_loader()
    references: dict[str, DictConfig] = {}  # composing one takes as long as composing a run
    runs = []
    for job in tqdm(jobs, desc="composing the runs", leave=False, disable=None, delay=2):
        overrides = [*hydra.overrides.task, *job]
        composed = loader.load_configuration(hydra.job.config_name, overrides, run_mode=RunMode.RUN)
        node = composed.hydra
        with open_dict(composed):
            del composed["hydra"]
        choices = str(sorted(node.runtime.choices.items()))
        if choices not in references:
            references[choices] = reference(node)
        runs.append(PlannedRun(tuple(job), checked(composed, references[choices])))
    return runs
