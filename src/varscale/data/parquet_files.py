"""Parquet files in the image layout of the Hub: which belong to which split, their columns, labels and image bytes.

The layout: a column ``img`` or ``image`` with ``{bytes, path}`` (or the bytes themselves) and an integer label.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from varscale.data.source import DataError

IMAGE_COLUMNS = ("img", "image", "jpg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")


def split_files(path: Path, train: Sequence[str], val: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """The files of both splits, sorted by path; no validation files where none are named so.

    A single file, or files of which none is named after a split, are all training files. Of the patterns of a split
    the first that fits any file name (in lower case) decides.

    Raises:
        DataError: if there are no parquet files, or some are named after the validation split and none for training.
    """
    if path.is_file():
        return [path], []
    files = sorted(file for file in path.rglob("*.parquet") if not file.name.startswith("."))
    if not files:
        raise DataError(f"{path} holds no .parquet file; name the file or the folder that holds them")
    found_train, found_val = _first_match(files, train), _first_match(files, val)
    if found_train:
        return found_train, [file for file in found_val if file not in found_train]
    if found_val:
        raise DataError(
            f"{path} has validation files ({found_val[0].name}, ...) but no training file; "
            f"name training files like {', '.join(train)}, or set train_files"
        )
    return files, []


def _first_match(files: Sequence[Path], patterns: Sequence[str]) -> list[Path]:
    matches = ([file for file in files if fnmatch(file.name.lower(), pattern)] for pattern in patterns)
    return next((some for some in matches if some), [])


@dataclass(frozen=True)
class ParquetGroup:
    """The parquet files of one split (or of the whole data set, where it has no validation files), read as one table.

    Args:
        files: the files in order; rows are numbered through them.
        image, label: column names; ``None`` looks for the known ones.
    """

    files: tuple[Path, ...]
    image: str | None = None
    label: str | None = None

    def content_hash(self) -> str:
        """Hash of names, sizes and footers; a footer holds the place and the statistics of every column chunk."""
        digest = hashlib.sha256()
        for file in self.files:
            size = file.stat().st_size
            with file.open("rb") as stream:
                stream.seek(max(0, size - 8))
                footer = int.from_bytes(stream.read(4), "little")
                stream.seek(max(0, size - 8 - footer))
                digest.update(f"{file.name}\0{size}\0".encode() + stream.read())
        return digest.hexdigest()

    def labels(self) -> np.ndarray:
        """The label of each row, int64 (rows,). Raises ``DataError`` that names a file that cannot be read or used."""
        parts = []
        for file in self.files:
            with _opened(file) as parquet:
                column = _column(parquet, file, self.label, LABEL_COLUMNS, "label")
                try:
                    values = parquet.read(columns=[column]).column(column)
                except (pa.ArrowException, OSError) as error:
                    raise _unreadable(file, error) from error
            if not pa.types.is_integer(values.type) or values.null_count:
                raise DataError(
                    f"the label column {column!r} of {file} holds {values.type} with {values.null_count} empty rows; "
                    "labels must be integers, none missing. Set label_column to another column"
                )
            parts.append(values.to_numpy().astype(np.int64))
        labels = np.concatenate(parts)
        if not labels.size:
            raise DataError(f"{self.files[0].parent} holds parquet files without a single row")
        if labels.min() < 0:
            raise DataError(
                f"{self.files[0].parent} has labels below 0, as the Hub's test splits with hidden labels do; "
                "set val_files to the files of a split with labels"
            )
        return labels

    def encoded_images(self) -> Iterator[tuple[str, bytes]]:
        """``(file:row, encoded image)`` of each row; the bytes are empty where the row has none."""
        for file in self.files:
            with _opened(file) as parquet:
                column = _column(parquet, file, self.image, IMAGE_COLUMNS, "image")
                kind = parquet.schema_arrow.field(column).type
                nested = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
                if not nested and not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
                    raise DataError(
                        f"the image column {column!r} of {file} holds {kind}; it must hold encoded images, either "
                        "binary or {bytes, path}. Set image_column to another column"
                    )
                row = 0
                try:
                    for batch in parquet.iter_batches(512, columns=[f"{column}.bytes" if nested else column]):
                        cells = batch.column(0).field("bytes") if nested else batch.column(0)
                        for cell in cells.to_pylist():
                            yield f"{file}:{row}", cell or b""
                            row += 1
                except (pa.ArrowException, OSError) as error:
                    raise _unreadable(file, error) from error


def _opened(file: Path) -> Any:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: BaseException) -> DataError:
    return DataError(f"{file} cannot be read as parquet ({error}); it may be cut off: fetch it again")


def _column(parquet: Any, file: Path, wanted: str | None, known: Sequence[str], what: str) -> str:
    present = parquet.schema_arrow.names
    for name in known if wanted is None else (wanted,):
        if name in present:
            return str(name)
    looked_for = " or ".join(known) if wanted is None else wanted
    raise DataError(
        f"{file} has no {what} column {looked_for}; its columns are {', '.join(present)}. "
        f"Set {what}_column to one of them"
    )
