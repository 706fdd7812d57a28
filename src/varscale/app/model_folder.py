"""Opening a trained model, whichever verb wrote it: the run of a study, or a folder written by import or export."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from varscale.app.build import build_model
from varscale.app.identity import CONFIG_FILE
from varscale.models.storage import MODEL_FILE, ModelError, from_pretrained, load_weights, stored_classes
from varscale.models.var import VAR
from varscale.records import RUN_FILE, RecordError, read_run
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.tokenizers.storage import load_tokenizer


def open_model(folder: Path, cfg: DictConfig) -> tuple[VAR, VQAutoencoder]:
    """Model and tokenizer of a model folder, or of a finished run.

    The tokenizer of a run is ``cfg.paths.tokenizer``, or where that is ``None`` the one that the run's config names.
    Both are on the CPU, in evaluation mode.

    Raises:
        ModelError, RecordError, TokenizerError: if the folder holds neither, is damaged, or was trained on another
            tokenizer.
    """
    folder = Path(folder)
    if (folder / MODEL_FILE).exists():
        loaded = from_pretrained(folder)
        return loaded.model, loaded.tokenizer
    if not (folder / RUN_FILE).exists():
        raise ModelError(
            f"{folder} is neither a run of a study (no {RUN_FILE}) nor a model folder (no {MODEL_FILE}); "
            "train one, or write one with varscale import"
        )
    where = Path(cfg.paths.tokenizer or run_config(folder).paths.tokenizer)
    if not where.exists():
        raise ModelError(f"the tokenizer of {folder} is not in {where}; say where it is as paths.tokenizer=FOLDER")
    tokenizer = load_tokenizer(where)
    return open_run(folder, tokenizer), tokenizer


def open_run(folder: Path, tokenizer: VQAutoencoder) -> VAR:
    """The trained model of a run. Raises ``RecordError`` when it belongs to another tokenizer or is not finished."""
    run = read_run(folder)
    if run.tokenizer_id != tokenizer.fingerprint:
        raise RecordError(
            f"{folder} was trained on tokenizer {run.tokenizer_id}, this one is {tokenizer.fingerprint}; "
            "launch the sweep again, or name the other tokenizer by paths.tokenizer=FOLDER"
        )
    model = build_model(
        run_config(folder),
        schedule=tokenizer.schedule,
        code=tokenizer.code,
        latent_channels=tokenizer.latent_channels,
        num_classes=stored_classes(folder),
    )
    load_weights(folder, model)
    return model.eval()


def run_config(folder: Path) -> DictConfig:
    """The configuration that a run was trained with. Raises ``RecordError`` when it is absent."""
    try:
        cfg = OmegaConf.load(folder / CONFIG_FILE)
    except FileNotFoundError:
        raise RecordError(f"{folder / CONFIG_FILE} does not exist; launch the run again") from None
    assert isinstance(cfg, DictConfig)
    return cfg
