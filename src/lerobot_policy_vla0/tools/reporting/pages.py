"""Writes the text of reports: tables (terminal, Markdown, HTML), numbers, and HTML pages that need no other file.

The same input gives the same bytes: there are no dates, no random ids and no machine names.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 2.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.4rem; }
p.lead, figcaption { color: GrayText; margin-top: .2rem; } figcaption { font-size: .9rem; }
figure { margin: 1rem 0; } img, video { max-width: 100%; border-radius: 6px; background: white; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; vertical-align: top; padding: .25rem 0 .25rem 1.4rem; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th.text, td.text { text-align: left; white-space: normal; }
td { border-top: 1px solid color-mix(in srgb, GrayText 30%, transparent); }
ul { padding-left: 1.2rem; } li.warning::marker { content: "⚠ "; } li.warning { padding-left: .3rem; }
code { font-size: .92em; }
"""


@dataclass(frozen=True)
class Table:
    """Cells of plain text, a row per line.

    The first column is aligned on the left, and so are those listed in ``text``; the others are numbers, aligned on the
    right.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: tuple[int, ...] = ()

    def is_text(self, column: int) -> bool:
        """Tell whether a column is aligned on the left."""
        return column == 0 or column in self.text


# ---------------------------------------------------------------------- HTML


def page(title: str, lead: str, sections: Sequence[tuple[str, str]], style: str = "") -> str:
    """Return an HTML page that needs no other file.

    The title, the lead (a line under the title) and the headings of the sections are plain text; the sections are HTML.
    ``style`` is further CSS.
    """
    body = "\n".join(f"<section><h2>{html.escape(head)}</h2>\n{inner}</section>" for head, inner in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}{style}</style></head><body>\n<h1>{html.escape(title)}</h1>\n"
        f'<p class="lead">{html.escape(lead)}</p>\n{body}\n</body></html>\n'
    )


def html_table(table: Table, name: str = "", markup: Sequence[int] = ()) -> str:
    """Return a table of the CSS class ``name``. Cells are escaped, except in the columns ``markup``: they are HTML."""

    def line(cells: Sequence[str], tag: str, ready: Sequence[int] = ()) -> str:
        return "".join(
            f"<{tag}{' class=text' if column in table.text else ''}>"
            f"{cell if column in ready else html.escape(cell)}</{tag}>"
            for column, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{line(row, 'td', markup)}</tr>\n" for row in table.rows)
    kind = f' class="{html.escape(name)}"' if name else ""
    return (
        f'<div class="wide"><table{kind}><thead><tr>{line(table.header, "th")}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def html_image(png: bytes, caption: str, *, width: int | None = None) -> str:
    """Return an embedded picture with its caption, which is also the text for readers who cannot see the picture."""
    size = f' width="{width}"' if width else ""
    text = html.escape(caption, quote=True)
    source = data_url(png, "image/png")
    return f'<figure><img src="{source}" alt="{text}"{size}><figcaption>{text}</figcaption></figure>'


def data_url(content: bytes, mime: str) -> str:
    """Return a URL that contains the bytes themselves."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def html_text(*paragraphs: str, name: str = "") -> str:
    """Return paragraphs of plain text, with the CSS class ``name`` if one is given."""
    kind = f' class="{html.escape(name)}"' if name else ""
    return "".join(f"<p{kind}>{html.escape(text)}</p>\n" for text in paragraphs)


def html_list(items: Sequence[str], *, warnings: bool = False) -> str:
    """Return a list of plain texts."""
    kind = ' class="warning"' if warnings else ""
    return "<ul>" + "".join(f"<li{kind}>{html.escape(item)}</li>" for item in items) + "</ul>"


# ---------------------------------------------------------------------- terminal and Markdown


def text_table(table: Table) -> str:
    """Return a table in columns, for a terminal.

    >>> print(text_table(Table(["", "x"], [["mean", "1.5"], ["n", "12"]])))
          |   x
    mean  | 1.5
    n     |  12
    """
    lines = _aligned(table, [table.header, *table.rows])
    return "\n".join((line[0] + "  | " + "  ".join(line[1:])).rstrip() for line in lines)


def markdown_table(table: Table) -> str:
    r"""Return a Markdown table whose columns are aligned, so that it reads well as plain text too.

    >>> print(markdown_table(Table(["", "x"], [["a|b", "1.5"], ["n", "12"]])))
    |      |   x |
    | ---- | --: |
    | a\|b | 1.5 |
    | n    |  12 |
    """
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in (table.header, *table.rows)]
    least = ["---"] * len(table.header)  # some Markdown readers require three dashes
    header, *rows, ruler = _aligned(table, [*escaped, least])
    ruler = ["-" * (len(cell) - 1) + ("-" if table.is_text(i) else ":") for i, cell in enumerate(ruler)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ruler, *rows))


def _aligned(table: Table, lines: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return lines with the cells of each column padded to one width."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.header))]
    return [
        [
            cell.ljust(width) if table.is_text(column) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]


# ---------------------------------------------------------------------- numbers


def number(value: float, digits: int = 3) -> str:
    """Write a number with ``digits`` significant digits, and all digits of its whole part.

    >>> number(0.012345), number(1234.5), number(0.0), number(1e-9), number(12.0)
    ('0.0123', '1234', '0', '1e-09', '12')
    """
    if value == 0:
        return "0"
    if abs(value) >= 10**digits:
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def share_text(value: float) -> str:
    """Write a share in ``[0, 1]`` as a percentage. Only exactly 0 and 1 are written as 0 % and 100 %.

    >>> share_text(0.5), share_text(0.0004), share_text(0.9999), share_text(1.0)
    ('50 %', '<0.1 %', '>99.9 %', '100 %')
    """
    if 0 < value < 0.001:
        return "<0.1 %"
    if 0.999 < value < 1:
        return ">99.9 %"
    hundredths = 100 * value
    whole = hundredths >= 10 or hundredths == round(hundredths)
    return f"{hundredths:.0f} %" if whole else f"{hundredths:.1f} %"


def percent(fraction: float, decimals: int = 1, *, signed: bool = False) -> str:
    """Write a fraction in per cent with fixed decimals; ``signed`` shows a plus sign.

    >>> percent(0.9), percent(0.9, 0), percent(0.4, signed=True)
    ('90.0 %', '90 %', '+40.0 %')
    """
    return f"{100 * fraction:{'+' * signed}.{decimals}f} %"


def percent_range(limits: tuple[float, float], decimals: int = 1, *, signed: bool = False) -> str:
    """Write an interval of fractions in per cent.

    >>> percent_range((0.7864, 0.9565)), percent_range((-0.05, 0.1), 0, signed=True)
    ('78.6 to 95.7 %', '-5 to +10 %')
    """
    low, high = (percent(limit, decimals, signed=signed) for limit in limits)
    return f"{low.removesuffix(' %')} to {high}"


def clock(seconds: float, decimals: int = 0) -> str:
    """Write a duration in seconds, or in minutes and seconds; ``decimals`` applies below a minute.

    >>> clock(59.4), clock(59.4, 1), clock(59.6), clock(3725)
    ('59 s', '59.4 s', '1 min 00 s', '62 min 05 s')
    """
    if round(seconds, decimals) < 60:
        return f"{seconds:.{decimals}f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
