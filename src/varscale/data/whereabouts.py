"""Where data lies: the message that says how to provide it, and the download from the Hub."""

from __future__ import annotations

import os
from pathlib import Path

from varscale.data.source import DataError

DATA_VARIABLE = "VARSCALE_DATA"  # the folder that the paths in conf/data start from


def missing_data(name: str, path: Path, hub_id: str | None = None, reason: str | None = None) -> DataError:
    """The error for data that is not there: the path, the environment variable, and the Hub where it is known."""
    value = os.environ.get(DATA_VARIABLE)
    now = "not set" if value is None else f"now {value!r}"
    lines = [
        f"no data for {name} at {path}. Put it there, set {DATA_VARIABLE} ({now}) to the folder that holds it, "
        "or override data.path"
    ]
    if hub_id is not None:
        lines.append(f"It is on the Hub as {hub_id}, but {reason}")
    return DataError(". ".join(lines))


def download(name: str, path: Path, hub_id: str, revision: str | None) -> Path:
    """The folder with the parquet files of the Hub data set ``hub_id``, downloaded unless the Hub's cache has them.

    Raises:
        DataError: if huggingface_hub is not installed, or the Hub cannot be reached and its cache lacks the files.
    """
    try:
        from huggingface_hub import snapshot_download  # an optional package: the extra "hub"
    except ImportError:
        why = "huggingface_hub, which would download it, is not installed: pip install huggingface_hub"
        raise missing_data(name, path, hub_id, why) from None
    try:
        return Path(snapshot_download(hub_id, repo_type="dataset", revision=revision, allow_patterns=["*.parquet"]))
    except (OSError, ValueError) as error:  # no network, no such data set, no access
        raise missing_data(name, path, hub_id, f"the download failed: {error}") from error
