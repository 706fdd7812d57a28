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
import faulthandler
import itertools
import json
import logging
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from killing import Kill, drawn, instrument
from omegaconf import DictConfig, OmegaConf
from study_difference import compare
from tqdm import tqdm

from varscale.app import cache, tokenizer, train
from varscale.app.compose import compose, composing

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
    "train.keep_steps=[30]",  # the last: no run may continue from there
    "logger.mode=disabled",
]
STAGES = ("stage 1", "caching", "stage 2")
SHARES = (0.35, 0.2, 0.45)  # of the kills
CYCLE = 20  # kills of one study
PATIENCE_S = 120.0
_TAIL = 12_000  # characters


@dataclass
class Tally:
    """What happened."""

    kills: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    mismatches: list[str] = field(default_factory=list)
    rows_lost: int = 0
    first_attempt_s: dict[str, float] = field(default_factory=dict)


def study_config(folder: Path, processes: int) -> DictConfig:
    """The checked configuration of a study below ``folder``, the same for every verb."""
    overrides = ["study=kills", f"paths.outputs={folder}/composed", f"trainer.devices={processes}", *SMALL]
    return compose("train", overrides, str(folder))[0]


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
    stopped = False  # by this process
    died = False  # of the kill, whatever the others then made of it before they were stopped too
    while len(codes) < processes:
        for child in children:
            if child not in codes:
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    codes[child] = os.waitstatus_to_exitcode(status)
        now = time.monotonic()
        timed_out, due = now > deadline, moment is not None and now >= moment
        died |= not stopped and (codes.get(children[chosen]) == -signal.SIGKILL or (due and not any(codes.values())))
        if due or timed_out or any(codes.values()):
            stopped = True
            for child in children:  # as torchrun ends the others
                if child not in codes:
                    os.kill(child, signal.SIGKILL)
            moment = None
        if timed_out:
            raise RuntimeError(f"{stage} took more than {PATIENCE_S} s; the end of its log:\n{tail(study)}")
        time.sleep(0.002)
    if not died and any(code not in (0, -signal.SIGKILL) for code in codes.values()):
        raise RuntimeError(f"{stage} ended with {sorted(codes.values())}; the end of its log:\n{tail(study)}")
    return any(codes.values())


def tail(study: Path) -> str:
    """What the processes have said last."""
    return Path(f"{study}.log").read_text()[-_TAIL:]


def become(rank: int, processes: int, port: int, stage: str, cfg: DictConfig, study: Path, kill: Kill | None) -> None:
    """The child: runs the stage and never returns."""
    code = 1
    try:
        with open(f"{study}.log", "a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        tqdm.set_lock(threading.RLock())  # the one over all forked processes stays locked by a process that is killed
        faulthandler.dump_traceback_later(0.9 * PATIENCE_S)  # where it hangs, should it
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
    mismatches, rows_lost = compare(whole, study)
    tally.mismatches += mismatches
    tally.rows_lost += rows_lost


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
        stack.enter_context(composing())
        cfg = study_config(folder, options.processes)
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
