"""varscale import: released VAR checkpoints, files here or on the Hub, into a model folder."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig
from tqdm import tqdm

from varscale.app.config import ConfigError
from varscale.models.card import describe, describe_tokenizer
from varscale.models.hub import fetch_file
from varscale.models.pretrained import naming, read_released
from varscale.models.storage import CARD_FILE, MODEL_FILE, Pretrained, from_pretrained, refuse_other, save_pretrained
from varscale.schedule import VAR_256, VAR_512, VAR_1024, ScaleSchedule
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.tokenizers.checkpoint_file import read_state_dict
from varscale.tokenizers.pretrained import load_released_tokenizer
from varscale.tokenizers.storage import TOKENIZER_FILE, UNMEASURED, save_tokenizer

BY_RESOLUTION = {"256": VAR_256, "512": VAR_512, "1024": VAR_1024}
CHUNK_BYTES = 2**24
log = logging.getLogger(__name__)


def main(cfg: DictConfig) -> None:
    """Read the checkpoints, print what they are, write the folder."""
    if cfg.out is None:
        raise ConfigError("out has no value; give the folder to write as out=FOLDER")
    if cfg.model is None and cfg.tokenizer is None and cfg.hub is None:
        raise ConfigError(
            "nothing to import; give tokenizer=FILE and model=FILE, such as vae_ch160v4096z32.pth and var_d16.pth"
        )
    if cfg.revision is not None and cfg.hub is None:
        raise ConfigError(f"revision={cfg.revision} without hub=; it is a branch, tag or commit of a Hub repository")
    out = Path(cfg.out)
    schedule = None if cfg.schedule is None else BY_RESOLUTION.get(cfg.schedule) or ScaleSchedule.parse(cfg.schedule)
    model, tokenizer = (locate(cfg, name) for name in (cfg.model, cfg.tokenizer))
    if model is None and tokenizer is None:
        imported = from_pretrained(cfg.hub, revision=cfg.revision)
        source = f"{cfg.hub} on the Hub"
        imported = replace(imported, facts=replace(imported.facts, source=imported.facts.source or source))
    elif model is None:
        assert tokenizer is not None
        write_tokenizer(tokenizer, schedule, out)
        return
    else:
        files = list(dict.fromkeys(path for path in (model, tokenizer) if path is not None))
        imported = read_released(model, tokenizer, schedule=schedule)
        source = ", ".join(f"{path.name} (sha256 {checksum(path)})" for path in files)
        if cfg.hub is not None:
            source += f" of {cfg.hub} on the Hub"
        imported = replace(imported, facts=replace(imported.facts, source=source))
    write_model(imported, out)


def locate(cfg: DictConfig, name: str | None) -> Path | None:
    """The file of that name here, or, with ``hub``, in the Hub repository."""
    if name is None:
        return None
    return Path(name) if cfg.hub is None else fetch_file(cfg.hub, name, cfg.revision)


def write_model(imported: Pretrained, out: Path) -> None:
    """Print and store transformer and tokenizer."""
    for label, value in describe(imported.model, imported.tokenizer).items():
        print(f"{label:<14} {value}")
    save_pretrained(out, imported.model, imported.tokenizer, imported.facts)
    print(f"written: {out / MODEL_FILE}, with weights, tokenizer and {CARD_FILE}")


def write_tokenizer(path: Path, schedule: ScaleSchedule | None, out: Path) -> None:
    """Import a tokenizer alone, for ``paths.tokenizer``."""
    with naming(path):
        tokenizer: VQAutoencoder = load_released_tokenizer(read_state_dict(path, "vae_local"), schedule or VAR_256)
    print(f"{'tokenizer':<14} {describe_tokenizer(tokenizer)}\n{'schedule':<14} {tokenizer.schedule}")
    refuse_other(out / TOKENIZER_FILE, tokenizer.fingerprint)
    if not (out / TOKENIZER_FILE).exists():
        save_tokenizer(out, tokenizer, UNMEASURED)
    print(f"written: {out / TOKENIZER_FILE}")


def checksum(path: Path) -> str:
    """SHA-256 of a file, with progress where it takes long."""
    digest = hashlib.sha256()
    with (
        path.open("rb") as file,
        tqdm(
            total=path.stat().st_size, desc=f"checksum of {path.name}", unit="B", unit_scale=True, delay=2, leave=False
        ) as bar,
    ):
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()
