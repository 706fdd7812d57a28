"""A quickstart that is interrupted again and again, by Ctrl-C and by SIGKILL, ends in the table of one that is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

SMALL = [
    "study=small",
    "stage1.steps=60",
    "stage1.batch=16",
    "stage1.checkpoint_every=10",
    "cache.train_images=1024",
    "cache.val_images=64",
    "cache.shard_images=128",
    "train.steps=120",
    "train.batch=8",
    "train.checkpoint_every=10",
    "train.evaluations=3",
    "analysis.bootstrap=50",
    "sample.images=1",
    "logger.mode=disabled",
]
# What a clock, a process, a path or a commit in the meantime decides.
UNLIKE = ("created_utc", "wall_s", "mfu", "peak_mem_bytes", "git_sha", "git_dirty")
KILLS = ((signal.SIGINT, 12.0), (signal.SIGKILL, 20.0), (signal.SIGINT, 30.0), (signal.SIGKILL, 35.0))


def hear_ctrl_c() -> None:
    """A test run in the background of a script ignores SIGINT and would hand that down."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start(outputs: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "varscale", "quickstart", *SMALL, f"paths.outputs={outputs}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (outputs.parent / f"{outputs.name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, preexec_fn=hear_ctrl_c)


def result(outputs: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, object]]:
    folder = outputs / "small"
    runs = pd.read_csv(folder / "runs.csv").drop(columns=list(UNLIKE))
    curves = pd.read_csv(folder / "curves.csv").query("metric != 'images_per_s'").reset_index(drop=True)
    return runs, curves, json.loads((folder / "fit.json").read_text())


@pytest.mark.slow
def test_the_table_is_the_same(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(whole).wait(timeout=900) == 0
    outcomes = []
    for kind, seconds in KILLS:
        process = start(broken)
        time.sleep(seconds)
        process.send_signal(kind)
        outcomes.append(process.wait(timeout=120))
    assert outcomes == [130, -9, 130, -9]  # none was done before it was interrupted
    assert start(broken).wait(timeout=900) == 0
    for one, other in zip(result(whole)[:2], result(broken)[:2], strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    fits = [result(outputs)[2] for outputs in (whole, broken)]
    for fit in fits:
        for of_the_time in ("created_utc", "sha256"):  # the latter is a hash of the former too
            fit["prediction"].pop(of_the_time)  # type: ignore[union-attr]
        for size in fit["sizes"]:  # type: ignore[attr-defined]
            size["means"].pop("wall_s"), size["spreads"].pop("wall_s")
    assert fits[0] == fits[1]
