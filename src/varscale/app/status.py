"""varscale status: how the runs of a study stand, from the files in their folders. Needs no torch; starts in a second.

With ``sweeps=NAME`` the runs that the sweep plans, those that have not begun among them; else all folders of runs.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from varscale.app.config import ConfigError
from varscale.app.jobs import LAUNCH_LOCK, differing, duration, run_name
from varscale.app.lock import holder
from varscale.app.run_state import STATES, RunState, queued_jobs, read_state
from varscale.app.sweeps import is_sweep, swept_overrides
from varscale.records import RUN_FILE

_CLEAR = "\033[H\033[2J"  # the terminal


def main(cfg: DictConfig) -> None:
    """Print the table, or JSON; every ``status.watch`` seconds anew while a run may still change, or until Ctrl-C."""
    every = cfg.status.watch
    if every is not None and every <= 0:
        raise ConfigError(f"status.watch is {every}; it must be above 0 seconds, or null")
    folders = shown_folders(Path(cfg.paths.runs))
    while True:
        queued = queued_jobs(folders)
        if queued is None:
            print("squeue does not answer; queued runs are shown as if they were not", file=sys.stderr)
        states = [read_state(folder, queued=folder in (queued or {})) for folder in folders]
        text = as_json(states) if cfg.status.json else table(states, Path(cfg.paths.runs))
        print(text if every is None or cfg.status.json else f"{_CLEAR}{text}", flush=True)
        if every is None or not _may_change(states, Path(cfg.paths.runs)):
            return
        time.sleep(every)


def _may_change(states: Sequence[RunState], runs: Path) -> bool:
    """Whether a run is under way or to come, or a launch that may start one again."""
    launching = any(holder(path) for path in runs.glob(LAUNCH_LOCK.format("*")))
    return launching or any(state.state in ("waiting", "queued", "running") for state in states)


def shown_folders(runs: Path) -> list[Path]:
    """The folders of the sweep that this verb was called with, planned or begun; without a sweep those there are."""
    hydra = HydraConfig.get()
    if not is_sweep(hydra):
        found = sorted(path.parent for path in runs.glob(f"*/{RUN_FILE}"))
        if not found:
            raise ConfigError(f"there is no run in {runs}; name a sweep (sweeps=NAME), or train one (varscale train)")
        return found
    parsed = OverridesParser.create().parse_overrides(list(hydra.overrides.task))
    (given,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return [runs / run_name([*job, *own]) for own in swept_overrides(hydra) for job in given]


def table(states: Sequence[RunState], runs: Path) -> str:
    """One line a run, then the totals."""
    names = differing([state.name for state in states])
    width = max(3, *(len(name) for name in names))
    lines = [
        f"{'run':<{width}}  {'state':<11}  {'step':>17}  {'loss':>7}  {'images/s':>8}  {'left':>8}  crashes  remark"
    ]
    for name, state in zip(names, states, strict=True):
        step = "-" if state.step is None else f"{state.step}/{state.steps}"
        loss = "-" if state.loss is None else f"{state.loss:.4f}"
        speed = "-" if state.images_per_s is None else f"{state.images_per_s:.{1 if state.images_per_s < 100 else 0}f}"
        told = state.state in ("failed", "interrupted") and state.outcome is not None
        remark = state.by or (state.outcome if told else "") or ""
        lines.append(
            f"{name:<{width}}  {state.state:<11}  {step:>17}  {loss:>7}  {speed:>8}  "
            f"{duration(state.left_s):>8}  {state.failures:>7}  {remark}".rstrip()
        )
    counts = Counter(state.state for state in states)
    told_counts = ", ".join(f"{counts[name]} {name}" for name in STATES if counts[name])
    running = [state for state in states if state.state == "running"]
    total = math.fsum(state.images_per_s or 0.0 for state in running)
    now = f"; {total:.0f} images/s" if running else ""
    longest = max((state.left_s for state in running if state.left_s is not None), default=None)
    left = "" if longest is None else f"; the longest of those running has {duration(longest)} left"
    return "\n".join([*lines, f"{len(states)} runs in {runs}: {told_counts}{now}{left}"])


def as_json(states: Sequence[RunState]) -> str:
    """One object in one line: the runs, and how many are in each state."""
    counts = Counter(state.state for state in states)
    return json.dumps({"runs": [asdict(state) for state in states], "counts": {name: counts[name] for name in STATES}})
