"""Opening a trained model, whichever verb wrote it: the run of a study, or a folder written by import or export."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from varscale.app.build import build_model
from varscale.app.identity import CONFIG_FILE, TOKENIZER_FILE
from varscale.models.storage import MODEL_FILE, ModelError, from_pretrained, load_weights, stored_classes
from varscale.models.var import VAR
from varscale.records import RUN_FILE, RecordError, read_json, read_run
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.tokenizers.storage import load_tokenizer


def open_model(folder: Path, cfg: DictConfig) -> tuple[VAR, VQAutoencoder]:
    """Model and tokenizer of a model folder, or of a finished run.

    The tokenizer of a run is looked for in ``cfg.paths.tokenizer``, in the run's own study, and where the run's config
    says. Both are on the CPU, in evaluation mode.

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
    tokenizer = load_tokenizer(tokenizer_folder(folder, cfg))
    return open_run(folder, tokenizer), tokenizer


def tokenizer_folder(folder: Path, cfg: DictConfig) -> Path:
    """The folder of a run's tokenizer: the one with its fingerprint, or else the first that there is.

    Raises:
        ModelError: if none of the places exists.
    """
    wanted = read_run(folder).tokenizer_id
    named = [cfg.paths.tokenizer, run_config(folder).paths.tokenizer]
    study = folder.absolute().parent.parent / "tokenizer"  # a run lies in STUDY/runs
    places = dict.fromkeys(Path(place) for place in (named[0], study, named[1]) if place is not None)
    there = [place for place in places if (place / TOKENIZER_FILE).exists()]
    for place in there:
        if read_json(place / TOKENIZER_FILE).get("fingerprint") == wanted:
            return place
    if not there:
        looked = ", ".join(map(str, places))
        raise ModelError(f"the tokenizer of {folder} is not in {looked}; say where it is as paths.tokenizer=FOLDER")
    return there[0]


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
