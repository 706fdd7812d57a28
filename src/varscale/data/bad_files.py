"""Broken images: each is named once and counted, and too many of them stop the run."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from varscale.data.source import DataError

log = logging.getLogger(__name__)

_LEAST_READ = 1000  # a share is not judged on fewer files, unless the split is smaller


@dataclass
class BadFiles:
    """Counts the files read and the broken ones among them, in this process (each worker judges what it reads).

    Args:
        max_share: the run stops when more than this share of the files read is broken. Over the first 1,000 files (or
            the whole split, if smaller) the share is taken of that number, so that one bad file among the first ten
            does not stop a run.

    Raises:
        DataError: if ``max_share`` is outside [0, 1].
    """

    max_share: float
    read: int = 0
    bad: int = 0
    reasons: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.max_share <= 1:
            raise DataError(f"max_bad_share is {self.max_share}; it must lie in [0, 1]")

    def count_read(self) -> None:
        """A file was opened."""
        self.read += 1

    def count_bad(self, file: str, reason: str, split_size: int) -> None:
        """A file read just now is broken. Raises ``DataError`` when the share of such files exceeds the limit."""
        self.bad += 1
        if file not in self.reasons:
            self.reasons[file] = reason
            log.warning("skipped %s (%s); another image of its split stands in", file, self.reasons[file])
        judged = max(self.read, min(_LEAST_READ, split_size))
        if self.bad > self.max_share * judged:
            shown = "; ".join(f"{name} ({why})" for name, why in list(self.reasons.items())[:5])
            raise DataError(
                f"{self.bad} of {judged} images are broken, more than max_bad_share = {self.max_share:g} allows. "
                f"Repair or remove them, or raise the limit. {len(self.reasons)} files, the first: {shown}"
            )
