"""The W&B mirror writes offline beside the run, closes itself, and never stops a run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from varscale.training.mirror import NoMirror, WandbMirror, open_mirror


def arguments(folder: Path) -> dict[str, Any]:
    return {
        "folder": folder,
        "project": "varscale",
        "name": "model.width=8",
        "group": "quickstart",
        "job_type": "train",
        "tags": ["quickstart"],
        "config": {"width": 8},
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_two_runs_in_one_process_are_two_offline_runs(tmp_path: Path) -> None:
    for number in (1, 2):
        mirror = open_mirror("offline", run_id=f"run{number}", **arguments(tmp_path))
        assert isinstance(mirror, WandbMirror)
        mirror.log({"step": 1, "tokens_seen": 130.0, "val/nats_per_token_avg": 4.0})
        mirror.finish({"val_nats_per_token_avg": 4.0, "fid": None}, failed=False)
    folders = sorted(path.name for path in (tmp_path / "wandb").glob("offline-run-*"))
    assert [name.rpartition("-")[2] for name in folders] == ["run1", "run2"]
    assert all(list((tmp_path / "wandb" / name).glob("*.wandb")) for name in folders)


def test_disabled_is_no_mirror(tmp_path: Path) -> None:
    mirror = open_mirror("disabled", run_id="run", **arguments(tmp_path))
    assert isinstance(mirror, NoMirror)
    mirror.log({"step": 1})
    mirror.finish({}, failed=True)
    assert not list(tmp_path.iterdir())


def test_a_mirror_that_cannot_start_is_said_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        mirror = open_mirror("sideways", run_id="run", **arguments(tmp_path))
    assert isinstance(mirror, NoMirror)
    assert "the run goes on" in caplog.text


def test_errors_of_the_server_are_swallowed(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        summary: dict[str, Any] = {}  # noqa: RUF012

        def log(self, values: dict[str, float]) -> None:
            raise ConnectionError("no route")

        def finish(self, exit_code: int) -> None:
            raise ConnectionError("no route")

    mirror = WandbMirror.__new__(WandbMirror)
    mirror.run = Broken()
    mirror.log({"step": 7})
    mirror.finish({"loss": 1.0}, failed=False)
    assert "step 7" in caplog.text and "did not close" in caplog.text
