"""Tables and numbers as text: Markdown that also reads well in a terminal, and HTML.

Strings in, strings out; knows nothing about evaluations.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

#: The look of the project's HTML pages, light and dark.
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
p.lead { color: GrayText; margin-top: .2rem; } p.big { font-size: 1.25rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem 1.2rem .25rem 0; vertical-align: top; }
td { border-top: 1px solid color-mix(in srgb, GrayText 30%, transparent); }
th { font-weight: 600; }
img, video { max-width: 100%; border-radius: 6px; background: white; }
"""


def percent(fraction: float) -> str:
    """Return a fraction in per cent with one decimal.

    >>> percent(0.9)
    '90.0 %'
    """
    return f"{100 * fraction:.1f} %"


def percent_range(limits: tuple[float, float]) -> str:
    """Return an interval of fractions in per cent.

    >>> percent_range((0.7864, 0.9565))
    '78.6 to 95.7 %'
    """
    return f"{100 * limits[0]:.1f} to {100 * limits[1]:.1f} %"


def clock(seconds: float) -> str:
    """Return a duration for people.

    >>> clock(59.4), clock(61), clock(3725)
    ('59 s', '1 min 01 s', '62 min 05 s')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with aligned columns.

    >>> print(markdown_table(["a", "bb"], [["1", "2"]]))
    | a | bb |
    |---|----|
    | 1 | 2  |
    """
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in escaped) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    lines = [line(row) for row in escaped]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]], name: str = "") -> str:
    """Return an HTML table of class `name`; cells are escaped."""
    return raw_html_table(header, [[html.escape(cell) for cell in row] for row in rows], name)


def raw_html_table(header: Sequence[str], rows: Sequence[Sequence[str]], name: str = "") -> str:
    """Return an HTML table whose cells (not its header) are HTML already."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    head = line([html.escape(cell) for cell in header], "th")
    return f'<table class="{name}"><thead>{head}</thead><tbody>{body}</tbody></table>'


def data_url(content: bytes, mime: str) -> str:
    """Return bytes as a URL that needs no file."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
