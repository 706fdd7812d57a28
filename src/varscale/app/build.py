"""From configuration to objects: the one place where ``_target_`` nodes become data, tokenizers, models, optimisers."""

from __future__ import annotations

import inspect
import subprocess
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, OmegaConf

from varscale.app.config import ConfigError, did_you_mean
from varscale.codes import CodeSpec
from varscale.data.source import ImageSource
from varscale.models.var import VAR
from varscale.schedule import ScaleSchedule
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.training.optim import Optimisation
from varscale.training.progressive import Progressive


def build(section: str, node: DictConfig, **extra: Any) -> Any:
    """Instantiate a group node. Raises ``ConfigError`` for a key that its target does not take."""
    target = get_method(node["_target_"])
    accepted = set(inspect.signature(target).parameters)
    unknown = [str(key) for key in node if not str(key).startswith("_") and key not in accepted]
    if unknown:
        hints = " ".join(f"{section}.{key} is unknown.{did_you_mean(key, sorted(accepted))}" for key in unknown)
        raise ConfigError(f"{node['_target_']} does not take every key it was given: {hints}")
    settings = OmegaConf.to_container(node, resolve=True)
    assert isinstance(settings, dict)
    given = {key: value for key, value in settings.items() if not str(key).startswith("_")}
    # Nested nodes may have targets of their own; objects in ``extra`` go past Hydra, which would convert them.
    return target(**instantiate(given, _convert_="all"), **extra)


def build_source(cfg: DictConfig) -> ImageSource:
    """The image source of ``data``."""
    source: ImageSource = build("data", cfg.data)
    return source


def build_tokenizer(cfg: DictConfig) -> VQAutoencoder:
    """A new tokenizer of ``tokenizer``, at the resolution of the data unless it states one."""
    tokenizer: VQAutoencoder = build("tokenizer", cfg.tokenizer)
    return tokenizer


def build_model(
    cfg: DictConfig,
    *,
    schedule: ScaleSchedule,
    code: CodeSpec,
    latent_channels: int,
    num_classes: int,
    input_std: float = 1.0,
) -> VAR:
    """The generative model of ``model`` for the tokens of a tokenizer."""
    model: VAR = build(
        "model",
        cfg.model,
        schedule=schedule,
        code=code,
        latent_channels=latent_channels,
        num_classes=num_classes,
        input_std=input_std,
    )
    return model


def build_optim(cfg: DictConfig) -> Optimisation:
    """The optimisation of ``optim``."""
    optim: Optimisation = build("optim", cfg.optim)
    return optim


def build_progressive(cfg: DictConfig) -> Progressive | None:
    """The progressive training of ``train``, if any."""
    node = cfg.train.progressive
    return None if node is None else Progressive(**{str(key): value for key, value in node.items()})


def build_average(cfg: DictConfig) -> float | None:
    """The exponent of the weight average of ``train``, if any. Raises ``ConfigError`` for an unknown kind."""
    node = cfg.train.average
    if node is None:
        return None
    if node.kind != "power":
        raise ConfigError(f"train.average.kind is {node.kind!r}; the only average is power")
    return float(node.gamma)


def device_of(cfg: DictConfig) -> torch.device:
    """The device that single-process verbs run on. Raises ``ConfigError`` when a GPU is asked for and there is none."""
    if cfg.trainer.accelerator == "gpu":
        if not torch.cuda.is_available():
            raise ConfigError("trainer=gpu, but torch sees no CUDA device; use trainer=cpu or install a CUDA build")
        return torch.device("cuda")
    return torch.device("cpu")


def use_threads(cfg: DictConfig) -> None:
    """Give torch the threads of the trainer; by default those of the environment, else all cores."""
    if cfg.trainer.threads is None:
        return
    if cfg.trainer.threads < 1:
        raise ConfigError(f"trainer.threads is {cfg.trainer.threads}; it must be at least 1")
    torch.set_num_threads(cfg.trainer.threads)


def arithmetic(cfg: DictConfig) -> torch.dtype:
    """The dtype of training's matrix products."""
    return {"bf16": torch.bfloat16, "16-m": torch.float16}.get(cfg.trainer.precision[:4], torch.float32)


def device_name(device: torch.device) -> str:
    """The device as the run table names it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} thread(s)"


def git_state() -> tuple[str | None, bool | None]:
    """Commit and dirtiness of the checkout the package is imported from; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        ask = ["git", "-C", str(here), "rev-parse", "HEAD"]
        sha = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
        ask = ["git", "-C", str(here), "status", "--porcelain", "--untracked-files=no"]
        dirty = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None, None
    return sha, bool(dirty)
