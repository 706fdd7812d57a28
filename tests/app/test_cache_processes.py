"""varscale cache with several processes, however they are started, stopped and killed: the bytes of one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from varscale.app.cli import main
from varscale.app.lock import LOCK_FILE
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.tokenizers.storage import save_tokenizer

IMAGES, SHARD = 3000, 100


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stored tokenizer, untrained."""
    folder = tmp_path_factory.mktemp("tokenizer")
    torch.manual_seed(0)
    save_tokenizer(folder, VQAutoencoder(width=16, blocks=1).eval(), {})
    return folder


def settings(tokenizer: Path, outputs: Path, images: int = IMAGES) -> list[str]:
    return [
        "cache",
        "study=s",
        f"paths.outputs={outputs}",
        f"paths.tokenizer={tokenizer}",
        f"cache.train_images={images}",
        "cache.val_images=50",
        f"cache.shard_images={SHARD}",
        "cache.batch=32",
        "cache.store_inputs=false",
    ]


def contents(outputs: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (outputs / "s/cache").iterdir() if path.name != LOCK_FILE}


def test_what_does_not_fit_is_told(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*changes: str) -> str:
        assert main([*settings(tokenizer, tmp_path, 64), *changes]) == 2
        return capsys.readouterr().err

    assert "trainer.devices=0 and trainer.num_nodes=1 must be at least 1" in refused("trainer.devices=0")
    assert "crops is 2, but the training images of dead_leaves never repeat" in refused("cache.crops=2")
    assert contents(tmp_path) == {}
    assert "did you mean cache.crops" in refused("+cache.crop=2").lower()
    for name, value in {"WORLD_SIZE": 3, "RANK": 1, "LOCAL_RANK": 1, "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, str(value))
    message = refused("trainer.devices=2")
    assert "trainer.devices=2, trainer.num_nodes=1" in message and "world size (3)" in message
    assert "world size (3)" in refused()  # one process of three must not think that it is alone


def test_a_run_says_what_cache_it_was_trained_on(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = settings(tokenizer, tmp_path, 64)
    assert main(common) == 0
    for key, value, found in (("crops", "2", "1"), ("precision", "bf16", "fp32")):
        assert main(["train", *common[1:], "debug=two_steps", "study=s", f"cache.{key}={value}"]) == 2
        assert f"has {key} {found}, but cache.{key} is {value}" in capsys.readouterr().err


class Started:
    """Commands of a test, none of which outlives it."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.processes: list[subprocess.Popen[bytes]] = []

    def __call__(self, *command: str, **variables: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
        with self.log.open("ab") as log:
            # A test run in the background of a script ignores SIGINT and would hand that down.
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdout=log,
                stderr=log,
                env=environment,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
        self.processes.append(process)
        return process

    def said(self) -> str:
        return self.log.read_text()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Started]:
    started = Started(tmp_path / "log")
    yield started
    for process in started.processes:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def alone(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of one process."""
    outputs = tmp_path_factory.mktemp("alone")
    assert main(settings(tokenizer, outputs)) == 0
    return contents(outputs)


def children(process: subprocess.Popen[bytes]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def wait_for_shards(outputs: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(list((outputs / "s/cache").glob("*.shard.json"))) < count:
        assert time.monotonic() < deadline, "no shard was written"
        time.sleep(0.01)


def ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its parent to take notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_killed_interrupted_and_continued(
    start: Started, tokenizer: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    command = ["varscale", *settings(tokenizer, tmp_path), "trainer.devices=2"]
    one_killed = start(*command)
    wait_for_shards(tmp_path, 2)
    victim = children(one_killed)[1]
    os.kill(victim, signal.SIGKILL)
    assert one_killed.wait(60) == 2 and "process 2 of 2 ended with killed by SIGKILL" in start.said()

    interrupted = start(*command)
    wait_for_shards(tmp_path, 8)
    interrupted.send_signal(signal.SIGINT)
    assert interrupted.wait(60) == 130 and "type the same command again" in start.said()

    killed = start(*command, "trainer.workers=1")
    wait_for_shards(tmp_path, 14)
    ranks = children(killed)
    killed.kill()
    deadline = time.monotonic() + 10
    while not all(ended(pid) for pid in ranks):
        assert time.monotonic() < deadline, "a process outlives its parent"
        time.sleep(0.05)

    assert "manifest.json" in contents(tmp_path) and contents(tmp_path) != alone
    assert main(settings(tokenizer, tmp_path)) == 0  # one process where there were two
    assert contents(tmp_path) == alone


@pytest.mark.slow
def test_two_processes_of_one_command(start: Started, tokenizer: Path, alone: dict[str, bytes], tmp_path: Path) -> None:
    assert start("varscale", *settings(tokenizer, tmp_path), "trainer.devices=2").wait(120) == 0, start.said()
    assert contents(tmp_path) == alone


@pytest.mark.slow
def test_two_processes_of_torchrun(start: Started, tokenizer: Path, alone: dict[str, bytes], tmp_path: Path) -> None:
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "varscale"]
    assert start(*torchrun, *settings(tokenizer, tmp_path), "trainer.devices=2").wait(120) == 0, start.said()
    assert contents(tmp_path) == alone


@pytest.mark.slow
def test_two_machines(start: Started, tokenizer: Path, alone: dict[str, bytes], tmp_path: Path) -> None:
    from lightning.fabric.plugins.environments.lightning import find_free_network_port

    command = ["varscale", *settings(tokenizer, tmp_path), "trainer.num_nodes=2"]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
    machines = [start(*command, NODE_RANK=str(rank), **where) for rank in range(2)]
    assert [machine.wait(120) for machine in machines] == [0, 0], start.said()
    assert contents(tmp_path) == alone


@pytest.mark.slow
def test_one_of_the_processes_cannot_go_on(
    start: Started, tokenizer: Path, tmp_path: Path, alone: dict[str, bytes]
) -> None:
    command = ["varscale", *settings(tokenizer, tmp_path), "trainer.devices=2"]
    assert start(*command, "cache.precision=bf17").wait(60) == 2
    assert "unknown precision 'bf17'" in start.said() and "Traceback" not in start.said()
    assert main(settings(tokenizer, tmp_path)) == 0 and contents(tmp_path) == alone
