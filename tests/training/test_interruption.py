"""Runs that die, are stopped, lose their disk or diverge: what is kept, and that they continue to the bit."""

from __future__ import annotations

import errno
import io
import json
import logging
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from safetensors.torch import load_file

from varscale import records
from varscale.cache.reader import TokenCache
from varscale.data.order import batch_indices
from varscale.records import CURVE_FILE, RecordError, read_run
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.training import saving
from varscale.training.averages import PowerAverage
from varscale.training.checkpoints import Checkpoints, Owner
from varscale.training.health import DIVERGED_FILE, DivergedError, write_divergence
from varscale.training.recorder import Recorder
from varscale.training.saving import Saving


def test_an_interrupted_run_continues_to_the_bit(
    tiny: Any, tmp_path: Path, cache: TokenCache, tokenizer: VQAutoencoder
) -> None:
    whole = tiny.task(tokenizer)
    tiny.train(tmp_path / "whole", whole, cache)
    with pytest.raises(RuntimeError, match="dies here"):
        tiny.train(tmp_path / "broken", tiny.task(tokenizer), cache, stop_at=4)
    assert read_run(tmp_path / "broken").status == "failed"
    assert tiny.newest_step(tmp_path / "broken") == 2
    resumed = tiny.task(tokenizer)
    tiny.train(tmp_path / "broken", resumed, cache)
    tiny.assert_equal_weights(whole, resumed)
    assert tiny.curve(tmp_path / "whole") == tiny.curve(tmp_path / "broken")
    assert {"grad_norm_mean", "grad_norm_max", "loss_spikes"} <= {
        row["metric"] for row in tiny.curve(tmp_path / "broken")
    }
    run = read_run(tmp_path / "broken")
    assert (run.status, run.images_seen, run.tokens_seen, run.flops_train) == ("finished", 24.0, 504.0, 2400.0)
    assert run.unique_images == 24.0 and run.val_images == 8.0


def test_progressive_training_resumes_to_the_bit(
    tiny: Any, tmp_path: Path, stored: TokenCache, tokenizer: VQAutoencoder
) -> None:
    """From the middle of a stage."""
    whole = tiny.coarse_first(tokenizer)
    tiny.train(tmp_path / "whole", whole, stored)
    with pytest.raises(RuntimeError, match="dies here"):
        tiny.train(tmp_path / "broken", tiny.coarse_first(tokenizer), stored, stop_at=3)
    assert tiny.newest_step(tmp_path / "broken") == 2
    resumed = tiny.coarse_first(tokenizer)
    tiny.train(tmp_path / "broken", resumed, stored)
    tiny.assert_equal_weights(whole, resumed)
    assert tiny.curve(tmp_path / "whole") == tiny.curve(tmp_path / "broken")
    groups = whole.trainer.optimizers[0].param_groups
    assert [group["weight_decay"] for group in groups] == [pytest.approx(0.5), 0.0]


SCHEDULER_AND_LAUNCHER = (signal.SIGTERM, signal.SIGTERM, signal.SIGINT)  # each ends the run in its way


@pytest.mark.parametrize("signals", [(signal.SIGINT,), SCHEDULER_AND_LAUNCHER], ids=["one", "several"])
def test_ctrl_c_is_heard_between_two_steps(
    tiny: Any, tmp_path: Path, stored: TokenCache, tokenizer: VQAutoencoder, signals: tuple[signal.Signals, ...]
) -> None:
    """In the middle of a step there is no state worth saving; the next start saves and stops."""
    task, whole = tiny.task(tokenizer), tiny.task(tokenizer)
    tiny.train(tmp_path / "whole", whole, stored, parts=2, every=3)
    step = task.training_step

    def interrupted_in_step_3(batch: Any, batch_idx: int) -> Any:
        if (task.global_step, batch_idx) == (3, 6):
            for number in signals:
                signal.raise_signal(number)
        return step(batch, batch_idx)

    before = signal.getsignal(signal.SIGINT)
    task.training_step = interrupted_in_step_3  # type: ignore[method-assign]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        tiny.train(tmp_path / "broken", task, stored, parts=2, every=3)
    assert signal.getsignal(signal.SIGINT) is before
    assert read_run(tmp_path / "broken").status == "stopped"
    assert tiny.newest_step(tmp_path / "broken") == 4
    resumed = tiny.task(tokenizer)
    tiny.train(tmp_path / "broken", resumed, stored, parts=2, every=3)
    tiny.assert_equal_weights(whole, resumed)
    assert tiny.curve(tmp_path / "whole") == tiny.curve(tmp_path / "broken")


def test_a_second_ctrl_c_is_heard_at_once(tmp_path: Path) -> None:
    asked = Saving(Checkpoints(tmp_path, Owner("run", "data")))
    asked.request(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        asked.request(signal.SIGINT, None)


def test_the_time_limit_leaves_room_for_a_step_and_a_checkpoint(
    tiny: Any,
    tmp_path: Path,
    stored: TokenCache,
    tokenizer: VQAutoencoder,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step takes ten seconds of this clock: after three of them, two more would pass the limit of 45."""
    task = tiny.task(tokenizer)
    clock = SimpleNamespace(monotonic=lambda: 10.0 * task.global_step if task._trainer else 0.0)
    monkeypatch.setattr(saving, "time", clock)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        tiny.train(tmp_path, task, stored, limit_hours=45 / 3600)
    assert "the same command continues" in caplog.text
    assert read_run(tmp_path).status == "stopped" and tiny.newest_step(tmp_path) == 3
    monkeypatch.undo()
    tiny.train(tmp_path, tiny.task(tokenizer), stored, limit_hours=1.0)
    assert read_run(tmp_path).status == "finished"


def test_without_a_rhythm_checkpoints_take_one_percent_of_the_time(tiny: Any, tmp_path: Path) -> None:
    by_clock = Saving(Checkpoints(tmp_path, tiny.owner))
    assert by_clock.due(7, now=10.0) and not by_clock.due(7, now=9.9)
    by_clock.saved_at, by_clock.last_save_s = 10.0, 3.0
    assert by_clock.due(7, now=310.0) and not by_clock.due(7, now=309.0)


def test_the_average_is_measured_beside_the_weights_and_resumes(
    tiny: Any, tmp_path: Path, stored: TokenCache, tokenizer: VQAutoencoder
) -> None:
    whole = tiny.task(tokenizer, average_gamma=9.0)
    assert isinstance(whole.average, PowerAverage)
    tiny.train(tmp_path / "whole", whole, stored)
    with pytest.raises(RuntimeError, match="dies here"):
        tiny.train(tmp_path / "broken", tiny.task(tokenizer, average_gamma=9.0), stored, stop_at=4)
    resumed = tiny.task(tokenizer, average_gamma=9.0)
    tiny.train(tmp_path / "broken", resumed, stored)
    tiny.assert_equal_weights(whole, resumed)
    rows = tiny.curve(tmp_path / "broken")
    assert rows == tiny.curve(tmp_path / "whole")
    loss = {
        (row["split"], row["step"]): float(row["value"])
        for row in rows
        if row["metric"] == "nats_per_token_avg" and row["split"] != "train"
    }
    assert loss["val", "1"] == loss["val_raw", "1"] and loss["val", "6"] != loss["val_raw", "6"]
    assert read_run(tmp_path / "broken").val_nats_per_token_avg == loss["val", "6"]
    weights = load_file(tmp_path / "broken/model.safetensors")
    assert torch.equal(weights["head.weight"], resumed.evaluated.head.weight)
    assert not torch.equal(weights["head.weight"], resumed.model.head.weight)
    plain = tiny.task(tokenizer)
    tiny.train(tmp_path / "plain", plain, stored)
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), resumed.model.parameters(), strict=True))


def test_a_curve_that_lost_rows_is_not_continued(
    tiny: Any, tmp_path: Path, stored: TokenCache, tokenizer: VQAutoencoder
) -> None:
    with pytest.raises(RuntimeError, match="dies here"):
        tiny.train(tmp_path, tiny.task(tokenizer), stored, stop_at=4)
    path = tmp_path / CURVE_FILE
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))
    with pytest.raises(RecordError, match=r"4 rows up to step 2, but \d+ had been written"):
        tiny.train(tmp_path, tiny.task(tokenizer), stored)


def test_a_full_disk_is_said_once_and_no_row_is_lost(
    tiny: Any,
    tmp_path: Path,
    stored: TokenCache,
    tokenizer: VQAutoencoder,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From step 1 to 4 the disk takes the first bytes of each file, then nothing."""
    task, whole = tiny.task(tokenizer), tiny.task(tokenizer)
    tiny.train(tmp_path / "whole", whole, stored)

    class Full:
        def __init__(self, file: Any):
            self.file = file

        def write(self, data: Any) -> int:
            if 1 <= task.global_step <= 4:
                self.file.write(bytes(data)[:7])
                self.file.flush()
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: Any) -> None:
            self.file.close()

    def opened(path: Any, mode: str = "r", **_: Any) -> Any:
        file = open(path, mode)  # noqa: SIM115
        return Full(file) if "b" in mode else file

    monkeypatch.setattr(records, "open", opened, raising=False)
    monkeypatch.setattr(Path, "open", opened)
    tiny.train(tmp_path / "full", task, stored)
    tiny.assert_equal_weights(whole, task)
    assert tiny.curve(tmp_path / "whole") == tiny.curve(tmp_path / "full")
    assert read_run(tmp_path / "full").status == "finished"
    refused = [record for record in caplog.records if "could not be written" in record.getMessage()]
    assert 1 <= len(refused) <= 2  # of the records, and of the checkpoints
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_full_output_does_not_end_a_run(
    tiny: Any, tmp_path: Path, stored: TokenCache, tokenizer: VQAutoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job's console log lies on the disk of its run."""

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    logging.getLogger("varscale").addHandler(handler := logging.StreamHandler(Full()))
    monkeypatch.setattr(sys, "stdout", Full())
    monkeypatch.setattr(sys, "stderr", Full())
    try:
        tiny.train(tmp_path, tiny.task(tokenizer), stored)
        logging.getLogger("varscale.training").warning("said to nobody")
    finally:
        logging.getLogger("varscale").removeHandler(handler)
    assert read_run(tmp_path).status == "finished"


def test_a_finished_run_stays_finished(tiny: Any, tmp_path: Path, stored: TokenCache, tokenizer: VQAutoencoder) -> None:
    """Whatever fails after its last word."""

    class Fails(lightning.Callback):
        def on_train_end(self, *_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        tiny.train(tmp_path, tiny.task(tokenizer), stored, callbacks=[Fails()])
    assert read_run(tmp_path).status == "finished" and (tmp_path / "model.safetensors").exists()


def test_lightning_hears_no_signals_of_its_own(
    tiny: Any, tmp_path: Path, stored: TokenCache, tokenizer: VQAutoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below srun it would write a checkpoint within a step on SIGUSR1, and continue from that."""
    variables = {"NTASKS": "1", "JOB_NAME": "run", "JOB_ID": "7", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr("lightning.fabric.plugins.environments.slurm._is_srun_used", lambda: True)
    heard: list[Any] = []

    class Listens(lightning.Callback):
        def on_train_start(self, trainer: lightning.Trainer, *_: Any) -> None:
            assert isinstance(trainer._accelerator_connector.cluster_environment, SLURMEnvironment)
            heard.append(signal.getsignal(signal.SIGUSR1))

    tiny.train(tmp_path, tiny.task(tokenizer), stored, callbacks=[Listens()])
    assert heard == [signal.SIG_DFL]
    # What build_trainer puts out of service is there under these names.
    assert callable(_SignalConnector.register_signal_handlers)
    assert callable(_TrainingEpochLoop._broadcast_sigterm_tensor)


def test_divergence_is_recorded(tiny: Any, tmp_path: Path, stored: TokenCache, tokenizer: VQAutoencoder) -> None:
    task = tiny.task(tokenizer)
    with torch.no_grad():
        task.model.head.weight.fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"loss at step 0 is nan; lower optim\.lr"):
        tiny.train(tmp_path, task, stored)
    assert read_run(tmp_path).status == "diverged"


def test_weights_that_are_not_finite_beside_a_finite_average_diverge(
    tiny: Any, tmp_path: Path, stored: TokenCache, tokenizer: VQAutoencoder
) -> None:
    task = tiny.task(tokenizer, average_gamma=9.0)
    step = task.optimizer_step

    def spoils(*arguments: Any, **settings: Any) -> None:
        step(*arguments, **settings)
        with torch.no_grad():
            task.model.head.weight.fill_(float("nan"))

    task.optimizer_step = spoils  # type: ignore[method-assign]
    with pytest.raises(DivergedError, match=r"nats_per_token_avg \(val_raw\) after step 0 is nan; lower optim\.lr"):
        tiny.train(tmp_path, task, stored)
    assert read_run(tmp_path).status == "diverged"


def test_rows_that_cannot_be_written_fail_after_what_all_processes_do(
    tiny: Any, tmp_path: Path, stored: TokenCache, tokenizer: VQAutoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sharded weights are gathered by all of them: one that had failed before would leave the others waiting."""
    gathered = []
    monkeypatch.setattr("varscale.training.recorder.whole_weights", lambda model: gathered.append(model))
    monkeypatch.setattr(Recorder, "write_rows", lambda self: False)
    with pytest.raises(OSError, match="lacks its last rows"):
        tiny.train(tmp_path, tiny.task(tokenizer), stored)
    assert len(gathered) == 1


@pytest.mark.parametrize("part", ["loss", "gradient"])
def test_divergence_leaves_the_last_good_checkpoint_and_the_images(
    tiny: Any, tmp_path: Path, stored: TokenCache, tokenizer: VQAutoencoder, part: str
) -> None:
    task = tiny.task(tokenizer)
    step = task.training_step

    def poisoned(batch: Any, batch_idx: int) -> Any:
        loss = step(batch, batch_idx)
        if task.global_step == 3:
            if part == "loss":
                task.health.losses[-1] = (3, torch.tensor(torch.inf), True)
            return loss * torch.nan
        return loss

    task.training_step = poisoned  # type: ignore[method-assign]
    with pytest.raises(DivergedError) as raised:
        tiny.train(tmp_path, task, stored, every=tiny.steps)
    write_divergence(
        tmp_path, raised.value, seed=5, batch=tiny.batch, size=32, checkpoint_step=tiny.newest_step(tmp_path)
    )
    assert tiny.newest_step(tmp_path) == 2  # the one of step 4 was refused
    told = json.loads((tmp_path / DIVERGED_FILE).read_text())
    images, epochs = batch_indices(seed=5, step=3, batch=tiny.batch, size=32)
    assert (told["step"], told["images"], told["epochs"]) == (3, images.tolist(), epochs.tolist())
    assert told["checkpoint_step"] == 2 and told["grad_norm"] == "nan"
    assert told["loss"] == "inf" if part == "loss" else told["loss"] > 0
    finite = Checkpoints(tmp_path, tiny.owner).newest()
    assert finite is not None
    weights = torch.load(finite.path, weights_only=True)["state_dict"]
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
