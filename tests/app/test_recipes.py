"""The 512 px recipe for two steps at toy size: every key it sets is used by the verbs in a row."""

from __future__ import annotations

from pathlib import Path

import pytest

from varscale.app.cli import main
from varscale.records import read_run

TOY = [
    "experiment=var_d36_512", "debug=two_steps", "data=dead_leaves", "data.resolution=32", "tokenizer=patch32",
    "tokenizer.resolution=32", "tokenizer.schedule=1-2-3-4-6-8", "trainer=cpu", "trainer.accumulate=1",
    "cache.crops=1", "model.depth=1", "train.steps=5", "optim.warmup=0.2",
]  # fmt: skip


def test_the_progressive_recipe_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = [*TOY, f"paths.outputs={tmp_path}"]
    for verb in ("plan", "tokenizer", "cache", "train"):
        assert main([verb, *common]) == 0, capsys.readouterr().out
    (folder,) = (tmp_path / "debug/runs").iterdir()
    run = read_run(folder)
    # Scale 4 is the finest for the first three of five steps, then all six are trained: 66 tokens, then 130.
    assert (run.status, run.width, run.lr_schedule) == ("finished", 64, "linear, knee 0.8")
    assert run.images_seen == 10.0 and run.tokens_seen == 2.0 * (3 * 66 + 2 * 130)
    assert run.flops_train == pytest.approx(run.budget_flops)
    assert run.lr_peak == pytest.approx(8e-5 * 2 / 256)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.progressive.first=0", "start with scale 1 or a finer one"),
        ("optim.knee=0.5", "optim.knee=0.8"),
        ("train.progressive.frist=4", "progressive"),
    ],
)
def test_bad_settings(override: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *TOY, f"paths.outputs={tmp_path}", override]) == 2
    said = capsys.readouterr()
    assert message in said.out + said.err and "Traceback" not in said.err
