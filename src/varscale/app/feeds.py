"""Where a run's tokens come from, by configuration: the study's cache, checked to be its own, or images."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from varscale.app.build import build_source
from varscale.app.config import ConfigError
from varscale.app.identity import SOURCE_FILE, data_identity
from varscale.cache.manifest import CacheError
from varscale.cache.reader import TokenCache
from varscale.records import read_json
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.training.feed import CacheFeed, Feed, ImageFeed


def open_feed(cfg: DictConfig, tokenizer: VQAutoencoder) -> Feed:
    """The run's tokens, from the study's cache or from images."""
    on_gpu = cfg.trainer.accelerator == "gpu"
    if cfg.train.source == "cache":
        check_data(cfg)
        cache = TokenCache.open(Path(cfg.paths.cache), tokenizer=tokenizer)
        check_form(cfg, cache)
        return CacheFeed(cache, tokenizer, on_gpu)
    if cfg.train.source == "images":
        return ImageFeed(build_source(cfg), tokenizer, cfg.trainer.workers, on_gpu)
    raise ConfigError(f"train.source is {cfg.train.source!r}; it must be cache or images")


def check_data(cfg: DictConfig) -> None:
    """Raise ``CacheError`` when the cache was written from other data than this configuration names."""
    path = Path(cfg.paths.cache) / SOURCE_FILE
    if path.exists() and (found := read_json(path)["data_id"]) != data_identity(cfg):
        raise CacheError(
            f"the cache in {path.parent} was written from other data settings (data id {found}, wanted "
            f"{data_identity(cfg)}); launch varscale cache with the same overrides, or choose another study=NAME"
        )


def check_form(cfg: DictConfig, cache: TokenCache) -> None:
    """Raise ``CacheError`` when the cache has other crops or another precision than the run's id is going to say."""
    for key in ("crops", "precision"):
        if (found := getattr(cache.manifest, key)) != cfg.cache[key]:
            raise CacheError(
                f"the cache in {cache.folder} has {key} {found}, but cache.{key} is {cfg.cache[key]}; set "
                f"cache.{key}={found}, or write another cache with another study=NAME"
            )
