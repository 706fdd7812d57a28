"""The proof of exact resumption: kills training processes again and again, and compares with a run that was left alone.

    python benchmarks/bench_kills.py [--kills 200] [--seed 0] [--processes 1] [--folder FOLDER]

A tiny study goes through stage 1, caching and stage 2 (with a weight average and micro-batches). Each attempt is a
process of its own, forked from this one, that runs the application's code and is ended by SIGKILL: at a random moment
by the clock; at a random step, before its forward pass, after the optimiser or after its records; at a random operation
on the disk, within the bytes of a write; or at one on a checkpoint. The next attempt continues, until one finishes. All
that must not depend on the kills is then compared bit by bit: weights, optimiser, average, schedule, random streams of
the last two checkpoints, the final weights, the rows of the records, every byte of the cache, and the batch of every
step of every attempt. Prints JSON: kills by stage and kind, starts, and what differed.

With --processes N every attempt is N processes that train together (gloo); the kill meets one of them, and the others
are ended as torchrun would.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import itertools
import json
import logging
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file

from varscale import records
from varscale.app import cache, tokenizer, train
from varscale.app.config import checked, reference
from varscale.app.entry import SweepsSearchPath
from varscale.app.launcher import register
from varscale.app.resources import conf_folder
from varscale.cache import writer
from varscale.training.checkpoints import CHECKPOINTS, Checkpoints, described
from varscale.training.generator_task import GeneratorTask
from varscale.training.tokenizer_task import TokenizerTask

SMALL = [
    "data.resolution=16",
    "tokenizer.resolution=16",
    "tokenizer.schedule=1-2-4",
    "tokenizer.vocabulary=16",
    "tokenizer.latent_channels=4",
    "tokenizer.width=8",
    "tokenizer.blocks=1",
    "stage1.steps=24",
    "stage1.batch=8",
    "stage1.val_images=8",
    "stage1.validate_every=5",
    "stage1.checkpoint_every=3",
    "stage1.ema_decay=0.9",
    "cache.train_images=64",
    "cache.val_images=8",
    "cache.shard_images=8",
    "cache.batch=4",
    "model.width=16",
    "train.steps=30",
    "train.batch=8",
    "trainer.accumulate=2",
    "train.average={kind: power, gamma: 9}",
    "train.evaluations=6",
    "train.val_images=8",
    "train.checkpoint_every=3",
    "logger.mode=disabled",
]
STAGES = ("stage 1", "caching", "stage 2")
SHARES = (0.35, 0.2, 0.45)  # of the kills
KINDS = ("clock", "step", "disk", "checkpoint")
CYCLE = 20  # kills of one study
# What a clock decides.
UNLIKE = ("wall_s", "training_s", "images_per_s", "created_utc", "mfu", "peak_mem_bytes")
PATIENCE_S = 120.0
BATCHES = "batches.txt"  # beside the study: what each step was trained on, as "stage rank step hash"


@dataclass(frozen=True)
class Kill:
    """How an attempt ends: ``count`` operations or steps of its kind from now, or ``count`` milliseconds."""

    kind: str
    count: int
    place: str = ""
    share: float = 0.5  # of the bytes of a write


@dataclass
class Tally:
    """What happened."""

    kills: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    mismatches: list[str] = field(default_factory=list)
    rows_lost: int = 0
    first_attempt_s: dict[str, float] = field(default_factory=dict)


def compose(folder: Path, processes: int) -> DictConfig:
    """The checked configuration of a study below ``folder``, the same for every verb."""
    Plugins.instance().register(SweepsSearchPath)
    register()
    overrides = ["study=kills", f"paths.outputs={folder}/composed", f"trainer.devices={processes}", *SMALL]
    with initialize_config_dir(config_dir=str(conf_folder("train")), version_base="1.3"):
        composed = GlobalHydra.instance().config_loader().load_configuration("train", overrides, run_mode=RunMode.RUN)
        OmegaConf.set_struct(composed, False)
        composed.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(composed)
        hydra = composed.pop("hydra")
        return checked(composed, reference(hydra))


def run_stage(stage: str, cfg: DictConfig, study: Path) -> None:
    """What the verb does."""
    if stage == "stage 1":
        tokenizer.main(cfg)
    elif stage == "caching":
        cache.main(cfg)
    else:
        hydra = HydraConfig.instance().cfg
        assert hydra is not None
        OmegaConf.set_readonly(hydra.hydra, False)
        hydra.hydra.runtime.output_dir = str(study / "runs/single")
        train.main(cfg)


def attempt(stage: str, cfg: DictConfig, study: Path, kill: Kill | None, processes: int, chosen: int) -> bool:
    """One start of a stage. Whether it was killed; raises ``RuntimeError`` when it failed instead."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            become(rank, processes, port, stage, cfg, study, kill if rank == chosen else None)
        children.append(child)
    moment = time.monotonic() + kill.count / 1000 if kill is not None and kill.kind == "clock" else None
    deadline = time.monotonic() + PATIENCE_S
    codes: dict[int, int] = {}
    while len(codes) < processes:
        for child in children:
            if child not in codes:
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    codes[child] = os.waitstatus_to_exitcode(status)
        now = time.monotonic()
        timed_out = now > deadline
        if (moment is not None and now >= moment) or timed_out or any(codes.values()):
            for child in children:  # as torchrun ends the others
                if child not in codes:
                    os.kill(child, signal.SIGKILL)
            moment = None
        if timed_out:
            raise RuntimeError(f"{stage} took more than {PATIENCE_S} s; see {study}.log")
        time.sleep(0.002)
    if any(code not in (0, -signal.SIGKILL) for code in codes.values()):
        raise RuntimeError(f"{stage} ended with {sorted(codes.values())}; see {study}.log")
    return any(codes.values())


def become(rank: int, processes: int, port: int, stage: str, cfg: DictConfig, study: Path, kill: Kill | None) -> None:
    """The child: runs the stage and never returns."""
    code = 1
    try:
        with open(f"{study}.log", "a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        if processes > 1:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "kills"}
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
            os.environ |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        instrument(stage, rank, study, kill)
        run_stage(stage, cfg, study)
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def instrument(stage: str, rank: int, study: Path, kill: Kill | None) -> None:
    """Note the batch of every step, keep the last checkpoints of a finished run, and place the kill."""
    train.matrix_peak_flops = lambda *_, **__: 1e12  # type: ignore[assignment]
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


def study_of(folder: Path, name: str, cfg: DictConfig) -> tuple[Path, DictConfig]:
    """The folder of the study ``name``, and the configuration of all its stages."""
    study = folder / name / "kills"
    study.parent.mkdir(exist_ok=True)
    moved = OmegaConf.to_yaml(cfg).replace(cfg.paths.outputs, str(study.parent))
    return study, OmegaConf.create(moved)  # type: ignore[return-value]


def cycle(
    folder: Path, number: int, whole: Path, cfg: DictConfig, kills: dict[str, int], options: Any, tally: Tally
) -> None:
    """One study, killed ``kills`` times in each stage, compared with ``whole``."""
    rng = random.Random(f"{options.seed} {number}")
    study, cfg = study_of(folder, f"killed{number}", cfg)
    for stage in STAGES:
        done = 0
        while True:
            kill = None
            if done < kills[stage]:
                kill = drawn(rng, stage, 1000 * tally.first_attempt_s[stage])
            tally.starts += 1
            chosen = rng.randrange(options.processes)
            if kill is not None and kill.kind in ("disk", "checkpoint"):
                chosen = 0  # it alone writes
            killed = attempt(stage, cfg, study, kill, options.processes, chosen)
            if not killed:
                break
            assert kill is not None
            done += 1
            tally.kills[stage] += 1
            tally.kinds[kill.kind] += 1
    compare(whole, study, tally)


def compare(whole: Path, study: Path, tally: Tally) -> None:
    """Note everything that differs and must not."""
    differ = tally.mismatches.append
    for name in ("tokenizer/tokenizer.safetensors", "runs/single/model.safetensors"):
        one, other = load_file(whole / name), load_file(study / name)
        for key in sorted(one.keys() | other.keys()):
            if key not in one or key not in other or not torch.equal(one[key], other[key]):
                differ(f"{study.parent.name}/{name}: {key}")
    for name in sorted(path.name for path in (whole / "cache").iterdir() if path.suffix in (".npy", ".json")):
        if (whole / "cache" / name).read_bytes() != (study / "cache" / name).read_bytes():
            differ(f"{study.parent.name}/cache/{name}")
    for name in ("tokenizer/metrics.csv", "runs/single/curve.csv"):
        one, other = rows(whole / name), rows(study / name)
        tally.rows_lost += max(0, len(one) - len(other))
        if one != other:
            differ(f"{study.parent.name}/{name}")
    for name in ("tokenizer/tokenizer.json", "runs/single/run.json"):
        one, other = (json.loads((folder / name).read_text()) for folder in (whole, study))
        if stripped(one) != stripped(other):
            differ(f"{study.parent.name}/{name}")
    for name in ("tokenizer", "runs/single"):
        one, other = described(whole / name / CHECKPOINTS), described(study / name / CHECKPOINTS)
        if not one or [c.step for c in one] != [c.step for c in other]:
            differ(f"{study.parent.name}/{name}: checkpoints of other steps")
            continue
        for mine, its in zip(one, other, strict=True):
            if (flaw := its.flaw()) is not None:
                differ(f"{its.path}: {flaw}")
            for where in differences(read(mine.path), read(its.path)):
                differ(f"{its.path}: {where}")
    expected = batches(whole)
    if {key: {digest} for key, digest in expected.items()} != collected(study):
        differ(f"{study.parent.name}: batches of some steps")
    left = [path for path in study.rglob(".*.tmp") if path.parent.name != "cache"]
    if left:
        differ(f"{study.parent.name}: left behind {left}")


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file of measurements, without those of the clock."""
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["metric"] not in UNLIKE]


def stripped(values: Any) -> Any:
    """Nested values without those of the clock."""
    if isinstance(values, dict):
        return {key: stripped(value) for key, value in values.items() if key not in UNLIKE}
    if isinstance(values, list):
        return [stripped(value) for value in values if not (isinstance(value, dict) and value.get("metric") in UNLIKE)]
    return values


def read(path: Path) -> Any:
    """A checkpoint of one file."""
    return stripped(torch.load(path, map_location="cpu", weights_only=True))


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Places at which two checkpoints differ; tensors are compared bit by bit."""
    if type(one) is not type(other):
        yield where
    elif isinstance(one, dict):
        for key in sorted(one.keys() | other.keys(), key=str):
            yield from differences(one.get(key), other.get(key), f"{where}/{key}")
    elif isinstance(one, list | tuple):
        if len(one) != len(other):
            yield where
        for number, (a, b) in enumerate(zip(one, other, strict=False)):
            yield from differences(a, b, f"{where}/{number}")
    elif isinstance(one, torch.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape or not torch.equal(one, other):
            yield where
    elif one != other:
        yield where


def collected(study: Path) -> dict[str, set[str]]:
    """The hashes of all batches that each step of any attempt was trained on."""
    found: dict[str, set[str]] = {}
    for line in Path(f"{study}.{BATCHES}").read_text().splitlines():
        key, _, digest = line.rpartition(", ")
        found.setdefault(key, set()).add(digest)
    return found


def batches(study: Path) -> dict[str, str]:
    """The hash of the batch of every step of a run that was left alone."""
    return {key: digest for key, (digest,) in collected(study).items()}


def planned(kills: int) -> dict[str, int]:
    """How many kills each stage gets."""
    first, second = round(SHARES[0] * kills), round(SHARES[1] * kills)
    return dict(zip(STAGES, (first, second, kills - first - second), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the studies are written and stay; by default nowhere")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        tally = Tally()
        cfg = compose(folder, options.processes)
        whole, alone = study_of(folder, "whole", cfg)
        for stage in STAGES:
            begun = time.perf_counter()
            attempt(stage, alone, whole, None, options.processes, 0)
            tally.first_attempt_s[stage] = time.perf_counter() - begun
        left = planned(options.kills)
        for number in itertools.count():
            before = tally.kills.copy()
            cycle(folder, number, whole, cfg, {s: min(planned(CYCLE)[s], left[s]) for s in STAGES}, options, tally)
            left = {stage: left[stage] - (tally.kills[stage] - before[stage]) for stage in STAGES}
            if not any(left.values()):
                break
    result = {
        "processes": options.processes,
        "kills": tally.kills.total(),
        "kills_by_stage": dict(tally.kills),
        "kills_by_kind": dict(tally.kinds),
        "starts": tally.starts,
        "bitwise_mismatches": len(tally.mismatches),
        "mismatches": tally.mismatches[:20],
        "rows_lost": tally.rows_lost,
        "uninterrupted_s": tally.first_attempt_s,
        "seconds": time.perf_counter() - started,
        "torch": torch.__version__,
    }
    print(json.dumps(result, indent=2))
    if tally.mismatches or tally.rows_lost:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
