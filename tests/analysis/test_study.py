"""The whole analysis of a study: its text, its JSON, its report, its command line."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from varscale_analysis import (
    ReportError,
    ReportImage,
    RunTable,
    SaturatingPowerLaw,
    StudyAnalysis,
    analyse,
    predict_holdout,
    write_report,
)
from varscale_analysis.__main__ import main
from varscale_analysis.plots import residual_figure
from varscale_analysis.report import figures, png

MakeStudy = Callable[..., Path]


@pytest.fixture(scope="module")
def analysis(study: Path) -> StudyAnalysis:
    """The study with few draws, for tests of what is made from it."""
    return analyse(study, bootstrap=50)


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures with few pixels: drawing them is most of the time of a report."""
    monkeypatch.setattr("varscale_analysis.plots.DPI", 40)


def test_a_study_is_analysed_fast_and_whole(study: Path, truth) -> None:  # type: ignore[no-untyped-def]
    begun = time.process_time()
    analysis = analyse(study)
    assert time.process_time() - begun < 4.0  # about 1 s of an idle core; the limit allows for a busy machine
    fit = analysis.fits["saturating/val_nats_per_token_avg"]
    e, alpha = fit.params["E"], fit.params["alpha"]
    assert e.low is not None and e.high is not None and alpha.low is not None and alpha.high is not None
    assert e.low <= truth.offset <= e.high
    assert alpha.low <= truth.alpha <= alpha.high
    assert analysis.score is not None and analysis.score.inside
    assert analysis.frontier is not None
    assert len(analysis.per_scale) == len(analysis.sizes) == 7
    assert len(next(iter(analysis.per_scale.values()))) == 6
    assert not analysis.absent


def test_the_summary_is_what_a_person_pastes(analysis: StudyAnalysis) -> None:
    text = analysis.summary()
    for part in (
        "14 runs, 14 in the fits, 7 sizes, at D = 2.496e+06 tokens",
        "164,224",
        "+-",
        "hold-out",
        "flops_train",
    ):
        assert part in text
    assert text.count("printed, not evidence") == 6
    assert max(len(line) for line in text.splitlines()) < 200


def test_fit_json_is_complete_and_valid(analysis: StudyAnalysis, tmp_path: Path) -> None:
    path = analysis.write(tmp_path / "fit.json")
    values = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in fit.json"))
    assert {"sizes", "fits", "frontier", "exponents", "prediction", "score", "absent"} <= values.keys()
    assert [row["seeds"] for row in values["sizes"]] == [2] * 7


def test_parts_that_the_data_cannot_carry_say_why(make_study: MakeStudy, coarse: None) -> None:
    folder = make_study(widths=(16, 32), seeds=2)
    (folder / "curves.csv").unlink()
    analysis = analyse(folder, bootstrap=50)
    assert set(analysis.fits) == {"power/val_nats_per_token_avg", "power/val_nats_per_token_last"}
    assert "2 sizes" in analysis.absent["saturating/val_nats_per_token_avg"]
    assert "1 sizes" in analysis.absent["hold-out"]
    assert {"frontier", "exponent against E", "nats per scale"} <= set(analysis.absent)
    assert "absent: frontier" in analysis.summary()
    html = write_report(folder, analysis).read_text()
    assert "Absent, and why" in html


def test_one_size_and_one_run_still_give_a_table(make_study: MakeStudy) -> None:
    analysis = analyse(make_study(widths=(16,), seeds=1), bootstrap=50)
    assert not analysis.fits
    assert len(analysis.sizes) == 1
    assert "27,184" not in analysis.summary()


def test_a_registered_prediction_in_the_folder_is_the_hold_out(make_study: MakeStudy) -> None:
    folder = make_study()
    table = RunTable.read(folder / "runs.csv")
    n = table.values("params_nonembed")
    registered = predict_holdout(table.where(n < n.max()), SaturatingPowerLaw(), float(n.max()))
    registered.write(folder / "prediction.json")
    analysis = analyse(folder, bootstrap=50)
    assert analysis.prediction == registered
    assert analysis.score is not None
    assert "registered" in analysis.summary()


def test_one_d_of_several_can_be_analysed(make_study: MakeStudy) -> None:
    folder = make_study(per_run=lambda width, seed: {"tokens_seen": 5.0e6} if seed else {})
    assert main(["fit", str(folder)]) == 2
    analysis = analyse(folder, tokens=5.0e6, bootstrap=50)
    assert {row.seeds for row in analysis.sizes} == {1}
    assert analysis.frontier is not None
    assert figures(analysis)


def test_an_unknown_convention_of_n_is_refused(study: Path) -> None:
    with pytest.raises(ValueError, match="params_nonembed"):
        analyse(study, n="params")


def test_the_report_is_self_contained_and_printable(analysis: StudyAnalysis, tmp_path: Path, coarse: None) -> None:
    picture = tmp_path / "samples.png"
    picture.write_bytes(b"any bytes: the report copies them")
    metrics = [{"scale": 1, "PSNR (dB)": 15.1, "usage (1)": 1.0}, {"scale": 2, "PSNR (dB)": 17.3, "usage (1)": None}]
    path = write_report(tmp_path, analysis, [ReportImage("Samples <N>", "by size & seed", picture)], metrics)
    html = path.read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(sources) == len(figures(analysis)) + 1
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"https?://|<script|<link|@import", html)
    for part in (
        "@media print",
        "Samples &lt;N&gt;",
        "by size &amp; seed",
        "PSNR (dB)",
        "17.3",
        "not evidence",
        "tok0",
    ):
        assert part in html
    names = {figure.stem for figure in (tmp_path / "figures").iterdir()}
    assert names == set(figures(analysis))


def test_the_report_shows_runs_that_are_not_in_the_fits(make_study: MakeStudy, coarse: None) -> None:
    def per_run(width: int, seed: int) -> dict[str, object]:
        return {"exclude_reason": "power cut"} if (width, seed) == (8, 1) else {}

    folder = make_study(widths=(8, 16), per_run=per_run)
    html = write_report(folder, analyse(folder, bootstrap=50)).read_text()
    assert "power cut" in html
    assert "run0008s1" in html


def test_a_missing_image_stops_the_report_first(analysis: StudyAnalysis, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"samples\.png"):
        write_report(tmp_path / "out", analysis, [ReportImage("Samples", "", tmp_path / "samples.png")])
    with pytest.raises(ReportError, match=r"'\.tiff'"):
        write_report(tmp_path / "out", analysis, [ReportImage("Samples", "", tmp_path / "samples.tiff")])
    assert not (tmp_path / "out").exists()


def test_figures_are_of_column_width_with_labelled_axes(analysis: StudyAnalysis) -> None:
    for figure, caption in figures(analysis).values():
        assert isinstance(figure, Figure)
        assert figure.get_figwidth() == pytest.approx(3.3)
        assert caption
        labels = [axes.get_xlabel() + axes.get_ylabel() for axes in figure.axes]
        assert all(labels)


def test_the_same_fit_gives_the_same_figure(analysis: StudyAnalysis, coarse: None) -> None:
    fit = analysis.fits["saturating/val_nats_per_token_avg"]
    first, second = (png(residual_figure(analysis.table, fit)) for _ in range(2))
    assert first == second
    assert first.startswith(b"\x89PNG")


def test_the_command_line(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], coarse: None) -> None:
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert "runs.csv does not exist" in error
    for name in ("runs.csv", "curves.csv"):
        (tmp_path / name).write_bytes((study / name).read_bytes())
    assert main(["report", str(tmp_path), "--bootstrap", "50"]) == 0
    assert "alpha" in capsys.readouterr().out
    assert (tmp_path / "fit.json").exists() and (tmp_path / "report.html").exists()


def test_the_package_needs_no_torch() -> None:
    code = "import sys, varscale_analysis, varscale_analysis.__main__; "
    code += "names = ('torch', 'lightning', 'hydra', 'wandb', 'varscale', 'matplotlib.pyplot'); "
    code += "print([name for name in names if name in sys.modules])"
    where = str(Path(__file__).resolve().parents[2] / "analysis")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {where!r}); {code}"], capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_seed_spread_is_the_sample_deviation(study: Path, analysis: StudyAnalysis) -> None:
    row = analysis.sizes[0]
    table = RunTable.read(study / "runs.csv")
    y = table.values("val_nats_per_token_avg")[table.values("width") == 8]
    assert row.spreads["val_nats_per_token_avg"] == pytest.approx(np.std(y, ddof=1))
    assert dataclasses.is_dataclass(row)
