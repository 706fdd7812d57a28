"""The composed configuration, checked: unknown keys, wrong types and open values are errors, not silent.

Hydra accepts ``+typo=x`` and any key in a sweep's file. So the composed config is compared, key by key, with the
reference: the same choice of group files without overrides and without the overlays (sweeps, experiment, debug), merged
into the typed schema of the verb, a class of `varscale.app.schema`. An empty mapping in the reference is open: it takes
any key.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from varscale.app.cli import VERBS

OVERLAYS = ("experiment", "debug", "sweeps", "launcher")  # groups whose files set values of other groups


class ConfigError(ValueError):
    """A configuration that cannot be used: names the key, the value and the remedy."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` Did you mean X?`` for the known word nearest to ``word``, or nothing.

    Dotted keys also match by their last part, so that ``model.wdith`` and ``wdith`` both find ``model.width``.
    """
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if not near:
        last = {name.rpartition(".")[2]: name for name in reversed(names)}
        near = [last[name] for name in difflib.get_close_matches(word.rpartition(".")[2], last, n=1, cutoff=0.7)]
    return f" Did you mean {near[0]}?" if near else ""


def reference(hydra: DictConfig) -> DictConfig:
    """The config of the same group files without overrides and overlays, in the schema of the verb.

    Needs the Hydra instance that composed it.
    """
    schema = importlib.import_module("varscale.app.schema")  # by its full name: tests put a small one in its place
    choices: Mapping[str, str | None] = hydra.runtime.choices
    overrides = [
        f"{group}={choice}"
        for group, choice in choices.items()
        if choice is not None and group not in OVERLAYS and not group.startswith("hydra/")
    ]
    loader = GlobalHydra.instance().config_loader()
    composed = loader.load_configuration(hydra.job.config_name, overrides, run_mode=RunMode.RUN)
    OmegaConf.set_struct(composed, False)
    del composed["hydra"]
    return _typed(getattr(schema, VERBS[hydra.job.config_name].schema), composed)


def checked(cfg: DictConfig, known: DictConfig) -> DictConfig:
    """The config merged into the schema, resolved and read-only.

    Args:
        cfg: the composed config without its ``hydra`` node.
        known: what `reference` returns for it.

    Raises:
        ConfigError: lists every unknown key, wrong type and value that is not given.
    """
    plain_known = OmegaConf.to_container(known, resolve=False)
    problems = list(_unknown(OmegaConf.to_container(cfg, resolve=False), plain_known, ""))
    if problems:
        raise ConfigError("\n".join(problems))
    schema = OmegaConf.get_type(known)
    assert schema is not None
    merged = _typed(schema, cfg)
    try:
        missing = sorted(OmegaConf.missing_keys(cfg) | OmegaConf.missing_keys(merged))
        OmegaConf.resolve(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(compact(error)) from error
    if missing:
        raise ConfigError("\n".join(f"{key} has no value; give it as {key}=..." for key in missing))
    problems = list(_mistyped(OmegaConf.to_container(merged), known, ""))
    if problems:
        raise ConfigError("\n".join(problems))
    OmegaConf.set_readonly(merged, True)
    return merged


def keys(node: Any, prefix: str = "") -> Iterator[str]:
    """All dotted keys below a plain mapping."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from keys(value, f"{prefix}{key}.")


def _typed(schema: type, cfg: DictConfig) -> DictConfig:
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), cfg)
    except OmegaConfBaseException as error:
        raise ConfigError(compact(error)) from error
    assert isinstance(merged, DictConfig)
    return merged


def compact(error: OmegaConfBaseException) -> str:
    """OmegaConf's message in one line, with the key."""
    message = (error.msg or str(error)).strip().splitlines()[0]
    return f"{error.full_key}: {message}" if error.full_key and error.full_key not in message else message


def _unknown(node: Any, known: Any, prefix: str) -> Iterator[str]:
    if not isinstance(node, Mapping) or not isinstance(known, Mapping) or not known:
        return
    for key, value in node.items():
        if key not in known:
            siblings = [f"{prefix}{name}" for name in known]
            hint = did_you_mean(f"{prefix}{key}", siblings) or f" There are: {', '.join(siblings)}."
            yield f"the configuration has no key {prefix}{key}.{hint}"
        else:
            yield from _unknown(value, known[key], f"{prefix}{key}.")


def _mistyped(node: Any, known: DictConfig, prefix: str) -> Iterator[str]:
    """Values whose kind differs from the reference's: the groups are mappings that the schema cannot type."""
    for key, value in node.items():
        if not isinstance(key, str):
            continue
        try:
            wanted = OmegaConf.select(known, f"{prefix}{key}")
        except OmegaConfBaseException:  # an interpolation that only a run can resolve
            continue
        wanted_kind, kind = _kind(wanted), _kind(value)
        if isinstance(value, Mapping) and wanted_kind == "a mapping":
            yield from _mistyped(value, known, f"{prefix}{key}.")
        elif None not in (wanted_kind, kind) and wanted_kind != kind and (wanted_kind, kind) != ("text", "a number"):
            yield f"{prefix}{key} is {value!r}, {kind}; it must be {wanted_kind}, like {_example(wanted)}"


def _kind(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "a list"
    return "text"


def _example(value: Any) -> str:
    return str(OmegaConf.to_container(value)) if OmegaConf.is_config(value) else str(value)
