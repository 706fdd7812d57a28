"""The report of a study: one self-contained HTML file that can be mailed, archived and printed, and the figures as PNG.

Nothing is loaded from elsewhere: figures (300 dpi) and images stand in the file as data URIs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from varscale_analysis.atomic import write_bytes
from varscale_analysis.report import frontier_sections, html, law_sections, rate_section, study_sections
from varscale_analysis.study import StudyAnalysis

REPORT_FILE = "report.html"
FIGURES_FOLDER = "figures"


class ReportError(ValueError):
    """An image of the report that cannot be used: names the file and the remedy."""


@dataclass(frozen=True)
class ReportImage:
    """A picture of the report: samples of a size, reconstructions per scale, a coarse-to-fine strip, attention maps.

    ``title`` and ``caption`` stand beside it, ``path`` is its file. ``pixels``: it is a picture whose pixels are to be
    seen, not a drawn figure.
    """

    title: str
    caption: str
    path: Path
    pixels: bool = True

    def uri(self) -> str:
        """The picture as a data URI. Raises ``ReportError`` for a file that is missing or of an unknown kind."""
        kind = html.MEDIA.get(self.path.suffix.lower())
        if kind is None:
            raise ReportError(f"{self.path} ends in {self.path.suffix!r}; a report takes {', '.join(html.MEDIA)}")
        try:
            return html.data_uri(kind, self.path.read_bytes())
        except OSError as error:
            raise ReportError(f"cannot read the image {self.path} ({error.strerror}); sample again") from None


def write_report(
    folder: Path | str,
    analysis: StudyAnalysis,
    images: Sequence[ReportImage] = (),
    tokenizer_metrics: Sequence[Mapping[str, object]] = (),
) -> Path:
    """Write ``report.html`` and ``figures/*.png`` into ``folder`` and return the report's path.

    Args:
        analysis: what the report is about.
        images: pictures to show after the figures, read now and copied into the file.
        tokenizer_metrics: one mapping a scale, such as PSNR and codebook use; the keys become columns.

    Raises ``ReportError`` for an image that is missing or of an unknown kind, before anything is written.
    """
    from varscale_analysis.figures import png  # matplotlib, which nothing else in the package needs
    from varscale_analysis.report.gallery import study_figures

    folder = Path(folder)
    pictures = [(image, image.uri()) for image in images]
    shown = []
    for name, (figure, caption) in study_figures(analysis).items():
        content = png(figure)
        write_bytes(folder / FIGURES_FOLDER / f"{name}.png", content)
        shown.append(html.figure(html.data_uri("image/png", content), caption, caption))
    title = "Scaling laws of " + (", ".join(sorted(set(map(str, analysis.table.rows["study"])) - {""})) or "a table")
    pixels = []
    for image, uri in pictures:
        kind = "pixels" if image.pixels else "drawn"
        pixels.append(html.subsection(image.title, html.figure(uri, image.title, image.caption), kind))
    parts = [
        html.heading(title),
        study_sections.header(analysis),
        html.section("Runs by size", study_sections.sizes(analysis), study_sections.left_out(analysis)),
        html.section("Learning rates", rate_section.rates(analysis)),
        html.section("Laws", law_sections.laws(analysis)),
        html.section("Certificates", law_sections.certificates(analysis)),
        html.section("Intervals", law_sections.intervals(analysis)),
        html.section("Frontier by route", frontier_sections.frontiers(analysis)),
        html.section("Conventions", frontier_sections.conventions(analysis)),
        html.section("Sensitivity", law_sections.sensitivity(analysis), law_sections.exponents(analysis)),
        html.section("Selection", law_sections.selection(analysis)),
        html.section("Hold-out", study_sections.holdout(analysis), study_sections.rolling(analysis)),
        html.section("Figures", html.gallery(shown)),
        html.section("Tokenizer, scale by scale", html.mappings(tokenizer_metrics)),
        html.section("Images", *pixels),
        html.section("Absent, and why", html.items([f"{part}: {why}" for part, why in analysis.absent.items()])),
    ]
    path = folder / REPORT_FILE
    write_bytes(path, html.page(title, parts).encode())
    return path
