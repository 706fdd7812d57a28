"""How often a run was started and has failed: a small file in its folder, which outlives the launcher.

A failure is a crash: a signal, running out of memory, an exception. An interruption is none, nor is divergence (the
record says it, and the same settings diverge again) nor an error of the user's, which is told before anything trains.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from varscale.records import RecordError, read_json, write_json

ATTEMPTS_FILE = "attempts.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempts:
    """The count for one run of certain settings.

    Attributes:
        run_id: of those settings; with others the count begins anew.
        starts: how often it was started.
        failures: how often it crashed.
        outcome: how the last start ended; None while it runs, or when nobody saw its end.
        retryable: false after an error of the user's, which another start would only repeat.
    """

    run_id: str
    starts: int = 0
    failures: int = 0
    outcome: str | None = None
    retryable: bool = True

    def started(self) -> Attempts:
        """With one more start."""
        return replace(self, starts=self.starts + 1, outcome=None, retryable=True)

    def ended(self, outcome: str, *, crashed: bool, retryable: bool = True) -> Attempts:
        """With the end of the last start."""
        return replace(self, outcome=outcome, failures=self.failures + (crashed and retryable), retryable=retryable)

    def write(self, folder: Path) -> None:
        """Write or replace the file in ``folder``. A disk that does not take it is said; the sweep goes on."""
        try:
            write_json(folder / ATTEMPTS_FILE, asdict(self))
        except OSError as error:
            log.warning("%s cannot be written (%s); the sweep goes on", folder / ATTEMPTS_FILE, error)


def read_attempts(folder: Path, run_id: str | None = None) -> Attempts | None:
    """The count in ``folder``; None when there is none, or none of the run ``run_id``."""
    try:
        found = Attempts(**read_json(folder / ATTEMPTS_FILE))
    except (RecordError, TypeError):
        return None
    return found if run_id in (None, found.run_id) else None
