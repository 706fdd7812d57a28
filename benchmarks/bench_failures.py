"""A sweep of 16 runs, four killed at random, one dying of segmentation faults, one diverging: launched twice.

    python benchmarks/bench_failures.py [--seed 0] [--steps 400] [--folder FOLDER]

The real command line, on a small quickstart. Four runs are ended by SIGKILL at a random moment of their training and
started again by the launcher; one segfaults, the second time as well, and stays ``failed``; one has a rate at which it
diverges. The second launch allows one more crash. Then 15 runs must have finished with the rows of a sweep that nothing
disturbed, and none that was finished may have been started again. Prints JSON and both tables.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

RUNS, KILLED, SEGFAULT, DIVERGING = 16, 4, 4, 15  # the last two are seeds
STUDY = """# @package _global_
# What it shows: what a sweep makes of runs that die.
defaults:
  - quickstart
  - _self_
  - override /hydra/sweeper: runs
study: {study}
design: failures
stage1: {{steps: 40, batch: 16, val_images: 64}}
cache: {{train_images: 2000, val_images: 200}}
train: {{steps: {steps}, evaluations: 4, val_images: 200, checkpoint_every: 50}}
logger: {{mode: disabled}}
paths: {{outputs: {outputs}, tokenizer: {outputs}/whole/tokenizer, cache: {outputs}/whole/cache}}
analysis: {{holdout: null}}
hydra:
  sweeper:
    params: null
    runs: {runs}
"""
PROGRAM = """
import ctypes, json, os, random, runpy, signal, sys, threading, time
from pathlib import Path

folder = Path(os.environ["VARSCALE_FAILURES"])
seed = next(argument for argument in sys.argv if argument.startswith("seed="))
plan = json.loads((folder / "plan.json").read_text()).get(seed, {"times": 0})
done = len(list(folder.glob(seed + ".*")))


def die():
    run = Path(next(a for a in sys.argv if a.startswith("hydra.run.dir=")).split("=", 1)[1].strip("'"))
    while not (run / "curve.csv").exists():
        time.sleep(0.01)
    time.sleep(plan["after_s"])
    (folder / f"{seed}.{done}").touch()
    if plan["kind"] == "segfault":
        ctypes.string_at(0)
    os.kill(os.getpid(), signal.SIGKILL)


if done < plan["times"]:
    threading.Thread(target=die, daemon=True).start()
runpy.run_module("varscale", run_name="__main__", alter_sys=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--folder", type=Path, help="kept; otherwise a temporary one")
    options = parser.parse_args()
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        bench(options.folder.absolute(), options.seed, options.steps)
        return
    with tempfile.TemporaryDirectory() as folder:
        bench(Path(folder), options.seed, options.steps)


def bench(folder: Path, seed: int, steps: int) -> None:
    rng = random.Random(seed)
    killed = rng.sample([s for s in range(RUNS) if s not in (SEGFAULT, DIVERGING)], KILLED)
    plan = {f"seed={s}": {"kind": "kill", "times": 1, "after_s": rng.uniform(0, 2)} for s in killed}
    plan[f"seed={SEGFAULT}"] = {"kind": "segfault", "times": 2, "after_s": rng.uniform(0, 1)}
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "program.py").write_text(PROGRAM)
    (folder / "sweeps").mkdir(exist_ok=True)
    runs = [["model.width=8", f"seed={s}", *(["optim.lr=1e30"] if s == DIVERGING else [])] for s in range(RUNS)]
    for study in ("whole", "disturbed"):
        text = STUDY.format(study=study, steps=steps, outputs=folder, runs=json.dumps(runs))
        (folder / "sweeps" / f"{study}.yaml").write_text(text)
    for verb in ("tokenizer", "cache"):
        varscale(folder, verb, "whole")
    varscale(folder, "train", "whole")
    program = f'hydra.launcher.program=["{sys.executable}","{folder}/program.py"]'
    first = varscale(folder, "train", "disturbed", program)
    starts = {path.parent.name: json.loads(path.read_text())["starts"] for path in attempts(folder)}
    finished = {path.parent.name for path in attempts(folder) if "finished" in path.read_text()}
    second = varscale(folder, "train", "disturbed", program, "hydra.launcher.retries=2")
    again = {path.parent.name: json.loads(path.read_text())["starts"] for path in attempts(folder)}
    tables = {}
    for study in ("whole", "disturbed"):
        varscale(folder, "collect", study)
        tables[study] = pd.read_csv(folder / study / "runs.csv").set_index("run_id").sort_index()
    same = ["status", "steps", "tokens_seen", "flops_train", "val_nats_per_token_avg", "val_nats_per_token_last"]
    curves = {study: len(pd.read_csv(folder / study / "curves.csv")) for study in tables}
    result = {
        "killed_seeds": sorted(killed),
        "exit_codes": [first.returncode, second.returncode],
        "statuses": tables["disturbed"]["status"].value_counts().to_dict(),
        "rows_equal_to_the_undisturbed_sweep": bool(tables["whole"][same].equals(tables["disturbed"][same])),
        "curve_rows": curves,
        "finished_runs_started_again": sum(again[name] > starts[name] for name in finished),
    }
    print(json.dumps(result, indent=2))
    for launch, ran in (("first", first), ("second", second)):
        lines = ran.stderr.splitlines()
        begin = max(i for i, line in enumerate(lines) if line.startswith("run "))
        print(f"\n{launch} launch, exit code {ran.returncode}\n" + "\n".join(lines[begin : begin + RUNS + 1]))


def attempts(folder: Path) -> list[Path]:
    return sorted((folder / "disturbed" / "runs").glob("*/attempts.json"))


def varscale(folder: Path, verb: str, study: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    sweep = ["-m"] if verb == "train" else []
    command = [sys.executable, "-m", "varscale", verb, "-cd", str(folder), *sweep, f"sweeps={study}", *arguments]
    environment = os.environ | {"VARSCALE_FAILURES": str(folder)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    if ran.returncode not in (0, 1):
        sys.exit(f"{' '.join(command)}\n{ran.stderr}")
    return ran


if __name__ == "__main__":
    main()
