"""The report: one self-contained file with every section, and its figures beside it."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest

from varscale_analysis import ReportError, ReportImage, StudyAnalysis, analyse, write_report
from varscale_analysis.report import frontier_sections, law_sections, study_sections

MakeStudy = Callable[..., Path]


@pytest.fixture(scope="module")
def page(ladder: StudyAnalysis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its report, with a picture and metrics of a tokenizer."""
    folder = tmp_path_factory.mktemp("report")
    picture = folder / "samples.png"
    picture.write_bytes(b"any bytes: the report copies them")
    metrics = [{"scale": 1, "PSNR (dB)": 15.1, "usage (1)": 1.0}, {"scale": 2, "PSNR (dB)": 17.3, "usage (1)": None}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("varscale_analysis.figures.style.DPI", 40)
        return write_report(folder, ladder, [ReportImage("Samples <N>", "by size & seed", picture)], metrics)


def test_the_report_is_self_contained_and_printable(page: Path) -> None:
    html = page.read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
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
    names = {figure.stem for figure in (page.parent / "figures").iterdir()}
    assert len(sources) == len(names) + 1
    assert {
        "law_nats_per_token_avg", "law_nats_per_token_last", "residuals", "scales", "exponent", "ridge", "curves",
        "holdout", "rolling", "profile_E", "profile_alpha", "sensitivity", "conventions",
    } <= names  # fmt: skip


def test_the_sections_stand_in_their_order(page: Path) -> None:
    wanted = ["Runs by size", "Laws", "Certificates", "Intervals", "Frontier by route", "Conventions", "Sensitivity"]
    wanted += ["Selection", "Hold-out", "Figures", "Tokenizer, scale by scale", "Images", "Absent, and why"]
    assert re.findall("<h2>(.*)</h2>", page.read_text()) == wanted


def test_every_number_has_its_interval_and_certificate(ladder: StudyAnalysis) -> None:
    intervals = unescape(law_sections.intervals(ladder))
    fit = ladder.fits["saturating/val_nats_per_token_avg"]
    e = fit.params["E"]
    assert f"{e.low:.4g} to {e.high:.4g}" in intervals
    assert ladder.checks is not None
    assert "{:.4g} to {:.4g}".format(*ladder.checks.profiles["E"].interval(0.9)) in intervals
    certificates = law_sections.certificates(ladder)
    assert certificates.count("certified") >= len(ladder.fits) and "16 of 16" in certificates
    assert "100 of 100" in certificates
    assert law_sections.sensitivity(ladder).count("<tr>") == len(ladder.checks.sensitivity.rows) + 1  # type: ignore[union-attr]
    assert "saturating" in law_sections.selection(ladder)
    assert "inside" in study_sections.rolling(ladder)


def test_routes_stand_side_by_side(budgets: StudyAnalysis) -> None:
    text = unescape(frontier_sections.frontiers(budgets))
    for part in ("isoflop", "law", "law - isoflop", "law / isoflop", "How flat", "2 N_opt: +"):
        assert part in text
    assert "6nd" in frontier_sections.conventions(budgets)
    header = study_sections.header(budgets)
    assert "not recorded" not in header and "D from" in header
    assert study_sections.holdout(budgets) == "" and law_sections.exponents(budgets) == ""


def test_the_report_shows_runs_that_are_not_in_the_fits(make_study: MakeStudy) -> None:
    def per_run(width: int, seed: int) -> dict[str, object]:
        return {"exclude_reason": "power cut"} if (width, seed) == (8, 1) else {}

    text = study_sections.left_out(analyse(make_study(widths=(8, 16), per_run=per_run), bootstrap=0))
    assert "power cut" in text
    assert "run0008s1" in text


def test_a_missing_image_stops_the_report_first(ladder: StudyAnalysis, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"samples\.png"):
        write_report(tmp_path / "out", ladder, [ReportImage("Samples", "", tmp_path / "samples.png")])
    with pytest.raises(ReportError, match=r"'\.tiff'"):
        write_report(tmp_path / "out", ladder, [ReportImage("Samples", "", tmp_path / "samples.tiff")])
    assert not (tmp_path / "out").exists()
