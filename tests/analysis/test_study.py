"""The whole analysis of a study or a table: its text, its JSON, its command line."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from varscale_analysis import Objective, RunTable, SaturatingPowerLaw, StudyAnalysis, analyse, predict_holdout
from varscale_analysis.__main__ import main, parse_objective

PAIRS = ("params_total=n", "val_nats_per_token_avg=loss", "seed=s")
MakeStudy = Callable[..., Path]


def test_a_study_is_analysed_fast_and_whole(study: Path, truth) -> None:  # type: ignore[no-untyped-def]
    begun = time.process_time()
    analysis = analyse(study)
    assert time.process_time() - begun < 6.0  # about 2 s of an idle core; the limit allows for a busy machine
    fit = analysis.fits["saturating/val_nats_per_token_avg"]
    e, alpha = fit.params["E"], fit.params["alpha"]
    assert e.low is not None and e.high is not None and alpha.low is not None and alpha.high is not None
    assert e.low <= truth.offset <= e.high
    assert alpha.low <= truth.alpha <= alpha.high
    assert analysis.score is not None and analysis.score.inside
    assert analysis.frontier is not None
    assert len(analysis.per_scale) == len(analysis.sizes) == 7
    assert len(next(iter(analysis.per_scale.values()))) == 6
    assert set(analysis.absent) == {"laws of N and D", "frontier by isoflop", "selection/broken"}
    checks = analysis.checks
    assert checks is not None and checks.sensitivity is not None and checks.conventions is not None
    assert checks.profiles.keys() == {"E", "alpha"}
    assert checks.selection[0].law == "saturating" and checks.ratio is not None and checks.ratio.p < 1e-6
    assert checks.rolling is not None and len(checks.rolling.rows) == 3


def test_a_table_with_several_d_has_the_other_laws_and_three_routes(budgets: StudyAnalysis) -> None:
    analysis = budgets
    assert list(analysis.fits) == ["chinchilla/val_nats_per_token_avg"]
    fit = analysis.main
    assert fit is not None and fit.certificate.certified
    for name, truth in (("E", 1.8), ("alpha", 0.348), ("beta", 0.366)):
        p = fit.params[name]
        assert p.low is not None and p.high is not None and p.low < truth < p.high
    assert set(analysis.frontiers) == {"isoflop", "law"}
    for frontier in analysis.frontiers.values():
        assert frontier.n_exponent is not None and frontier.n_exponent.value == pytest.approx(0.5126, abs=0.05)
    assert analysis.routes is not None and not any(
        row.disagrees for row in analysis.routes.differences if row.quantity == "exponent of N_opt"
    )
    assert {route: row.flops for route, row in analysis.flatness.items()} == pytest.approx(
        {"isoflop": 1e19, "law": 1e19}
    )
    assert analysis.at == "D from 1.347e+08 to 3.177e+10 tokens"
    assert "several D" in analysis.absent["laws of N"] and "curves" in analysis.absent["frontier by envelope"]
    assert analysis.prediction is None and not analysis.exponents
    checks = analysis.checks
    assert checks is not None and {row.law for row in checks.selection} == {"chinchilla", "chinchilla-tied"}
    assert checks.rolling is not None and checks.rolling.by == "flops_train"
    assert checks.conventions is not None and checks.conventions.rows[0].n == "params_total"
    text = analysis.summary()
    for part in (
        "30 runs, 30 in the fits, 30 sizes",
        "... ",
        "exponent of N_opt by route",
        "flatness by law",
        "sensitivity",
    ):
        assert part in text


def test_branches_of_shared_trunks_are_not_independent_runs(mapped: SimpleNamespace) -> None:
    """Every size is one trunk with four branches: law, frontier by law and rolling hold-out draw whole trunks."""
    frame = mapped.foreign(sizes=6).assign(trunk_id=lambda rows: "of" + rows["size"].astype(str))
    independent = analyse(mapped.read(frame.drop(columns="trunk_id")), bootstrap=100)
    analysis = analyse(mapped.read(frame), bootstrap=100)
    fit, frontier, checks = analysis.main, analysis.frontiers["law"], analysis.checks
    assert fit is not None and fit.intervals == "noise of trunks" and "6 trunks" in fit.basis
    assert "6 trunks" in frontier.basis and frontier.draws == len(fit.draws)
    assert checks is not None and checks.branched and not checks.profiles
    assert "a profile takes all runs as independent" in analysis.absent["profiles"]
    assert "taken as independent" in analysis.summary()
    assert independent.checks is not None and independent.checks.profiles and not independent.checks.branched


def test_laws_and_objective_can_be_named(isoflop_table: RunTable) -> None:
    huber = Objective("log", "huber", delta=1e-3)
    analysis = analyse(isoflop_table, laws=["chinchilla-tied", "power"], objective=huber, bootstrap=0)
    assert list(analysis.fits) == ["chinchilla-tied/val_nats_per_token_avg"]
    assert analysis.main is not None and analysis.main.objective == huber
    assert "different numbers of tokens" in analysis.absent["power/val_nats_per_token_avg"]
    with pytest.raises(ValueError, match="no law powr; the laws are saturating"):
        analyse(isoflop_table, laws=["powr"])
    with pytest.raises(ValueError, match="name the path"):
        analysis.write()


def test_the_summary_is_what_a_person_pastes(ladder: StudyAnalysis) -> None:
    text = ladder.summary()
    for part in (
        "14 runs, 14 in the fits, 7 sizes, at D = 2.496e+06 tokens",
        "164,224",
        "+-",
        "hold-out",
        "flops_train",
    ):
        assert part in text
    assert text.count("printed, not evidence") == 6
    assert max(len(line) for line in text.splitlines() if not line.startswith("absent")) < 260


def test_fit_json_is_complete_and_valid(ladder: StudyAnalysis, tmp_path: Path) -> None:
    path = ladder.write(tmp_path / "fit.json")
    values = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in fit.json"))
    assert {"sizes", "fits", "frontiers", "exponents", "prediction", "score", "checks", "absent"} <= values.keys()
    assert [row["seeds"] for row in values["sizes"]] == [2] * 7


def test_parts_that_the_data_cannot_carry_say_why(make_study: MakeStudy) -> None:
    folder = make_study(widths=(16, 32), seeds=2)
    (folder / "curves.csv").unlink()
    analysis = analyse(folder, bootstrap=50)
    assert set(analysis.fits) == {"power/val_nats_per_token_avg", "power/val_nats_per_token_last"}
    assert "2 sizes" in analysis.absent["saturating/val_nats_per_token_avg"]
    assert "1 sizes" in analysis.absent["hold-out"] and "2 sizes" in analysis.absent["rolling hold-out"]
    assert {"frontier by envelope", "exponent against E", "nats per scale"} <= set(analysis.absent)
    assert "absent: frontier by envelope" in analysis.summary()


def test_one_size_and_one_run_still_give_a_table(make_study: MakeStudy) -> None:
    analysis = analyse(make_study(widths=(16,), seeds=1), bootstrap=50)
    assert not analysis.fits and analysis.main is None and analysis.checks is None
    assert len(analysis.sizes) == 1
    assert "27,184" not in analysis.summary()


def test_a_registered_prediction_in_the_folder_is_the_hold_out(make_study: MakeStudy) -> None:
    folder = make_study()
    table = RunTable.read(folder / "runs.csv")
    n = table.values("params_nonembed")
    registered = predict_holdout(table.where(n < n.max()), SaturatingPowerLaw(), float(n.max()))
    registered.write(folder / "prediction.json")
    (folder / "curves.csv").unlink()
    analysis = analyse(folder, bootstrap=50)
    assert analysis.prediction == registered
    assert analysis.score is not None
    assert "registered" in analysis.summary()


def test_one_d_of_several_can_be_analysed(make_study: MakeStudy) -> None:
    folder = make_study(per_run=lambda width, seed: {"tokens_seen": 5.0e6} if seed else {})
    analysis = analyse(folder, tokens=5.0e6, bootstrap=0)
    assert {row.seeds for row in analysis.sizes} == {1}
    assert analysis.frontier is not None
    assert {"saturating/val_nats_per_token_avg", "laws of N and D"}.isdisjoint(analysis.absent)
    assert analysis.main is not None and analysis.main.law == "saturating"


def test_an_unknown_convention_of_n_is_refused(study: Path) -> None:
    with pytest.raises(ValueError, match="params_nonembed"):
        analyse(study, n="params")


def test_the_command_line(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], coarse: None) -> None:
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert "runs.csv does not exist" in error
    (tmp_path / "runs.csv").write_bytes((study / "runs.csv").read_bytes())
    assert main(["report", str(tmp_path), "--bootstrap", "0", "--law", "saturating"]) == 0
    assert "alpha" in capsys.readouterr().out
    assert (tmp_path / "fit.json").exists() and (tmp_path / "report.html").exists()


def test_any_csv_is_fitted_from_the_command_line(
    isoflop_table: RunTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.csv"
    theirs = {"params_total": "n", "tokens_seen": "tokens", "flops_train": "C", "val_nats_per_token_avg": "loss"}
    frame = isoflop_table.rows[list(theirs)].rename(columns=theirs)
    frame = frame.assign(n=frame["n"] / 1e6, part="mine", version=2)
    pd.concat([frame, frame.assign(part="other", loss=9.0)]).to_csv(path, index=False)
    columns = ["--columns", *(f"{ours}={name}" for ours, name in theirs.items())]
    columns += ["--select", "part=mine", "version=2"]
    few = ["--bootstrap", "0", "--law", "chinchilla", "--objective", "huber:1e-3"]
    assert main(["fit", str(path), *columns, "--units", "params_total=M", *few]) == 0
    text = capsys.readouterr().out
    assert "L = E + A N^-alpha + B D^-beta" in text and "written" not in text
    assert list(tmp_path.iterdir()) == [path]
    assert main(["fit", str(path), *columns, "--units", "params_total=M", *few, "--out", str(tmp_path / "out")]) == 0
    fit = json.loads((tmp_path / "out" / "fit.json").read_text())["fits"]["chinchilla/val_nats_per_token_avg"]
    assert fit["params"]["alpha"]["value"] == pytest.approx(0.348, abs=0.05)
    assert fit["form"]["objective"]["delta"] == 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "none.csv"], "none.csv does not exist"),
        (["report", "mine.csv", "--columns", "params_total=n", "val_nats_per_token_avg=loss"], "--out FOLDER"),
        (["fit", "mine.csv"], "lacks the columns"),
        (["fit", "mine.csv", "--columns", "params_total"], "OURS=THEIRS"),
        (["fit", "mine.csv", "--columns", "params_total=m", "val_nats_per_token_avg=loss"], "no column 'm'"),
        (["fit", "mine.csv", "--columns", "params_total=n", "--objective", "hubber"], "squares, huber:1e-3"),
        (["fit", "mine.csv", "--columns", *PAIRS, "--select", "seed=two"], "seed holds numbers"),
        (["fit", "mine.csv", "--columns", *PAIRS, "--select", "part=other"], "there is no column 'part'"),
        (["fit", "mine.csv", "--columns", *PAIRS, "--select", "seed=2"], "none of the 3 rows has seed=2"),
    ],
)
def test_input_that_cannot_be_used_ends_with_a_message(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_text("n,loss,s\n1e6,3.1,0\n2e6,3.0,0\n4e6,2.9,0\n")
    assert main(arguments) == 2
    streams = capsys.readouterr()
    assert message in streams.err and "Traceback" not in streams.err and not streams.out


@pytest.mark.parametrize(
    ("text", "objective"),
    [
        ("squares", Objective()),
        ("huber", Objective(loss="huber", delta=1e-3)),
        ("huber:0.01:raw", Objective("raw", "huber", delta=0.01)),
        ("lad", Objective(loss="absolute")),
        ("quantile:0.9", Objective(loss="quantile", tau=0.9)),
    ],
)
def test_objectives_are_written_in_a_word(text: str, objective: Objective) -> None:
    assert parse_objective(text) == objective


@pytest.mark.parametrize("text", ["", "huber:small", "lad:1", "quantile", "squares:1", "huber:1:2"])
def test_other_words_for_an_objective_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write squares"):
        parse_objective(text)


def test_a_published_table_is_fitted_as_published(test_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = test_data / "laws" / "besiroglu2024_chinchilla_svg.csv"
    columns = (
        "params_total=n_params tokens_seen=d_tokens flops_train=c_flops val_nats_per_token_avg=loss_nats_per_token"
    )
    options = ["--law", "chinchilla", "--objective", "huber:1e-3", "--bootstrap", "0"]
    assert main(["fit", str(path), "--columns", *columns.split(), *options]) == 0
    found = re.search(r"beta = ([\d.]+)", capsys.readouterr().out)
    assert found is not None
    assert float(found.group(1)) == pytest.approx(0.452, abs=0.002)  # with the outliers that the paper leaves out


def test_the_package_needs_no_torch() -> None:
    code = "import sys, varscale_analysis, varscale_analysis.__main__; "
    code += "names = ('torch', 'lightning', 'hydra', 'wandb', 'varscale', 'matplotlib'); "
    code += "print([name for name in names if name in sys.modules])"
    where = str(Path(__file__).resolve().parents[2] / "analysis")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {where!r}); {code}"], capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_seed_spread_is_the_sample_deviation(study: Path, ladder: StudyAnalysis) -> None:
    row = ladder.sizes[0]
    table = RunTable.read(study / "runs.csv")
    y = table.values("val_nats_per_token_avg")[table.values("width") == 8]
    assert row.spreads["val_nats_per_token_avg"] == pytest.approx(np.std(y, ddof=1))
    assert dataclasses.is_dataclass(row)
