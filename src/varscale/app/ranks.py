"""The processes of a verb that divides its work: one a device, on one machine or several.

Slurm, torchrun and the like start the processes themselves, and Lightning's Fabric finds out from which of them this is
one. Otherwise this command starts one process for each device of its machine, each with the same command line, and
stops all of them when one fails. Several machines without a scheduler: type the command on each, with MASTER_ADDR and
MASTER_PORT of the first and NODE_RANK = 0, 1, ... in the environment.
"""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.fabric.strategies.ddp import DDPStrategy
from omegaconf import DictConfig

from varscale.app.build import device_of
from varscale.app.config import ConfigError
from varscale.app.jobs import INTERRUPTED, command_line
from varscale.app.processes import GRACE_S, available_cores, describe_exit, spawn, stop

LONGEST_WAIT = timedelta(days=30)  # of a process for a slower one
_POLL_S = 0.1
_TAIL_BYTES = 2000


class RankError(ConfigError):
    """A process of the verb has failed; its own message is repeated or pointed at."""


def join(cfg: DictConfig, *, backend: str = "gloo", timeout: timedelta = LONGEST_WAIT) -> Fabric | None:
    """This process's place among those of the verb, and its device; where there are several, all have joined.

    Args:
        backend: of the process group. gloo, on GPUs too, where a few lists travel: it does not occupy a device while a
            process waits.
        timeout: of a process for the others.

    Returns:
        None in a command that had to start the processes itself, once they have done the work.

    Raises:
        ConfigError: if there is no GPU where one is asked for, or the devices and machines are not the scheduler's.
        RankError: if a process failed.
    """
    device_of(cfg)
    devices, nodes = cfg.trainer.devices, cfg.trainer.num_nodes
    if devices < 1 or nodes < 1:
        raise ConfigError(f"trainer.devices={devices} and trainer.num_nodes={nodes} must be at least 1")
    strategy = DDPStrategy(process_group_backend=backend, timeout=timeout)
    fabric = Fabric(accelerator=cfg.trainer.accelerator, devices=devices, num_nodes=nodes, strategy=strategy)
    environment = strategy.cluster_environment
    assert environment is not None
    try:
        environment.validate_settings(devices, nodes)
    except ValueError as error:
        raise ConfigError(f"trainer.devices={devices}, trainer.num_nodes={nodes}: {error}") from error
    if devices > 1 and not environment.creates_processes_externally:
        _run_ranks(devices, Path(cfg.paths.study) / "logs")
        return None
    if devices * nodes > 1:
        logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # lines about ranks and backends
        fabric.launch()
    return fabric


def _run_ranks(count: int, folder: Path) -> None:
    """Run this command line in ``count`` processes. The first speaks here, the others into files in ``folder``."""
    hydra = HydraConfig.get()
    verb = hydra.job.config_name
    command = command_line([sys.executable, "-m", "varscale"], hydra, hydra.overrides.task, without=("hydra.mode",))
    port = os.environ.get("MASTER_PORT", str(find_free_network_port()))
    threads = None if "OMP_NUM_THREADS" in os.environ else max(1, available_cores() // count)
    consoles = [None, *(folder / f"{verb}-process-{number}.log" for number in range(2, count + 1))]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank, console in enumerate(consoles):
            if console is not None:
                console.unlink(missing_ok=True)
            variables = {"LOCAL_RANK": str(rank), "MASTER_PORT": port}
            processes.append(spawn(command, console=console, threads=threads, variables=variables))
        codes = _wait(processes)
    finally:
        stop(processes, grace_s=GRACE_S)
    for number, (code, console) in enumerate(zip(codes, consoles, strict=True), start=1):
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            raise RankError(f"process {number} of {count} ended with {describe_exit(code)}; {_said(console)}")


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> list[int | None]:
    """The exit codes once all have ended, or one has failed (None for those that still run then).

    Where one was interrupted all stop at its step, and get time to leave by themselves: the first one writes most.
    """
    deadline = math.inf
    while True:
        codes = [process.poll() for process in processes]
        if None not in codes or set(codes) - {None, 0, INTERRUPTED} or time.monotonic() > deadline:
            return codes
        if INTERRUPTED in codes:
            deadline = min(deadline, time.monotonic() + GRACE_S)
        time.sleep(_POLL_S)


def _said(console: Path | None) -> str:
    if console is None:
        return "what it says is above"
    return f"the end of {console}:\n{console.read_bytes()[-_TAIL_BYTES:].decode(errors='replace').strip()}"
