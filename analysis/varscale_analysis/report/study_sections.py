"""Sections on the runs: what they are, the sizes, what was left out, hold-out and rolling hold-out."""

from __future__ import annotations

from varscale_analysis.ladder import of_several_tokens
from varscale_analysis.report import html
from varscale_analysis.study import StudyAnalysis
from varscale_analysis.table import SIZES, RunTable, unit_of

_HEADS = {
    "val_nats_per_token_avg": "L_avg (nat/token)",
    "val_nats_per_token_last": "L_last (nat/token)",
    "val_error_avg": "error avg",
    "val_error_last": "error last",
    "wall_s": "time of a run (s)",
}
_MOST_SIZES = 60


def header(analysis: StudyAnalysis) -> str:
    """What the runs are."""
    used = analysis.used
    rules = _distinct(used, "flops_rule")
    dates = sorted(value for value in map(str, used.rows["created_utc"]) if value not in ("", "nan"))
    resolution = _distinct(used, "resolution_px")
    facts = {
        "data": _distinct(used, "dataset_id") + (f", {resolution} px" if resolution != _NONE else ""),
        "tokenizer": _distinct(used, "tokenizer_id", "code"),
        "schedule": _distinct(used, "schedule")
        + (f" ({_distinct(used, 'num_tokens')} tokens an image)" if used.has("num_tokens") else ""),
        "family": _distinct(used, "family"),
        "trained": analysis.at + (f", {_distinct(used, 'images_seen')} images seen" if used.has("images_seen") else ""),
        "N": analysis.n,
        "FLOP": f"forward and backward, rule {rules}, without the tokenizer"
        if used.has("schedule")
        else f"rule {rules}",
        "validation images": _distinct(used, "val_images"),
        "device": _distinct(used, "device", "precision"),
        "runs started": f"{dates[0]} to {dates[-1]}" if dates else _NONE,
    }
    return html.facts({name: value for name, value in facts.items() if value != _NONE}) + html.items(
        analysis.table.notes
    )


def sizes(analysis: StudyAnalysis) -> str:
    """Counts, losses and cost of every size."""
    rows = analysis.sizes
    counts = [name for name in SIZES if any(name in row.params for row in rows)]
    measures = [
        name for name in dict.fromkeys((analysis.y, *_HEADS)) if any(row.means.get(name) is not None for row in rows)
    ]
    shaped = any(row.width is not None for row in rows)
    several_d = of_several_tokens(rows)
    head = (["width x depth"] if shaped else []) + [f"{name.removeprefix('params_')} (1)" for name in counts]
    head += (["tokens"] if several_d else []) + ["FLOP", "seeds"]
    head += [_HEADS.get(name, f"{name} ({unit_of(name)})") for name in measures]
    cells = []
    for row in rows[:_MOST_SIZES]:
        shape = "-" if row.width is None or row.depth is None else f"{row.width:.0f} x {row.depth:.0f}"
        line = [shape] if shaped else []
        line += [f"{row.params[name]:,.0f}" if name in row.params else "-" for name in counts]
        line += [_number(row.tokens, ".3g")] if several_d else []
        line += [_number(row.means["flops_train"], ".3g"), str(row.seeds)]
        for name in measures:
            digits = ".0f" if name == "wall_s" else ".4f"
            spread = row.spreads.get(name)
            line.append(_number(row.means[name], digits) + ("" if spread is None else f" +- {spread:{digits}}"))
        cells.append(line)
    words = "Means over seeds; +- is the standard deviation over seeds. Losses are raw cross-entropies."
    if len(rows) > _MOST_SIZES:
        words += f" {len(rows) - _MOST_SIZES} more rows are not shown."
    return html.table(head, cells) + html.note(words)


def left_out(analysis: StudyAnalysis) -> str:
    """The runs that are not in the fits, and why."""
    usable = set(map(str, analysis.table.usable["run_id"]))
    columns = (analysis.table.rows[name] for name in ("run_id", "status", "exclude_reason"))
    rows = [
        [str(run), str(status), str(reason) or "-"]
        for run, status, reason in zip(*columns, strict=True)
        if str(run) not in usable
    ]
    return html.text("Runs that are not in the fits:") + html.table(["run", "status", "reason"], rows) if rows else ""


def holdout(analysis: StudyAnalysis) -> str:
    """The prediction and what was measured."""
    p, s = analysis.prediction, analysis.score
    if p is None:
        return ""
    kind = "after the fact" if p.measured_before else f"registered {p.created_utc}, before that size was measured"
    rows = {
        "made": kind,
        "size": f"{p.n} = {p.n_target:,.0f}",
        "from": f"{p.sizes} sizes up to {p.previous_n:,.0f}, {p.runs} runs, rows {p.rows_sha256[:16]}",
        "predicted": f"{p.value:.4f} [{p.low:.4f}, {p.high:.4f}] {p.y_unit} ({p.y}, {p.level:.0%})",
    }
    if s is not None:
        where = "inside" if s.inside else "outside"
        rows["measured"] = f"{s.measured:.4f} {p.y_unit}, {s.runs} runs, {where} the interval"
        rows["error"] = f"{s.error_percent:+.3f} %"
        rows["error of the previous size's loss"] = f"{s.naive_error_percent:+.3f} %"
    return html.facts(rows)


def rolling(analysis: StudyAnalysis) -> str:
    """Each size predicted from the smaller ones."""
    result = None if analysis.checks is None else analysis.checks.rolling
    if result is None:
        return ""
    rows = []
    for row in result.rows:
        at = ", ".join(f"{name} = {_count(x)}" for name, x in row.at.items())
        cells = [_count(row.target), at, str(row.sizes), f"{row.measured:.4f}"]
        ends = "-" if row.low is None else f"{row.low:.4f} to {row.high:.4f}"
        where = "-" if row.inside is None else "inside" if row.inside else "OUTSIDE"
        cells += [_number(row.predicted, ".4f"), ends, where, _number(row.error_percent, "+.2f")]
        rows.append([*cells, f"{row.naive_error_percent:+.2f}", _number(row.log_score, ".2f"), row.refused or ""])
    head = [f"step along {result.by}", "predicted at", "sizes seen", f"measured ({result.y_unit})", "predicted"]
    head += [f"{result.level:.0%}", "", "error (%)", "error of the size before (%)", "log score", "refused"]
    words = f"Rolling hold-out of {result.formula}: {result.coverage}."
    if result.log_score is not None and result.naive_log_score is not None:
        words += f" Mean log score {result.log_score:.2f}, of repeating the size before {result.naive_log_score:.2f}"
        words += " (higher is better)."
    if all(not row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return html.text(words) + html.table(head, rows)


_NONE = "not recorded"


def _distinct(table: RunTable, *names: str) -> str:
    found = []
    for name in names:
        values = [f"{v:.6g}" if isinstance(v, float) else str(v) for v in table.rows[name].unique()]
        text = ", ".join(value for value in values if value not in ("", "nan"))
        found += [text] if text else []
    return ", ".join(found) or _NONE


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value < 1e12 else f"{value:.4g}"
