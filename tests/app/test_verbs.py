"""The verbs in a row, each for two steps in this process, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from varscale.app import plan
from varscale.app.cli import main
from varscale.app.quickstart import verbs
from varscale.models.budget import StepMemory
from varscale.records import read_run

WIDTHS = (8, 16, 24, 32)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose every verb has run, in ``outputs/debug``."""
    outputs = tmp_path_factory.mktemp("outputs")
    assert main(["plan", *common(outputs)]) == 0
    assert main(["tokenizer", *common(outputs)]) == 0
    assert main(["cache", *common(outputs)]) == 0
    for width in WIDTHS:
        assert main(["train", *common(outputs), *run(width)]) == 0
    for verb in ("collect", "sample", "fit", "report"):
        assert main([verb, *common(outputs)]) == 0
    return outputs / "debug"


def common(outputs: Path) -> list[str]:
    return ["sweeps=quickstart", "debug=two_steps", f"paths.outputs={outputs}", "analysis.bootstrap=20"]


def run(width: int) -> list[str]:
    return [f"model.width={width}", "seed=0"]


def test_every_stage_leaves_its_files(study: Path) -> None:
    expected = ["plan.json", "tokenizer/tokenizer.json", "tokenizer/reconstructions.png", "tokenizer/metrics.csv"]
    expected += ["cache/manifest.json", "runs.csv", "curves.csv", "fit.json", "report.html"]
    for width in WIDTHS:
        names = ("run.json", "curve.csv", "config.yaml", "model.safetensors", "samples.png", "coarse_to_fine.png")
        expected += [f"runs/model.width={width},seed=0/{name}" for name in names]
    views = ("coarse_to_fine.gif", "attention_shares.png", "attention_scales.png", "attention_heads.png")
    expected += [f"runs/model.width={WIDTHS[-1]},seed=0/{name}" for name in views]
    assert [name for name in expected if not (study / name).is_file()] == []
    assert not (study / f"runs/model.width={WIDTHS[0]},seed=0/coarse_to_fine.gif").exists()  # of the largest only
    Image.open(study / "runs/model.width=8,seed=0/samples.png").verify()


def test_a_run_records_itself(study: Path) -> None:
    record = read_run(study / "runs/model.width=16,seed=0")
    assert (record.status, record.width, record.images_seen, record.tokens_seen) == ("finished", 16, 4.0, 520.0)
    assert record.study == "debug" and record.design == "quickstart" and record.label_drop == 0.1
    plan = json.loads((study / "plan.json").read_text())["runs"]
    planned = {tuple(entry["overrides"]): entry for entry in plan}[("model.width=16", "seed=0")]
    for column in ("params_total", "params_token", "params_image", "params_embed", "params_head"):
        assert planned[column] == getattr(record, column)
    assert planned["flops"] == pytest.approx(record.flops_train) == pytest.approx(record.budget_flops)


def test_the_report_is_self_contained(study: Path) -> None:
    page = (study / "report.html").read_text()
    assert 'src="http' not in page and 'href="http' not in page
    assert page.count('src="data:image/gif;base64,') == 1
    for word in (
        "Reconstructions, scale by scale",
        "Samples, width 8",
        "Coarse to fine",
        "params_nonembed",
        "head by head",
    ):
        assert word in page


def test_launching_again_trains_nothing(study: Path) -> None:
    outputs = study.parent
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*") if path.is_file()}
    assert main(["tokenizer", *common(outputs)]) == 0
    assert main(["train", *common(outputs), *run(8)]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in study.rglob("*") if path.is_file()}


def test_other_settings_do_not_overwrite(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = study.parent
    assert main(["tokenizer", *common(outputs), "stage1.steps=3"]) == 2
    assert "study=NAME" in capsys.readouterr().err
    folder = f"hydra.run.dir={study}/runs/model.width\\=8\\,seed\\=0"
    assert main(["train", *common(outputs), *run(8), "train.steps=3", folder]) == 2
    assert "finished run with other settings" in capsys.readouterr().err
    assert main(["train", *common(outputs), *run(8), "data=dead_leaves_rich", "seed=3"]) == 2
    assert "other data settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.source=disk"], "cache or images"),
        (["trainer.strategy=zero"], "auto, ddp, fsdp"),
        (["trainer.accumulate=3"], "use a multiple of 3"),
        (["train.label_drop=1.5"], "label_drop"),
        (["optim.lr=-1"], "optim.lr"),
        (["trainer.threads=0"], "at least 1"),
        (["+model.dpeth=3"], "model.dpeth"),
        (["train.steps=many"], "train.steps"),
    ],
)
def test_bad_settings(study: Path, overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *common(study.parent), *run(8), "seed=5", *overrides]) == 2
    assert message in capsys.readouterr().err


def test_a_flipped_byte_stops_training(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = next((study / "cache").glob("train*ids*.npy"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert main(["train", *common(study.parent), *run(8), "seed=6"]) == 2
        assert path.name in capsys.readouterr().err
    finally:
        path.write_bytes(whole)


def test_nothing_to_sample(tmp_path: Path, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = f"paths.tokenizer={study}/tokenizer"
    assert main(["sample", *common(tmp_path), tokenizer]) == 2
    assert "no finished run" in capsys.readouterr().err


def test_plan_needs_a_known_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *common(tmp_path), "plan.device=h10"]) == 2
    assert "Did you mean h100?" in capsys.readouterr().err


def test_plan_of_the_depth_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameter totals of specs/var.md section 2.6, to the digit."""
    # A second a size; its numbers are tested in tests/models/test_budget.py.
    monkeypatch.setattr(plan, "step_memory", lambda *_, **__: StepMemory(1, 1, 1, 1, 1, 1, 1, 1))
    assert main(["plan", "sweeps=depth", "plan.device=h100", f"paths.outputs={tmp_path}"]) == 0
    runs = json.loads((tmp_path / "depth/plan.json").read_text())["runs"]
    totals = {run["overrides"][0]: run["params_total"] for run in runs}
    assert totals["model.depth=6"] == 18_492_580
    assert totals["model.depth=16"] == 310_283_520
    assert totals["model.depth=30"] == 2_010_020_356
    assert len(totals) == 13


def test_quickstart_registers_the_prediction_before_the_held_out_size_trains() -> None:
    names = [" ".join(verb) for verb in verbs("model.width=64")]
    left_out = names.index("train -m hydra.launcher.leave_out=['model.width=64']")
    assert left_out < names.index("fit") < names.index("train -m")
    assert [verb[0] for verb in verbs(None)].count("train") == 1
