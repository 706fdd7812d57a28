"""What a device can do (its matrix peak, measured), the memory a run has taken of it, and its random stream."""

from __future__ import annotations

import resource
import sys
import time
from itertools import cycle
from pathlib import Path

import torch
import torch.nn.functional as F

from varscale.nn.linear import linear


def matrix_peak_flops(
    device: torch.device, dtype: torch.dtype, *, rows: int, width: int, seconds: float = 0.1
) -> float:
    """Best FLOP/s of a matrix product at a model's MLP shapes: (rows, C) x (C, 4C) and (rows, 4C) x (4C, C).

    Uses the threads torch has been given; about ``seconds`` are spent on each shape. The best of torch's product and
    the model's own (``varscale.nn.linear``).
    """
    best = 0.0
    for inner, outer in ((width, 4 * width), (4 * width, width)):
        x = torch.randn(rows, inner, device=device, dtype=dtype)
        w = torch.randn(outer, inner, device=device, dtype=dtype)
        flops = 2.0 * rows * inner * outer
        end = time.perf_counter() + seconds
        F.linear(x, w)
        for product in cycle((F.linear, linear)):
            synchronize(device)
            started = time.perf_counter()
            product(x, w)
            synchronize(device)
            best = max(best, flops / (time.perf_counter() - started))
            if time.perf_counter() >= end:
                break
    return best


def peak_memory_bytes(device: torch.device) -> float:
    """Peak memory of the device, or on a CPU of this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the process that started this one, where that was larger
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024.0 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else 1024 * peak)


def synchronize(device: torch.device) -> None:
    """Wait for the device's queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seed_device(device: torch.device, seed: int) -> None:
    """Seed torch's default stream on the CPU and on ``device``.

    ``torch.manual_seed`` would also queue a call, with a formatted stack, for every backend that is not initialised: at
    each step of a run that is 1 to 3 ms, and memory that is never freed.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
