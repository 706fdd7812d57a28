"""Hydra sweeper ``runs``: a sweep that lists its runs one by one, where not every combination of values is wanted.

    defaults:
      - override /hydra/sweeper: runs
    hydra:
      sweeper:
        runs:
          - [model.width=8, train.steps=4800, seed=0]
          - [model.width=64, train.steps=600, seed=0]

``params`` stand beside it as in Hydra's own sweeper: every run is combined with all of them. An override on the command
line holds for every run, in place of what the list says about its key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from varscale.app.launcher import PLUGIN_MODULE


@dataclass
class RunsSweeperConf:
    """The settings of the sweeper, under ``hydra.sweeper``."""

    _target_: str = f"{PLUGIN_MODULE}.RunsSweeper"
    params: dict[str, str] | None = None
    runs: list[list[str]] = field(default_factory=list)


class RunsSweeper(Sweeper):
    """Starts the listed runs. Settings: `RunsSweeperConf`."""

    __module__ = PLUGIN_MODULE

    def __init__(self, runs: Sequence[Sequence[str]], params: dict[str, str] | None = None) -> None:
        self.runs, self.params = [list(run) for run in runs], dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Launch every run, with the command line's arguments."""
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        given = parser.parse_overrides([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        (jobs,) = BasicSweeper.split_arguments(given, None)
        batch = combined(self.runs, jobs)
        self.validate_batch_is_legal(batch)
        returns: Sequence[JobReturn] = self.launcher.launch(batch, initial_job_idx=0)
        return [returns]


def combined(runs: Sequence[Sequence[str]], jobs: Sequence[Sequence[str]]) -> list[list[str]]:
    """Every listed run with every job; where both set a key the job's value holds, and runs that become alike are one.

    Without listed runs, the jobs.
    """
    out: list[list[str]] = []
    for job in jobs:
        keys = {override_key(override) for override in job}
        for run in runs or [[]]:
            merged = [*(override for override in run if override_key(override) not in keys), *job]
            if merged not in out:
                out.append(merged)
    return out


def override_key(override: str) -> str:
    """The key that an override sets."""
    return override.split("=", 1)[0].lstrip("+~")
