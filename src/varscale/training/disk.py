"""A disk that may be full or away for a while: what it refuses is said once and tried again later.

A run goes on without it as long as it can; only its start and its end insist.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)


class Disk:
    """The disk below a run's folder, which must exist.

    Args:
        folder: where the run writes. When it is gone, nothing is written: below the mount point of a lost mount a new
            folder would hide.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.refused = False

    def attempt(self, what: str, write: Callable[[], object]) -> bool:
        """Whether ``write`` worked; an ``OSError`` is said, the first one of a row, and so is the end of the row."""
        try:
            if not self.folder.is_dir():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder))
            write()
        except OSError as error:
            if not self.refused:
                log.warning(
                    "%s could not be written (%s); training goes on and it is tried again with the next checkpoint or "
                    "measurement: free some space, or mount the folder again",
                    what,
                    error,
                )
            self.refused = True
            return False
        if self.refused:
            log.warning("%s was written: the disk takes files again", what)
        self.refused = False
        return True
