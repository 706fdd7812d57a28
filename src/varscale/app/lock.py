"""Locks that no killed process leaves behind: for the launches of a sweep, and for the processes that train a run.

A lock is ``flock`` on a file that says who holds it. The kernel frees it with its process, even after SIGKILL, so
nothing has to be judged stale and no heartbeat is needed. It holds on one machine everywhere, and between machines
where the file system passes locks on: NFS with its lock service, GPFS, Lustre mounted with ``flock``. Where a file
system offers no locks at all, that is said and nothing is excluded.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

LOCK_FILE = ".lock"
PATIENCE_S = 1.0  # for one that only looks, and for one that is just leaving
_POLL_S = 0.05
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
log = logging.getLogger(__name__)


class LockedError(ValueError):
    """Another process holds the lock: names it and says how to proceed."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    pid: int
    host: str
    since: str  # ISO 8601, UTC

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


_held: set[int] = set()  # file descriptors


def _release_in_child() -> None:
    """A forked child (a data worker) would otherwise hold the lock for as long as it outlives its parent."""
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)


@contextmanager
def hold(path: Path, *, what: str, remedy: str) -> Iterator[None]:
    """Hold the lock ``path`` for the time of the block.

    Args:
        path: the lock's file; it stays when the lock is released.
        what: what is being done, for the message to the second one: ``the sweep widths is being launched``.
        remedy: how the second one may proceed.

    Raises:
        LockedError: if another process holds it.
        ValueError: if the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ValueError(
            f"{path.parent} cannot be written ({error.strerror}); name another folder (paths.outputs=FOLDER) or change "
            "its permissions"
        ) from error
    _held.add(handle)
    try:
        if not _acquire(handle, fcntl.LOCK_EX, PATIENCE_S):
            raise LockedError(f"{what} by {_read(handle) or 'another process'}; {remedy}")
        me = Holder(os.getpid(), socket.gethostname(), datetime.now(UTC).isoformat(timespec="seconds"))
        with suppress(OSError):  # a full disk: who it is is only told, the lock holds
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(asdict(me)).encode(), 0)
        yield
    finally:
        if handle in _held:  # not in a child that was forked within the block
            _held.discard(handle)
            os.close(handle)


def holder(path: Path) -> str | None:
    """Who holds the lock ``path`` now, in words; None when nobody does. Takes a shared lock for an instant."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        if _acquire(handle, fcntl.LOCK_SH, 0.0):
            return None
        return str(_read(handle) or "another process")
    finally:
        os.close(handle)


def _acquire(handle: int, kind: int, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _say_that_there_are_none(str(error))
            return True


@cache  # once, though a launcher looks at every run every other second
def _say_that_there_are_none(why: str) -> None:
    log.warning("this file system has no locks (%s): see yourself that nothing is started twice", why)


def _read(handle: int) -> Holder | None:
    try:
        return Holder(**json.loads(os.pread(handle, 4096, 0)))
    except (ValueError, TypeError):
        return None
