"""Checkpoints on the disk: whole or not used, each flaw found and said, kept by rule, refused for other data."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from varscale.training.checkpoints import CHECKPOINTS, CheckpointError, Checkpoints, Owner, described
from varscale.training.disk import Disk

OWNER = Owner("run", "data", "tokenizer")


def write(folder: Path, *steps: int, owner: Owner = OWNER, **settings: Any) -> Checkpoints:
    folder.mkdir(exist_ok=True)
    checkpoints = Checkpoints(folder, owner, **settings)
    for step in steps:
        values = {"global_step": step, "state_dict": {"w": torch.full((50,), float(step))}}
        checkpoints.save_checkpoint(values, checkpoints.path(step))
    return checkpoints


def steps(folder: Path) -> list[int]:
    return [checkpoint.step for checkpoint in described(folder / CHECKPOINTS)]


def test_the_newest_is_read_back(tmp_path: Path) -> None:
    checkpoints = write(tmp_path, 100, 200)
    assert Checkpoints(tmp_path / "other", OWNER).newest() is None
    newest = Checkpoints(tmp_path, OWNER).newest()
    assert newest is not None and newest.step == 200 and newest.owner == OWNER
    read = checkpoints.load_checkpoint(newest.path, weights_only=True)
    assert torch.equal(read["state_dict"]["w"], torch.full((50,), 200.0))
    assert sorted(path.name for path in (tmp_path / CHECKPOINTS).iterdir()) == [
        f"step_{step:08}.{kind}" for step in (100, 200) for kind in ("ckpt", "json")
    ]


def test_old_ones_go_and_chosen_ones_stay(tmp_path: Path) -> None:
    checkpoints = write(tmp_path, *range(1, 10), keep=2, keep_steps=[3, 5])
    assert steps(tmp_path) == [3, 5, 8, 9]
    checkpoints.finish()
    assert steps(tmp_path) == [3, 5]
    rhythm = write(tmp_path / "rhythm", *range(1, 10), keep=1, keep_steps=4)
    assert steps(tmp_path / "rhythm") == [4, 8, 9]
    assert rhythm.stays(4) and not rhythm.stays(5) and rhythm.last_step() == 9
    write(tmp_path / "none", 1, 2).finish()
    assert not (tmp_path / "none" / CHECKPOINTS).exists()


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, 1).newest()
    assert checkpoint is not None
    whole = checkpoint.path.read_bytes()
    for place in range(0, len(whole), 97):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        checkpoint.path.write_bytes(changed)
        assert checkpoint.flaw() == "its content has another checksum", place
    checkpoint.path.write_bytes(whole)
    assert checkpoint.flaw() is None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes of"),
        (lambda path: path.write_bytes(b""), "0 bytes of"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9] + b"x" + path.read_bytes()[-8:]), "another checksum"),
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.with_suffix(".json").write_text("{"), "is not whole JSON"),
        (lambda path: path.with_suffix(".json").write_text('{"step": 3}'), "run_id"),
    ],
    ids=["truncated", "empty", "changed", "absent", "description cut off", "description of something else"],
)
def test_a_damaged_one_is_said_and_the_one_before_it_used(
    tmp_path: Path, damage: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = write(tmp_path, 1, 2, 3, keep=3)
    damage(checkpoints.path(3))
    with caplog.at_level(logging.WARNING):
        newest = checkpoints.newest()
    assert newest is not None and newest.step == 2
    assert said in caplog.text and "step_00000003" in caplog.text
    again = write(tmp_path, 3, keep=3).newest()
    assert again is not None and again.step == 3 and again.flaw() is None


def test_without_a_whole_one_the_run_starts_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = write(tmp_path, 1)
    checkpoints.path(1).write_bytes(b"")
    assert checkpoints.newest() is None
    assert "the run starts over" in caplog.text


def test_what_a_killed_write_left_is_removed(tmp_path: Path) -> None:
    checkpoints = write(tmp_path, 1)
    (checkpoints.folder / ".step_00000002.ckpt.abc.tmp").write_bytes(b"half")
    checkpoints.path(2).write_bytes(b"renamed, not described")
    newest = checkpoints.newest()
    assert newest is not None and newest.step == 1
    assert {path.stem for path in checkpoints.folder.iterdir()} == {"step_00000001"}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Owner("other", "data", "tokenizer"), r"\(run run, not other\)"),
        (Owner("run", "data", "another"), r"\(tokenizer tokenizer, not another\)"),
        (Owner("run", "changed", "tokenizer"), r"\(data set data, not changed\)"),
        (Owner("other", "changed", "another"), r"\(run run, not other; data set .*; tokenizer .*\): bring the old"),
    ],
)
def test_those_of_another_run_are_refused_and_stay(tmp_path: Path, other: Owner, said: str) -> None:
    write(tmp_path, 1, 2)
    with pytest.raises(CheckpointError, match=f"is another run's {said}"):
        Checkpoints(tmp_path, other).newest()
    assert steps(tmp_path) == [1, 2]


def test_one_that_leaves_no_step_to_do_is_not_continued(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = write(tmp_path, 1, 2, 3, keep_steps=[3])
    before = checkpoints.newest(before=3)
    assert before is not None and before.step == 2
    assert checkpoints.newest(before=1) is None and steps(tmp_path) == [1, 2, 3] and not caplog.text


def test_a_lost_mount_is_not_written_below_its_mount_point(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    checkpoints = write(folder, 1)
    folder.rename(tmp_path / "away")
    checkpoints.save_checkpoint({"global_step": 2}, checkpoints.path(2))
    checkpoints.save_checkpoint({"global_step": 3}, checkpoints.path(3))
    assert not folder.exists() and caplog.text.count("could not be written") == 1
    (tmp_path / "away").rename(folder)
    checkpoints.save_checkpoint({"global_step": 4}, checkpoints.path(4))
    assert steps(folder) == [1, 4] and "takes files again" in caplog.text


def test_a_refusal_in_the_middle_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = write(tmp_path, 1)

    def fails(values: Any, file: Any) -> None:
        file.write(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", fails)
    write(tmp_path, 2)
    newest = checkpoints.newest()
    assert newest is not None and newest.step == 1 and len(list(checkpoints.folder.iterdir())) == 2


def test_other_errors_are_no_matter_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        Disk(tmp_path).attempt("x", lambda: {}["absent"])


@pytest.mark.parametrize(("settings", "key"), [({"keep": 0}, "train.keep "), ({"keep_steps": [0]}, "train.keep_steps")])
def test_settings_that_do_not_fit(tmp_path: Path, settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        Checkpoints(tmp_path, OWNER, **settings)
