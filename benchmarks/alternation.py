"""Contestants timed in turn: a round runs each once, so that a busy machine disturbs all alike.

Between two rounds the matrix peak may be measured, which shares of the peak are taken of.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from tqdm import tqdm

from varscale.training.device import synchronize

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Timing:
    """Seconds of every round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def minimum(self) -> float:
        return min(self.seconds)


def alternate(
    contestants: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    device: torch.device = CPU,
    between: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Time each contestant ``rounds`` times after ``warmup`` rounds; ``between`` is called before every round."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for i in tqdm(range(warmup + rounds), desc=" / ".join(contestants), unit="round", leave=False):
        if between is not None:
            between()
        for name, run in contestants.items():
            synchronize(device)
            started = time.perf_counter()
            run()
            synchronize(device)
            if i >= warmup:
                seconds[name].append(time.perf_counter() - started)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def machine(device: torch.device = CPU) -> dict[str, object]:
    """What the numbers were measured on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }


def processor() -> str:
    """The name of the processor, as Linux tells it, else its architecture."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows of equal keys as a table; numbers with three digits."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([text(value) for value in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def text(value: object) -> str:
    """A cell."""
    return ("" if value is None else f"{value:.3g}") if isinstance(value, float | None) else str(value)
