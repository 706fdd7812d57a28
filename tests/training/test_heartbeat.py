"""The sign of life says step, loss and speed, not too often, and never stops a run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from varscale.training import heartbeat
from varscale.training.generator_task import GeneratorTask
from varscale.training.heartbeat import Heartbeat


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = SimpleNamespace(now=100.0)
    monkeypatch.setattr(heartbeat, "time", SimpleNamespace(monotonic=lambda: made.now, time=lambda: 1e9 + made.now))
    return made


def task(loss: float | None) -> GeneratorTask:
    made = GeneratorTask.__new__(GeneratorTask)
    torch.nn.Module.__init__(made)
    made.last_loss = None if loss is None else torch.tensor(loss)
    return made


def test_it_writes_now_and_then(tmp_path: Path, clock: SimpleNamespace) -> None:
    beat = Heartbeat(tmp_path, steps=50, batch=4)
    trainer: Any = SimpleNamespace(global_step=10, is_global_zero=True)
    beat.on_train_start(trainer, task(None))
    for trainer.global_step, clock.now in ((11, 104.0), (12, 105.0), (13, 106.0)):
        beat.on_train_batch_end(trainer, task(3.5), None, None, 0)
    found = json.loads((tmp_path / "progress.json").read_text())
    assert found == {"time": 1e9 + 105, "step": 12, "steps": 50, "loss": 3.5, "images_per_s": 2 * 4 / 5}
    clock.now = 120.0
    trainer.is_global_zero, trainer.global_step = False, 20
    beat.on_train_batch_end(trainer, task(3.0), None, None, 0)
    assert json.loads((tmp_path / "progress.json").read_text()) == found
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]


def test_a_folder_that_has_gone_is_said_once(
    tmp_path: Path, clock: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    beat = Heartbeat(tmp_path / "gone", steps=50, batch=4)
    trainer: Any = SimpleNamespace(global_step=0, is_global_zero=True)
    beat.on_train_start(trainer, task(None))
    for trainer.global_step, clock.now in ((1, 110.0), (2, 120.0)):
        beat.on_train_batch_end(trainer, task(None), None, None, 0)
    assert caplog.text.count("the run goes on") == 1
