"""A trained tokenizer on disk: ``tokenizer.safetensors`` (tensors) and ``tokenizer.json`` (what they are).

The JSON is written last and removed first, so a folder with a JSON holds a whole tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from varscale.records import RecordError, atomic_write, read_json, write_json
from varscale.tokenizers.autoencoder import VQAutoencoder

TENSORS_FILE = "tokenizer.safetensors"
TOKENIZER_FILE = "tokenizer.json"
FORMAT = 1
UNMEASURED: Mapping[str, Any] = {"scales": []}  # metrics of a tokenizer that was trained elsewhere


class TokenizerError(ValueError):
    """A stored tokenizer that is absent, damaged or not what its description says; names the file and the remedy."""


def save_tokenizer(
    folder: Path,
    tokenizer: VQAutoencoder,
    metrics: Sequence[Mapping[str, Any]] | Mapping[str, Any],
    *,
    dataset_id: str | None = None,
) -> None:
    """Write the tokenizer, whole or not at all.

    Args:
        folder: made if it is absent; a tokenizer already there is replaced.
        tokenizer: its settings, schedule, code and fingerprint go into the JSON.
        metrics: plain finite numbers for the JSON, by scale where they are.
        dataset_id: fingerprint of the training data.
    """
    description = {
        "format": FORMAT,
        "fingerprint": tokenizer.fingerprint,
        "schedule": str(tokenizer.schedule),
        "code": str(tokenizer.code),
        "dataset_id": dataset_id,
        "config": tokenizer.config.to_dict(),
        "metrics": metrics,
    }
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tokenizer.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TOKENIZER_FILE).unlink(missing_ok=True)
    with atomic_write(folder / TENSORS_FILE) as file:
        file.write(save(tensors))
    write_json(folder / TOKENIZER_FILE, description)


def load_tokenizer(folder: Path) -> VQAutoencoder:
    """The tokenizer in ``folder``, in evaluation mode on the CPU. Raises ``TokenizerError``."""
    folder = Path(folder)
    try:
        description = read_json(folder / TOKENIZER_FILE)
    except RecordError as error:
        raise TokenizerError(f"no tokenizer in {folder}: {error}; train one with the verb tokenizer") from None
    if description.get("format") != FORMAT:
        raise TokenizerError(
            f"{folder / TOKENIZER_FILE} has format {description.get('format')!r}, this version reads {FORMAT}; "
            "train the tokenizer again"
        )
    try:
        tokenizer = VQAutoencoder(**description["config"])
        tokenizer.load_state_dict(load_file(folder / TENSORS_FILE))
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise TokenizerError(f"the tokenizer in {folder} cannot be read ({error}); train it again") from error
    if tokenizer.fingerprint != description.get("fingerprint"):
        raise TokenizerError(
            f"the tensors in {folder} have fingerprint {tokenizer.fingerprint}, but {TOKENIZER_FILE} says "
            f"{description.get('fingerprint')}: a file was changed; train the tokenizer again"
        )
    return tokenizer.eval()
