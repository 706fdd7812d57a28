"""The report of a study: one self-contained HTML file that can be mailed, archived and printed, and the figures as PNG.

Nothing is loaded from elsewhere: figures (300 dpi) and images stand in the file as data URIs.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from varscale_analysis import plots
from varscale_analysis.atomic import write_bytes
from varscale_analysis.laws.parameter import Parameter
from varscale_analysis.laws.result import LawFit
from varscale_analysis.study import LOSSES, StudyAnalysis
from varscale_analysis.table import LEVEL, SIZES, RunTable

REPORT_FILE = "report.html"
FIGURES_FOLDER = "figures"
_MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
_MEDIA |= {".gif": "image/gif", ".svg": "image/svg+xml"}
_STYLE = """
body { font: 15px/1.5 Georgia, serif; color: #1a1a1a; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1, h2 { font-weight: 600; line-height: 1.2 }
h2 { margin-top: 2.2rem; border-bottom: 1px solid #ccc; padding-bottom: .2rem }
table { border-collapse: collapse; font: 12.5px/1.45 ui-monospace, Menlo, Consolas, monospace; margin: .8rem 0 }
th { border-bottom: 1.5px solid #1a1a1a; text-align: right; vertical-align: bottom }
td { text-align: right }
th, td { padding: .15rem .7rem .15rem 0 }
th:first-child, td:first-child, .facts td { text-align: left }
tbody tr:nth-child(even) { background: #f6f6f4 }
.scroll { overflow-x: auto }
.figures { display: flex; flex-wrap: wrap; gap: 1.2rem }
.figures img { width: 26rem }
figure { margin: 0 0 1rem; break-inside: avoid }
figure img { max-width: 100% }
figcaption { font-size: 13px; color: #444; max-width: 26rem }
.pixels img { image-rendering: pixelated; min-width: 50% }
.pixels figcaption, .drawn figcaption { max-width: none }
.note { color: #555; font-size: 13.5px }
@media print {
  body { margin: 0; max-width: none; font-size: 11px }
  h2 { break-after: avoid }
  .figures img { width: 8.4cm }
}
"""


class ReportError(ValueError):
    """An image of the report that cannot be used: names the file and the remedy."""


@dataclass(frozen=True)
class ReportImage:
    """A picture of the report: samples of a size, reconstructions per scale, a coarse-to-fine strip, attention maps.

    ``pixels``: it is a picture whose pixels are to be seen, not a drawn figure.
    """

    title: str
    caption: str
    path: Path
    pixels: bool = True


def figures(analysis: StudyAnalysis) -> dict[str, tuple[Figure, str]]:
    """Every figure the study carries, by file name, with its caption."""
    used = _used(analysis)
    out: dict[str, tuple[Figure, str]] = {}
    for loss in dict.fromkeys((analysis.y, *LOSSES)):
        fits = [fit for law in ("saturating", "power") if (fit := analysis.fits.get(f"{law}/{loss}")) is not None]
        if fits:
            text = f"{plots.LABELS[loss]} against N. A point is a run; the dashed line is the law without offset."
            out[f"law_{loss.removeprefix('val_')}"] = (plots.law_figure(used, fits), text)
    if analysis.frontier is not None:
        runs = analysis.table.comparable(fixed_tokens=False)
        text = (
            "Validation curves, one colour a size, without their first 10 %, and their lower envelope. Filled circles "
        )
        text += "are crossings of two sizes; open circles are places where a curve begins or ends."
        out["curves"] = (plots.curves_figure(runs, analysis.frontier), text)
    if len(analysis.per_scale) > 1:
        text = "Nats per token of each scale against N: what size buys at which resolution."
        out["scales"] = (plots.per_scale_figure(analysis.per_scale, analysis.n), text)
    saturating = analysis.fits.get(f"saturating/{analysis.y}")
    if analysis.exponents:
        text = "The exponent depends on the offset taken off beforehand; Pearson's r hardly does."
        out["exponent"] = (plots.exponent_figure(analysis.exponents, saturating), text)
    if analysis.prediction is not None:
        figure = plots.holdout_figure(used, analysis.prediction, analysis.score)
        out["holdout"] = (figure, "A size predicted from the smaller ones, and what was measured.")
    fit = saturating or analysis.fits.get(f"power/{analysis.y}")
    if fit is not None:
        out["residuals"] = (plots.residual_figure(used, fit), "Residuals of every run: seed noise and lack of fit.")
    return out


def write_report(
    folder: Path | str,
    analysis: StudyAnalysis,
    images: Sequence[ReportImage] = (),
    tokenizer_metrics: Sequence[Mapping[str, object]] = (),
) -> Path:
    """Write ``report.html`` and ``figures/*.png`` into ``folder`` and return the path of the report.

    Args:
        images: pictures in the order they are shown.
        tokenizer_metrics: one mapping a scale, column name (with its unit) to value.

    Raises ``ReportError`` for an image that is missing or of an unknown kind; nothing is written then.
    """
    folder = Path(folder)
    pictures = [(image, _data_uri(image)) for image in images]
    drawn = figures(analysis)
    shown = []
    for name, (figure, caption) in drawn.items():
        content = png(figure)
        shown.append(_figure(_uri("image/png", content), name, caption))
        write_bytes(folder / FIGURES_FOLDER / f"{name}.png", content)
    name = escape(", ".join(sorted(set(map(str, analysis.table.rows["study"])))))
    parts = [
        f"<h1>Scaling laws of {name}</h1>",
        _header(analysis),
        "<h2>Runs by size</h2>",
        _size_table(analysis),
        _left_out(analysis),
        "<h2>Laws</h2>",
        _laws(analysis),
        _holdout(analysis),
        "<h2>Figures</h2>",
        f'<div class="figures">{"".join(shown)}</div>',
        _exponents(analysis),
    ]
    if tokenizer_metrics:
        parts += ["<h2>Tokenizer, scale by scale</h2>", _mappings(tokenizer_metrics)]
    if pictures:
        parts.append("<h2>Images</h2>")
        for image, uri in pictures:
            shown_image = _figure(uri, image.title, image.caption)
            kind = "pixels" if image.pixels else "drawn"
            parts.append(f'<h3>{escape(image.title)}</h3><div class="{kind}">{shown_image}</div>')
    if analysis.absent:
        rows = "".join(f"<li>{escape(part)}: {escape(why)}</li>" for part, why in analysis.absent.items())
        parts.append(f"<h2>Absent, and why</h2><ul>{rows}</ul>")
    html = "\n".join(part for part in parts if part)
    page = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
    page += f"<style>{_STYLE}</style></head>\n<body>\n{html}\n</body></html>\n"
    path = folder / REPORT_FILE
    write_bytes(path, page.encode())
    return path


def png(figure: Figure) -> bytes:
    """The figure as PNG at ``plots.DPI``; the same figure gives the same bytes."""
    buffer = BytesIO()
    with mpl.rc_context(plots.STYLE):
        figure.savefig(buffer, format="png", dpi=plots.DPI)
    return buffer.getvalue()


def _used(analysis: StudyAnalysis) -> RunTable:
    """The rows behind the laws: usable, and at the tokens of the fits."""
    usable = RunTable(analysis.table.usable, analysis.table.curves)
    return usable if analysis.tokens is None else usable.select(tokens_seen=analysis.tokens)


def _header(analysis: StudyAnalysis) -> str:
    used = _used(analysis)
    dates = sorted(map(str, used.rows["created_utc"]))
    rules = sorted(set(map(str, used.rows["flops_rule"])))
    facts = {
        "data": _distinct(used, "dataset_id") + f", {_distinct(used, 'resolution_px')} px",
        "tokenizer": _distinct(used, "tokenizer_id") + f", {_distinct(used, 'code')}",
        "schedule": f"{_distinct(used, 'schedule')} ({_distinct(used, 'num_tokens')} tokens an image)",
        "family": _distinct(used, "family"),
        "trained": analysis.at + f", {_distinct(used, 'images_seen')} images seen",
        "N": plots.LABELS[analysis.n],
        "FLOP": f"forward and backward, rule {', '.join(rules)}, without the tokenizer",
        "validation images": _distinct(used, "val_images"),
        "device": f"{_distinct(used, 'device')}, {_distinct(used, 'precision')}",
        "runs started": f"{dates[0]} to {dates[-1]}",
    }
    rows = "".join(f"<tr><td>{key}</td><td>{escape(value)}</td></tr>" for key, value in facts.items())
    return f'<div class="scroll"><table class="facts">{rows}</table></div>'


def _distinct(table: RunTable, name: str) -> str:
    values = [f"{v:.6g}" if isinstance(v, float) else str(v) for v in table.rows[name].unique()]
    return ", ".join(value for value in values if value not in ("", "nan")) or "not recorded"


def _size_table(analysis: StudyAnalysis) -> str:
    head = ["width x depth", *(name.removeprefix("params_") + " (1)" for name in SIZES), "FLOP", "seeds"]
    head += ["L_avg (nat/token)", "L_last (nat/token)", "error avg", "error last", "time of a run (s)"]
    rows = []
    for size in analysis.sizes:
        cells = [f"{size.width:.0f} x {size.depth:.0f}", *(f"{size.params[name]:,.0f}" for name in SIZES)]
        cells += [f"{size.means['flops_train']:.3g}", str(size.seeds)]
        for name, digits in (
            (LOSSES[0], 4),
            (LOSSES[1], 4),
            ("val_error_avg", 4),
            ("val_error_last", 4),
            ("wall_s", 0),
        ):
            mean, spread = size.means[name], size.spreads[name]
            text = "-" if mean is None else f"{mean:.{digits}f}"
            cells.append(text + (f" +- {spread:.{digits}f}" if spread is not None else ""))
        rows.append(cells)
    note = (
        '<p class="note">Means over seeds; +- is the standard deviation over seeds. Losses are raw cross-entropies.</p>'
    )
    return _table(head, rows) + note


def _left_out(analysis: StudyAnalysis) -> str:
    usable = set(map(str, analysis.table.usable["run_id"]))
    rows = [
        [str(run), str(status), str(reason) or "-"]
        for run, status, reason in zip(
            *(analysis.table.rows[name] for name in ("run_id", "status", "exclude_reason")), strict=True
        )
        if str(run) not in usable
    ]
    return "<p>Runs that are not in the fits:</p>" + _table(["run", "status", "reason"], rows) if rows else ""


def _laws(analysis: StudyAnalysis) -> str:
    fits: list[tuple[str, LawFit]] = list(analysis.fits.items())
    text = ""
    if analysis.frontier is not None:
        frontier = analysis.frontier
        fits += [(f"frontier/{fit.law}", fit) for fit in (frontier.power, frontier.saturating) if fit is not None]
        if frontier.n_exponent is not None and frontier.envelope is not None:
            flags = ", ".join(f"{v.flops:.2e} FLOP ({v.flag})" for v in frontier.envelope.vertices)
            text = f"<p>Frontier: N_opt ~ C^a, {escape(_parameter(frontier.n_exponent))}; vertices at {flags}. "
            text += f"Intervals from {frontier.draws} resamples of sizes and seeds, each with its own envelope.</p>"
    head = ["loss", "law", "E (nat/token)", "beta", "alpha (1)", "rms", "starts agreeing", "Pearson r*"]
    rows = []
    for _, fit in fits:
        d, c = fit.diagnostics, fit.certificate
        e = _parameter(fit.params["E"]) if "E" in fit.params else "-"
        rms = f"{d.rms:.3%}" if fit.residual == "log" else f"{d.rms:.4g}"
        r = "-" if d.pearson_r is None else f"{d.pearson_r:.4f}"
        beta = f"{_parameter(fit.params['beta'])} {fit.params['beta'].unit}"
        starts = f"{c.starts_agreeing} of {c.starts_tried}"
        rows.append([fit.y, fit.formula, e, beta, _parameter(fit.params["alpha"]), rms, starts, r])
    note = f'<p class="note">{LEVEL:.0%} intervals in brackets. Laws of N hold {escape(analysis.at)}: E and alpha move '
    note += (
        "with D. * Pearson's r of log loss and log size is printed, not evidence: it stays near -1 for wrong offsets."
    )
    note += "</p>"
    return _table(head, rows) + note + text


def _parameter(parameter: Parameter) -> str:
    text = f"{parameter.value:.4g}"
    if parameter.low is not None and parameter.high is not None:
        text += f" [{parameter.low:.4g}, {parameter.high:.4g}]"
    return text + (" at its bound" if parameter.at_bound else "")


def _holdout(analysis: StudyAnalysis) -> str:
    if analysis.prediction is None:
        return ""
    p, s = analysis.prediction, analysis.score
    kind = "after the fact" if p.measured_before else f"registered {p.created_utc}, before that size was measured"
    rows = [
        ["made", kind],
        ["size", f"{p.n} = {p.n_target:,.0f}"],
        ["from", f"{p.sizes} sizes up to {p.previous_n:,.0f}, {p.runs} runs, rows {p.rows_sha256[:16]}"],
        ["predicted", f"{p.value:.4f} [{p.low:.4f}, {p.high:.4f}] {p.y_unit} ({p.y}, {p.level:.0%})"],
    ]
    if s is not None:
        where = "inside" if s.inside else "outside"
        rows += [
            ["measured", f"{s.measured:.4f} {p.y_unit}, {s.runs} runs, {where} the interval"],
            ["error", f"{s.error_percent:+.3f} %"],
            ["error of the previous size's loss", f"{s.naive_error_percent:+.3f} %"],
        ]
    return "<h2>Hold-out</h2>" + _table(["", ""], rows)


def _exponents(analysis: StudyAnalysis) -> str:
    if not analysis.exponents:
        return ""
    rows = [[f"{row.offset:.3f}", f"{row.alpha:.4f}", f"{row.pearson_r:.5f}"] for row in analysis.exponents[::2]]
    head = ["fixed E (nat/token)", "alpha (1)", "Pearson r (not evidence)"]
    return "<h2>The exponent as a function of E</h2>" + _table(head, rows)


def _mappings(rows: Sequence[Mapping[str, object]]) -> str:
    head = list(dict.fromkeys(name for row in rows for name in row))
    cells = [
        ["-" if (v := row.get(name)) is None else f"{v:.4g}" if isinstance(v, float) else str(v) for name in head]
        for row in rows
    ]
    return _table(head, cells)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(uri: str, alt: str, caption: str) -> str:
    return f'<figure><img alt="{escape(alt)}" src="{uri}"><figcaption>{escape(caption)}</figcaption></figure>'


def _uri(media: str, content: bytes) -> str:
    return f"data:{media};base64,{base64.b64encode(content).decode()}"


def _data_uri(image: ReportImage) -> str:
    kind = _MEDIA.get(image.path.suffix.lower())
    if kind is None:
        raise ReportError(f"{image.path} ends in {image.path.suffix!r}; a report takes {', '.join(_MEDIA)}")
    try:
        return _uri(kind, image.path.read_bytes())
    except OSError as error:
        raise ReportError(f"cannot read the image {image.path} ({error.strerror}); sample again") from None
