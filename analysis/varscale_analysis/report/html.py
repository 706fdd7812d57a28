"""Pieces of HTML: the page with its style, tables, figures, data URIs. Every text is escaped here and nowhere else."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
MEDIA |= {".gif": "image/gif", ".svg": "image/svg+xml"}
_STYLE = """
body { font: 15px/1.5 Georgia, serif; color: #1a1a1a; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1, h2, h3 { font-weight: 600; line-height: 1.2 }
h2 { margin-top: 2.2rem; border-bottom: 1px solid #ccc; padding-bottom: .2rem }
table { border-collapse: collapse; font: 12.5px/1.45 ui-monospace, Menlo, Consolas, monospace; margin: .8rem 0 }
th { border-bottom: 1.5px solid #1a1a1a; text-align: right; vertical-align: bottom }
td { text-align: right; vertical-align: top }
th, td { padding: .15rem .7rem .15rem 0 }
th:first-child, td:first-child, .facts td, .words td { text-align: left }
tbody tr:nth-child(even) { background: #f6f6f4 }
.scroll { overflow-x: auto }
.figures { display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: flex-start }
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


def page(title: str, parts: Sequence[str]) -> str:
    """A document that loads nothing from elsewhere; empty parts are left out."""
    html = "\n".join(part for part in parts if part)
    head = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
    return f"{head}<style>{_STYLE}</style></head>\n<body>\n{html}\n</body></html>\n"


def section(title: str, *parts: str) -> str:
    """A heading and what stands below it; empty where nothing does."""
    text = "\n".join(part for part in parts if part)
    return f"<h2>{escape(title)}</h2>\n{text}" if text else ""


def heading(title: str) -> str:
    """The title of the page."""
    return f"<h1>{escape(title)}</h1>"


def subsection(title: str, content: str, kind: str) -> str:
    """A smaller heading and one element of a style ``kind``."""
    return f'<h3>{escape(title)}</h3><div class="{kind}">{content}</div>'


def gallery(figures: Sequence[str]) -> str:
    """Figures side by side; empty without any."""
    return f'<div class="figures">{"".join(figures)}</div>' if figures else ""


def text(words: str) -> str:
    """A paragraph."""
    return f"<p>{escape(words)}</p>"


def note(words: str) -> str:
    """A paragraph in small print."""
    return f'<p class="note">{escape(words)}</p>'


def items(lines: Sequence[str]) -> str:
    """A list; empty without lines."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], words: bool = False) -> str:
    """A table, its first column to the left, with ``words`` all of them; empty without rows."""
    if not rows:
        return ""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    kind = ' class="words"' if words else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(values: Mapping[str, str]) -> str:
    """A table of names and values."""
    rows = "".join(f"<tr><td>{escape(key)}</td><td>{escape(value)}</td></tr>" for key, value in values.items())
    return f'<div class="scroll"><table class="facts">{rows}</table></div>'


def mappings(rows: Sequence[Mapping[str, object]]) -> str:
    """A table of mappings, one column a key."""
    head = list(dict.fromkeys(name for row in rows for name in row))
    cells = [
        ["-" if (v := row.get(name)) is None else f"{v:.4g}" if isinstance(v, float) else str(v) for name in head]
        for row in rows
    ]
    return table(head, cells)


def figure(uri: str, alt: str, caption: str) -> str:
    """A picture with its caption."""
    return f'<figure><img alt="{escape(alt)}" src="{uri}"><figcaption>{escape(caption)}</figcaption></figure>'


def data_uri(media: str, content: bytes) -> str:
    """The picture itself, in place of its address."""
    return f"data:{media};base64,{base64.b64encode(content).decode()}"
