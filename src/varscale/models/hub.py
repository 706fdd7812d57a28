"""Files of the Hugging Face Hub, by the optional package ``huggingface_hub``. A path that exists is never looked up."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

MODEL_FILES = ("model.json", "model.safetensors", "tokenizer.json", "tokenizer.safetensors", "README.md")


class HubError(ValueError):
    """A Hub repository that cannot be fetched: names the repository, the reason and the remedy."""


def fetch_folder(source: str, revision: str | None = None) -> Path:
    """The folder ``source``, or the downloaded model folder of the Hub repository ``org/name[@revision]``.

    Raises:
        HubError: if ``source`` is neither a path nor a Hub id, or the download fails.
    """
    if Path(source).exists():
        return Path(source)
    repository, revision = _repository(source, revision)
    hub = _package(repository)
    try:
        return Path(hub.snapshot_download(repository, revision=revision, allow_patterns=list(MODEL_FILES)))
    except Exception as error:  # whatever the network or the Hub answers
        raise _failed(repository, revision, error) from error


def fetch_file(repository: str, name: str, revision: str | None = None) -> Path:
    """One downloaded file of a Hub repository. Raises ``HubError``."""
    repository, revision = _repository(repository, revision)
    hub = _package(repository)
    try:
        return Path(hub.hf_hub_download(repository, name, revision=revision))
    except Exception as error:  # whatever the network or the Hub answers
        raise _failed(f"{name} of {repository}", revision, error) from error


def _repository(source: str, revision: str | None) -> tuple[str, str | None]:
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", source)
    if match is None:
        raise HubError(f"{source} does not exist, and is no Hub id either; those are written org/name[@revision]")
    if match[2] is not None and revision is not None and match[2] != revision:
        raise HubError(f"{source} names the revision {match[2]}, revision={revision} another; give one of them")
    return match[1], match[2] or revision


def _package(repository: str) -> ModuleType:
    try:
        import huggingface_hub
    except ImportError:
        raise HubError(
            f"{repository} is not a path here, and fetching it from the Hub needs the package huggingface_hub; "
            "pip install 'varscale[hub]', or download the files and give their folder"
        ) from None
    return huggingface_hub


def _failed(what: str, revision: str | None, error: Exception) -> HubError:
    where = what if revision is None else f"{what} at {revision}"
    return HubError(
        f"{where} could not be fetched from the Hub ({type(error).__name__}: {error}); check name and network"
    )
