"""What makes a run that run: the scientific keys of its configuration, and whether it is already finished.

Torch-free, because the launcher asks it for every job of a sweep.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from varscale.records import RUN_FILE, RecordError, read_json, read_run, run_id

SECTIONS = ("data", "tokenizer", "stage1", "model", "optim", "train", "seed")
# Where things lie, and how often they are saved, does not change a result.
INCIDENTAL = {
    "data": ("path", "hub_id", "hub_revision", "cache_dir", "name"),
    "stage1": ("checkpoint_every", "time_limit", "validate_every"),
    "train": ("checkpoint_every", "keep", "keep_steps", "time_limit", "val_batch"),
}
# Options that came later do not change the id of a run that leaves them off.
OFF: dict[str, dict[str, Any]] = {
    "stage1": {"ema_decay": None},
    "cache": {"crops": 1, "precision": "fp32"},
    "train": {"progressive": None, "average": None, "branch": None, "budget_flops": None},
    "model": {"base_width": None, "base_depth": None},
    "optim": {"warmup_length": None, "cooldown": None},
}
CONFIG_FILE = "config.yaml"
TOKENIZER_FILE = "tokenizer.json"
SOURCE_FILE = "source.json"  # beside the cache's manifest: the id of the data settings it was written from


def scientific(cfg: DictConfig) -> dict[str, Any]:
    """The keys that decide the result of a run, resolved."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    kept: dict[str, Any] = {}
    for section in SECTIONS:
        value = plain[section]
        if isinstance(value, Mapping):
            dropped = set(INCIDENTAL.get(section, ()))
            dropped |= {key for key, off in OFF.get(section, {}).items() if value.get(key) == off}
            value = {key: v for key, v in value.items() if key not in dropped}
        kept[section] = value
    # Cached images limit what a run can see; arithmetic is part of the result, the device is not.
    kept["train_images"] = plain["cache"]["train_images"] if plain["train"]["source"] == "cache" else None
    if plain["train"]["source"] == "cache":
        cache = plain["cache"]
        kept |= {f"cache_{key}": cache[key] for key, off in OFF["cache"].items() if cache[key] != off}
    kept["val_images"] = plain["cache"]["val_images"]
    kept["precision"] = plain["trainer"]["precision"]
    return kept


def stage1_identity(cfg: DictConfig) -> str:
    """The id of the tokenizer that this configuration trains."""
    kept = scientific(cfg)
    return run_id({key: kept[key] for key in ("data", "tokenizer", "stage1", "precision")})


def data_identity(cfg: DictConfig) -> str:
    """The id of the data settings, wherever the files lie."""
    return run_id(scientific(cfg)["data"])


def identify(cfg: DictConfig) -> str:
    """The run's id."""
    return run_id(scientific(cfg))


def finished(cfg: DictConfig, folder: Path) -> bool:
    """Whether ``folder`` holds the finished run of this configuration, trained on the study's present tokenizer."""
    if not (folder / RUN_FILE).exists():
        return False
    try:
        run = read_run(folder)
        tokenizer = read_json(Path(cfg.paths.tokenizer) / TOKENIZER_FILE)
    except RecordError:
        return False  # the run itself will say what is wrong
    same = run.run_id == identify(cfg) and run.tokenizer_id == tokenizer.get("fingerprint")
    return run.status == "finished" and same
