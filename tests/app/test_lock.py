"""Locks: one holder at a time, told by name, and none that outlives its process."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from varscale.app import cache, lock, tokenizer, train
from varscale.app.lock import LOCK_FILE, LockedError, hold, holder

HOLD = """
import os, sys, time
from pathlib import Path
from varscale.app.lock import hold
with hold(Path(sys.argv[1]), what="x", remedy="y"):
    if os.fork() == 0:
        time.sleep(60)  # a data worker, which outlives its parent
    print(os.getpid(), flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE_S", 0.1)
    lock._say_that_there_are_none.cache_clear()


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "runs" / LOCK_FILE
    assert holder(path) is None
    with hold(path, what="the sweep is being launched", remedy="wait for it"):
        assert f"process {os.getpid()} on " in (holder(path) or "")
        with (
            pytest.raises(LockedError, match=rf"launched by process {os.getpid()} on .*; wait for it"),
            hold(path, what="the sweep is being launched", remedy="wait for it"),
        ):
            pass
        assert holder(path) is not None  # the refused one has not freed it
    assert holder(path) is None
    with hold(path, what="x", remedy="y"):
        pass


def test_a_killed_holder_leaves_no_lock_though_its_worker_lives(tmp_path: Path) -> None:
    path = tmp_path / LOCK_FILE
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    try:
        pid = int(process.stdout.readline())
        assert f"process {pid} on " in (holder(path) or "")
        os.kill(pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 20
        while holder(path) is not None and time.monotonic() < deadline:
            time.sleep(0.01)  # until the worker runs for the first time, which is when it lets go
        assert holder(path) is None
        os.killpg(process.pid, 0)  # the worker is still there
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ValueError, match=r"file/runs cannot be written \(Not a directory\); name another folder"),
        hold(tmp_path / "file/runs" / LOCK_FILE, what="x", remedy="y"),
    ):
        pass


def test_a_full_disk_does_not_take_the_name_of_the_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    with hold(tmp_path / LOCK_FILE, what="x", remedy="y"):
        assert holder(tmp_path / LOCK_FILE) == "another process"


def test_a_file_system_without_locks_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(handle: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold(tmp_path / LOCK_FILE, what="x", remedy="y"):
        assert holder(tmp_path / LOCK_FILE) is None
    assert caplog.text.count("this file system has no locks") == 1


def test_a_run_is_not_trained_twice_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hydra = SimpleNamespace(get=lambda: SimpleNamespace(runtime=SimpleNamespace(output_dir=str(tmp_path))))
    monkeypatch.setattr(train, "HydraConfig", hydra)
    monkeypatch.setattr(train, "finished", lambda cfg, folder: False)
    monkeypatch.setattr(train, "join", lambda cfg, **how: hydra)
    cfg = OmegaConf.create({"trainer": {"accelerator": "cpu"}})
    trained: list[Path] = []
    monkeypatch.setattr(train, "run_training", lambda cfg, folder: trained.append(folder))
    with hold(tmp_path / LOCK_FILE, what="x", remedy="y"), pytest.raises(LockedError, match="is being trained by"):
        train.main(cfg)
    assert trained == []
    train.main(cfg)
    assert trained == [tmp_path]
    answers = iter([False, True])  # another process finishes it while this one comes to the lock
    monkeypatch.setattr(train, "finished", lambda cfg, folder: next(answers))
    train.main(cfg)
    assert trained == [tmp_path]


def test_tokenizer_and_cache_are_not_written_twice_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {"tokenizer": str(tmp_path / "tokenizer"), "cache": str(tmp_path / "cache")}
    cfg = OmegaConf.create({"trainer": {"accelerator": "cpu", "threads": None}, "paths": paths})
    written: list[Path] = []
    for verb in (tokenizer, cache):
        monkeypatch.setattr(verb, "join", lambda cfg, **how: SimpleNamespace(is_global_zero=True))
    monkeypatch.setattr(tokenizer, "stage1_identity", lambda cfg: "id")
    monkeypatch.setattr(tokenizer, "train_tokenizer", lambda cfg, folder, identity: written.append(folder))
    monkeypatch.setattr(cache, "encode", lambda cfg, folder, fabric: written.append(folder))
    for verb, what in ((tokenizer, "being trained"), (cache, "being written")):
        folder = Path(paths[verb.__name__.rpartition(".")[2]])
        with hold(folder / LOCK_FILE, what="x", remedy="y"), pytest.raises(LockedError, match=f"is {what} by process"):
            verb.main(cfg)
        verb.main(cfg)
    assert written == [tmp_path / "tokenizer", tmp_path / "cache"]
