"""Reports as files: one self-contained HTML page, its pictures, tables for people.

Knows HTML, Markdown and matplotlib's look; knows nothing about policies or data. The same input gives the same bytes:
no dates, no random ids, no machine names.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lerobot_policy_vla0.errors import ConfigError

INK, GREY, LIGHT = "#2b2f36", "#8d949e", "#e6e8eb"
#: Told apart by people with colour-blindness too (Okabe and Ito's palette, yellow left out).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")

_LOOK: Any = {
    "figure.dpi": 140,
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
}

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 2.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.4rem; }
p.lead, figcaption { color: GrayText; margin-top: .2rem; } figcaption { font-size: .9rem; }
figure { margin: 1rem 0; } img { max-width: 100%; border-radius: 6px; background: white; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem 0 .25rem 1.4rem; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.text { text-align: left; white-space: normal; }
td { border-top: 1px solid color-mix(in srgb, GrayText 30%, transparent); }
ul { padding-left: 1.2rem; } li.warning::marker { content: "⚠ "; } li.warning { padding-left: .3rem; }
code { font-size: .92em; }
"""


def empty_folder(folder: Path) -> Path:
    """Make a folder for a report.

    Raises:
        ConfigError: if there is something in it already: nothing is overwritten.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"--out={folder} exists already and is not empty. Name another folder, or remove it."
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# ---------------------------------------------------------------------- pictures


@contextmanager
def drawing() -> Iterator[Any]:
    """Yield ``matplotlib.pyplot`` without a screen, in the reports' look; figures are closed afterwards."""
    import matplotlib

    before = matplotlib.get_backend()
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    try:
        with plt.rc_context(_LOOK):
            yield plt
    finally:
        plt.close("all")
        matplotlib.use(before)


def figure_png(figure: Any) -> bytes:
    """Return a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


# ---------------------------------------------------------------------- HTML


def page(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return an HTML page that needs no other file.

    Args:
        title: plain text.
        lead: plain text under the title.
        sections: headings (plain text) and their HTML.
    """
    body = "\n".join(f"<section><h2>{html.escape(head)}</h2>\n{inner}</section>" for head, inner in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style></head><body>\n<h1>{html.escape(title)}</h1>\n"
        f'<p class="lead">{html.escape(lead)}</p>\n{body}\n</body></html>\n'
    )


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = ()) -> str:
    """Return a table; all but the first column are numbers, except those in ``text``."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=text' if column in text else ''}>{html.escape(cell)}</td>"
            for column, cell in enumerate(row)
        )
        + "</tr>\n"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def html_image(png: bytes, caption: str, *, width: int | None = None) -> str:
    """Return a picture, embedded, with its caption (also the text for those who cannot see it)."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    size = f' width="{width}"' if width else ""
    told = html.escape(caption, quote=True)
    return f'<figure><img src="{source}" alt="{told}"{size}><figcaption>{told}</figcaption></figure>'


def html_text(*paragraphs: str) -> str:
    """Return paragraphs of plain text."""
    return "".join(f"<p>{html.escape(text)}</p>\n" for text in paragraphs)


def html_list(items: Sequence[str], *, warnings: bool = False) -> str:
    """Return a list of plain texts."""
    kind = ' class="warning"' if warnings else ""
    return "<ul>" + "".join(f"<li{kind}>{html.escape(item)}</li>" for item in items) + "</ul>"


# ---------------------------------------------------------------------- terminal and Markdown


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = ()) -> str:
    """Return a table in columns; all but the first are right-aligned, except those in ``text``.

    >>> print(text_table(["", "x"], [["mean", "1.5"], ["n", "12"]]))
          |   x
    mean  | 1.5
    n     |  12
    """
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    out = []
    for line in lines:
        cells = [
            cell.ljust(width) if column == 0 or column in text else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        out.append((cells[0] + "  | " + "  ".join(cells[1:])).rstrip())
    return "\n".join(out)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = ()) -> str:
    """Return a Markdown table; all but the first column are right-aligned, except those in ``text``."""
    ruler = ["---" if column == 0 or column in text else "---:" for column in range(len(header))]
    lines = [list(header), ruler, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float, digits: int = 3) -> str:
    """Write a number with some significant digits, without exponents where people would not use them.

    >>> number(0.012345), number(1234.5), number(0.0), number(1e-9), number(12.0)
    ('0.0123', '1234', '0', '1e-09', '12')
    """
    if value == 0:
        return "0"
    if abs(value) >= 10**digits:
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def percent(share: float) -> str:
    """Write a share in ``[0, 1]`` as a percentage; one that is not quite 0 or 1 never reads so.

    >>> percent(0.5), percent(0.0004), percent(0.9999), percent(1.0)
    ('50 %', '<0.1 %', '>99.9 %', '100 %')
    """
    if 0 < share < 0.001:
        return "<0.1 %"
    if 0.999 < share < 1:
        return ">99.9 %"
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 or value == round(value) else f"{value:.1f} %"
