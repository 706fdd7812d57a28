"""Kills of a training process: where they are placed in the code that runs, and which are drawn.

By SIGKILL, from within: before a step's forward pass, after the optimiser or after the records; at an operation on the
disk, within the bytes of a write; or at one on a checkpoint. Kills by the clock come from without.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varscale import records
from varscale.app import run_row, train
from varscale.cache import writer
from varscale.training.checkpoints import Checkpoints
from varscale.training.generator_task import GeneratorTask
from varscale.training.tokenizer_task import TokenizerTask

KINDS = ("clock", "step", "disk", "checkpoint")
BATCHES = "batches.txt"  # beside the study: what each step was trained on, as "stage rank step hash"


@dataclass(frozen=True)
class Kill:
    """How an attempt ends: ``count`` operations or steps of its kind from now, or ``count`` milliseconds."""

    kind: str
    count: int
    place: str = ""
    share: float = 0.5  # of the bytes of a write


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def instrument(stage: str, rank: int, study: Path, kill: Kill | None) -> None:
    """Note the batch of every step, keep the last checkpoints of a finished run, and place the kill."""
    train.matrix_peak_flops = lambda *_, **__: 1e12  # type: ignore[assignment]
    run_row.git_state = lambda: (None, None)  # of the run's record: somebody may commit in the meantime
    Checkpoints.finish = lambda self: None  # type: ignore[method-assign]
    left = kill.count if kill is not None else 0

    def reached(place: str) -> bool:
        nonlocal left
        if kill is None or kill.kind != "step" or kill.place != place:
            return False
        left -= 1
        return left < 0

    def before(original: Callable[..., Any], place: str, note: bool = False) -> Callable[..., Any]:
        def called(*arguments: Any, **settings: Any) -> Any:
            if note:
                task, batch = arguments[:2]
                tensors = [value for value in vars(batch).values() if value is not None]
                digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in tensors)).hexdigest()[:16]
                with open(f"{study}.{BATCHES}", "a") as file:
                    file.write(f"{stage}, {rank}, {task.global_step}.{arguments[2] % 2}, {digest}\n")
            if reached(place):
                die()
            return original(*arguments, **settings)

        return called

    for task in (GeneratorTask, TokenizerTask):
        task.training_step = before(task.training_step, "forward", note=True)  # type: ignore[method-assign]
        task.on_train_batch_end = before(task.on_train_batch_end, "records")  # type: ignore[method-assign]
        step = task.optimizer_step

        def stepped(self: Any, *arguments: Any, step: Callable[..., Any] = step, **settings: Any) -> None:
            step(self, *arguments, **settings)
            if reached("optimiser"):
                die()

        task.optimizer_step = stepped  # type: ignore[method-assign]
    writer.encode = before(writer.encode, "forward")  # type: ignore[assignment]
    if kill is not None and kill.kind in ("disk", "checkpoint"):
        instrument_disk(kill)


def instrument_disk(kill: Kill) -> None:
    """Kill at an operation on a file: within the bytes of a write, or before it."""
    left = kill.count

    def reached(name: object) -> bool:
        nonlocal left
        if kill.kind == "checkpoint" and "step_" not in str(name):
            return False
        left -= 1
        return left < 0

    class Broken:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: Any) -> int:
            if reached(self.file.name):
                self.file.write(bytes(data)[: int(kill.share * len(bytes(data)))])
                self.file.flush()
                die()
            return int(self.file.write(data))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> Broken:
            return self

        def __exit__(self, *_: Any) -> None:
            self.file.close()

    def opened(path: Any, mode: str = "r", *_: Any, **__: Any) -> Any:
        file = open(path, mode)  # noqa: SIM115
        return Broken(file) if mode in ("wb", "r+b") else file

    records.open = opened  # type: ignore[attr-defined]
    Path.open = opened  # type: ignore[method-assign, assignment]

    def watched(original: Callable[..., Any], named: bool = True) -> Callable[..., Any]:
        def called(*arguments: Any, **settings: Any) -> Any:
            if reached(arguments[0] if named else ""):
                die()
            return original(*arguments, **settings)

        return called

    os.replace = watched(os.replace)
    os.fsync = watched(os.fsync, named=False)
    Path.unlink = watched(Path.unlink)  # type: ignore[method-assign]


def drawn(rng: random.Random, stage: str, typical_ms: float) -> Kill:
    """A random way to end, soon enough that several attempts are needed."""
    kind = rng.choice(KINDS if stage != "caching" else ("clock", "step", "disk"))
    if kind == "clock":
        return Kill(kind, int(rng.uniform(0, 0.6) * typical_ms))
    if kind == "step":
        place = rng.choice(("forward", "optimiser", "records") if stage != "caching" else ("forward",))
        return Kill(kind, rng.randrange(6), place)
    return Kill(kind, rng.randrange(25 if kind == "disk" else 12), share=rng.random())
