"""What surviving costs: checkpoints, resumption, health and average, of a run of the quickstart's size.

    python benchmarks/bench_checkpoints.py [--steps 1200] [--threads 1] [--folder FOLDER] [OVERRIDES ...]

Makes a study (a tokenizer of a few steps: it is not what is measured), trains one run at the default interval of
checkpoints (the clock's), and another that is stopped half-way and resumed. Overrides change the run: model.width=64.
Prints JSON, seconds unless named: of a step; of a checkpoint, its bytes, and the share of the run's training time that
all of them took; the same for a checkpoint at every 300 steps; from the start of a run to its first step, fresh and
resumed, in a process that has imported everything, and the imports; of health and average a step, and their share.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from varscale.app.build import device_name
from varscale.app.cli import main as varscale
from varscale.training.averages import PowerAverage
from varscale.training.checkpoints import Checkpoints
from varscale.training.generator_task import GeneratorTask
from varscale.training.health import Health
from varscale.training.saving import Saving

STUDY = [
    "sweeps=quickstart",
    "study=checkpoints",
    "logger.mode=disabled",
    "stage1.steps=20",
    "stage1.val_images=64",
    "cache.train_images=4096",
    "cache.val_images=1000",
    "seed=0",
]
EVERY = 300  # steps, for comparison


class Stopwatch:
    """Sums the seconds spent in some methods, and notes when steps begin."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.steps: list[float] = []
        self.stop_at: int | None = None
        self.bytes = 0
        for owner, names in (
            (Health, ("loss", "gradient", "read")),
            (PowerAverage, ("update",)),
            (Saving, ("save",)),
            (Checkpoints, ("newest", "load_checkpoint")),
        ):
            for name in names:
                setattr(owner, name, self.timed(getattr(owner, name), f"{owner.__name__}.{name}"))
        GeneratorTask.training_step = self.noted(GeneratorTask.training_step)  # type: ignore[method-assign]
        Checkpoints.finish = lambda checkpoints: self.weighed(checkpoints)  # type: ignore[method-assign]

    def reset(self, stop_at: int | None = None) -> None:
        """Begin anew; SIGTERM at step ``stop_at``."""
        self.seconds, self.steps, self.stop_at = {}, [], stop_at

    def timed(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The method, its time added up."""

        def called(*arguments: Any, **settings: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*arguments, **settings)
            finally:
                self.seconds.setdefault(name, []).append(time.perf_counter() - started)

        return called

    def noted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """``training_step``, its beginning noted."""

        def called(task: GeneratorTask, *arguments: Any) -> Any:
            self.steps.append(time.perf_counter())
            if task.global_step == self.stop_at:
                signal.raise_signal(signal.SIGTERM)
            return method(task, *arguments)

        return called

    def weighed(self, checkpoints: Checkpoints) -> None:
        """Instead of removing the checkpoints of a finished run."""
        self.bytes = max((path.stat().st_size for path in checkpoints.folder.glob("*.ckpt")), default=0)

    def step_s(self) -> float:
        """Median seconds from the beginning of a step to that of the next."""
        return statistics.median(b - a for a, b in zip(self.steps, self.steps[1:], strict=False))

    def total(self, prefix: str) -> float:
        """Seconds in the methods of that name."""
        return sum(sum(values) for name, values in self.seconds.items() if name.startswith(prefix))


def run(verb: str, options: argparse.Namespace, folder: Path, *overrides: str, code: int = 0) -> float:
    """Run a verb in this process; the moment it began."""
    given = [*STUDY, f"trainer.threads={options.threads}", f"paths.outputs={folder}", *options.overrides, *overrides]
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        assert varscale([verb, *given]) == code
    return started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("overrides", nargs="*", default=["model.width=64"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    watch = Stopwatch()
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for verb in ("tokenizer", "cache"):
            run(verb, options, folder)
        steps = f"train.steps={options.steps}"
        average = "train.average={kind: power, gamma: 9}"
        results: dict[str, Any] = {
            "overrides": options.overrides,
            "steps": options.steps,
            "device": device_name(torch.device("cpu")),
            "torch": torch.__version__,
        }
        for name, rhythm in (("default", ()), (f"every {EVERY} steps", (f"train.checkpoint_every={EVERY}",))):
            watch.reset()
            run("train", options, folder, steps, average, *rhythm, *apart(folder, name))
            training_s = watch.steps[-1] - watch.steps[0]
            saves = watch.seconds.get("Saving.save", [])
            results[name] = {
                "training_s": training_s,
                "step_s": watch.step_s(),
                "checkpoints": len(saves),
                "checkpoint_s": statistics.median(saves) if saves else None,
                "checkpoint_bytes": watch.bytes,
                "checkpoint_share": sum(saves) / training_s,
                "health_s_a_step": watch.total("Health") / options.steps,
                "health_share": watch.total("Health") / training_s,
                "average_s_a_step": watch.total("PowerAverage") / options.steps,
                "average_share": watch.total("PowerAverage") / training_s,
            }
        half = options.steps // 2
        watch.reset(stop_at=half)
        began = run("train", options, folder, steps, *apart(folder, "resumed"), code=130)
        fresh_s = watch.steps[0] - began
        watch.reset()
        began = run("train", options, folder, steps, *apart(folder, "resumed"))
        assert len(watch.steps) == options.steps - half - 1
        resumed_s = watch.steps[0] - began
        imports = [sys.executable, "-c", "import varscale.app.train"]
        started = time.perf_counter()
        subprocess.run(imports, check=True)
        results["resumption"] = {
            "fresh_to_first_step_s": fresh_s,
            "resumed_to_first_step_s": resumed_s,
            "overhead_s": resumed_s - fresh_s,
            "verify_s": watch.total("Checkpoints.newest"),
            "load_s": watch.total("Checkpoints.load_checkpoint"),
            "imports_s": time.perf_counter() - started,
        }
    print(json.dumps(results, indent=2))


def apart(folder: Path, name: str) -> list[str]:
    """A run folder of its own."""
    return [f"hydra.run.dir={folder}/checkpoints/runs/{name.replace(' ', '_')}"]


if __name__ == "__main__":
    main()
