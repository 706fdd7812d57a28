"""A proposed sweep as a file: ``sweeps/NAME.yaml``, which plan, train -m and status take like any other.

It records the groups and values that the proposal was made for, and lists its runs (see `varscale.app.sweeper`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from omegaconf import DictConfig, OmegaConf

from varscale.app.config import ConfigError
from varscale.app.resources import resources_root
from varscale.records import atomic_write

# Where things lie and what a verb is asked is not part of a sweep.
_GROUPS_LEFT_OUT = ("sweeps", "paths", "logger", "launcher")
_KEYS_LEFT_OUT = ("design", "paths", "logger", "launcher", "plan", "status", "hydra")


def sweep_path(cfg: DictConfig) -> Path:
    """Where the sweep will be written. Raises ``ConfigError`` for a name that is taken in the package's own folder."""
    name = cfg.design.name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ConfigError(f"design.name={name!r} is no name of a sweep; use letters, digits, _, . and -")
    path = _folder(cfg) / "sweeps" / f"{name}.yaml"
    shipped = resources_root() / "sweeps" / f"{name}.yaml"
    if shipped.exists() and shipped.resolve() != path.resolve():
        raise ConfigError(f"sweeps={name} is a sweep of varscale, which would hide yours; choose another design.name")
    return path


def option(path: Path) -> str:
    """What a command line needs to find the sweep: nothing, or ``-cd FOLDER ``."""
    return "" if path.parent.resolve() == (resources_root() / "sweeps").resolve() else f"-cd {path.parents[1]} "


def write_sweep(path: Path, runs: Sequence[Sequence[str]], about: str) -> None:
    """Write the sweep of ``runs``, with ``about`` as its header.

    A file with the same content is left as it is. Raises ``ConfigError`` if another one is there.
    """
    text = sweep_text(path, runs, about)
    if path.exists():
        if path.read_text() == text:
            return
        raise ConfigError(f"{path} exists and is another sweep; choose another design.name, or delete it")
    with atomic_write(path) as file:
        file.write(text.encode())


def sweep_text(path: Path, runs: Sequence[Sequence[str]], about: str) -> str:
    """The file's content."""
    hydra = HydraConfig.get()
    base = hydra.runtime.choices.get("sweeps")
    name, cd = path.stem, option(path)
    lines = ["# @package _global_", f"# What it shows: {about.splitlines()[0]}", "# Written by varscale design."]
    lines += [f"# {line}".rstrip() for line in about.splitlines()[1:]]
    lines += [f"# Command: varscale plan {cd}sweeps={name}; varscale train {cd}-m sweeps={name}", "defaults:"]
    lines += [f"  - {base}"] if base else []
    lines += ["  - _self_"]
    for group, choice in hydra.runtime.choices.items():
        if choice is not None and not group.startswith("hydra/") and group not in _GROUPS_LEFT_OUT:
            lines.append(f"  - override /{group}: {choice}")
    lines += ["  - override /hydra/sweeper: runs", ""]
    values = OmegaConf.create()
    # The held-out size of the sweep it goes on from need not be among these runs.
    for key, value in [("design", name), ("analysis.holdout", None), *_given(hydra.overrides.task)]:
        OmegaConf.update(values, key, value, force_add=True)
    lines.append(OmegaConf.to_yaml(values))
    lines += ["hydra:", "  sweeper:", *(["    params: null"] if base else []), "    runs:"]
    lines += [f"      - {json.dumps(list(run))}" for run in runs]
    return "\n".join(lines) + "\n"


def _given(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """The values on the command line that belong to the sweep, by key."""
    groups = set(HydraConfig.get().runtime.choices)
    out = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if key in groups or key.split(".")[0] in _KEYS_LEFT_OUT:
            continue
        if override.type == OverrideType.DEL:
            raise ConfigError(
                f"{override.input_line} takes a key away, which a sweep file cannot; give a value instead"
            )
        out.append((key, override.value()))
    return out


def _folder(cfg: DictConfig) -> Path:
    if cfg.design.folder is not None:
        return Path(cfg.design.folder)
    sources = HydraConfig.get().runtime.config_sources
    return Path(next((source.path for source in sources if source.provider == "command-line"), "."))
