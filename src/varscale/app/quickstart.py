"""varscale quickstart: the verbs in a row, from pixels to a scaling law, with the same overrides for each.

The held-out size is trained last, after its prediction has been registered. Every verb continues where it was
interrupted, so the whole does.
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from varscale.app.config import ConfigError
from varscale.app.processes import GRACE_S, describe_exit, spawn, stop


class VerbError(ConfigError):
    """A verb of the row ended with an error, which it has explained."""


def main(cfg: DictConfig) -> None:
    """Run every verb as a command of its own, printing it, so that a user can type it alone."""
    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    if not any(override.startswith("sweeps=") for override in overrides):
        overrides.append(f"sweeps={hydra.runtime.choices.sweeps}")
    started = time.monotonic()
    for verb in verbs(cfg.analysis.holdout):
        run(verb, overrides)
    folder = Path(cfg.paths.study).absolute()
    minutes = (time.monotonic() - started) / 60
    print(f"\nquickstart took {minutes:.1f} minutes; open {folder / 'report.html'}")


def verbs(holdout: str | None) -> list[list[str]]:
    """The commands in order; with a held-out size its prediction is registered before it trains."""
    ladder = [["train", "-m"], ["collect"]]
    if holdout is not None:
        ladder = [["train", "-m", f"hydra.launcher.leave_out=['{holdout}']"], ["collect"], ["fit"], *ladder]
    return [["plan"], ["tokenizer"], ["cache"], *ladder, ["sample"], ["fit"], ["report"]]


def run(verb: list[str], overrides: list[str]) -> None:
    """One verb in a process of its own. Raises ``VerbError`` when it fails, ``KeyboardInterrupt`` when interrupted."""
    command = [*verb, *overrides]
    print(f"\n$ varscale {shlex.join(command)}", flush=True)
    process = spawn([sys.executable, "-m", "varscale", *command])
    try:
        code = process.wait()
    finally:
        stop([process], grace_s=GRACE_S)
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise VerbError(f"varscale {verb[0]} ended with {describe_exit(code)}; what it says is above")
