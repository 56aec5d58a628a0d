"""The report as one HTML page that needs no other file: pictures are inside, the episodes' videos are linked.

Lays out what `report_text` says; computes nothing.
"""

from __future__ import annotations

import html
import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from lerobot_policy_vla0.evaluation import plots
from lerobot_policy_vla0.evaluation import report_text as text
from lerobot_policy_vla0.evaluation.compare import task_name
from lerobot_policy_vla0.evaluation.runs import Episode
from lerobot_policy_vla0.evaluation.tables import STYLE, data_url, html_table, raw_html_table

if TYPE_CHECKING:
    from lerobot_policy_vla0.evaluation.report import Report

_MORE_STYLE = """
p.warning { border-left: 4px solid #b8443a; padding-left: .8rem; font-weight: 600; }
table { display: block; overflow-x: auto; font-size: .9rem; }
td.outcomes, table.episodes td { word-break: break-all; }
.e { font-family: ui-monospace, monospace; text-decoration: none; padding: 0 .15em; color: white; border-radius: 3px; }
.y { background: #3d8b57; } .n { background: #b8443a; } a.e { text-decoration: underline; }
"""


def as_html(report: Report, folder: Path) -> str:
    """Return the page.

    Args:
        report: what it says.
        folder: where it will lie; links to videos are relative to it.

    Raises:
        EvaluationError: matplotlib is missing.
    """
    plots.check_matplotlib()
    title = "Evaluation: " + ", ".join(run.name for run in report.runs)
    parts = [f"<h1>{html.escape(title)}</h1>"]
    if report.skipped:
        warning = " ".join(text.warning_lines(report)).strip("*")
        parts += [
            f'<p class="warning">{html.escape(warning)}</p>',
            _table(text.skipped_table(report), "skipped"),
        ]
    parts += ["<h2>Success</h2>", _table(text.success_table(report), "success")]
    parts += [
        _picture(plots.plot_success(report.lines), "success rates with 95 % intervals"),
        _p(text.SUCCESS_NOTE),
    ]
    for comparisons in report.comparisons:
        parts.append(f"<h2>{html.escape(f'{comparisons[0].first} against {comparisons[0].second}')}</h2>")
        parts.append(_table(text.comparison_table(comparisons), "comparison"))
        parts.append(_picture(plots.plot_comparison(comparisons), "episodes by who solves them"))
        parts += [_p(text.comparison_lines(comparison)) for comparison in comparisons]
    parts += ["<h2>What was decoded</h2>", *map(_p, text.decoded_lines(report))]
    parts += ["<h2>Time</h2>", _table(text.time_table(report), "time"), _p(text.TIME_NOTE)]
    parts += ["<h2>Episodes</h2>", _episodes(report, folder), _p(_EPISODES_NOTE)]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{STYLE}{_MORE_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


_EPISODES_NOTE = "+ solved, - not, in the order of the seeds; underlined ones lead to the episode's video."


def _episodes(report: Report, folder: Path) -> str:
    rows = [
        [
            html.escape(run.name),
            html.escape(task_name(report.runs, task)),
            html.escape(text.seeds_text(episodes)),
            " ".join(_episode(episode, folder) for episode in episodes),
        ]
        for run in report.runs
        for task, episodes in text.episodes_by_task(run)
    ]
    return raw_html_table(["policy", "task", "seeds", "outcomes"], rows, "episodes")


def _episode(episode: Episode, folder: Path) -> str:
    seed = f"episode {episode.index}" if episode.seed is None else f"seed {episode.seed}"
    outcome, kind = ("solved", "y") if episode.success else ("not solved", "n")
    look = f'class="e {kind}" title="{seed}: {outcome}"'
    mark = "+" if episode.success else "-"
    if episode.video is None:
        return f"<span {look}>{mark}</span>"
    link = quote(Path(os.path.relpath(episode.video.resolve(), folder.resolve())).as_posix())
    return f'<a {look} href="{link}">{mark}</a>'


def _table(table: text.Table, name: str) -> str:
    return html_table(table.header, table.rows, name)


def _picture(png: bytes, what: str) -> str:
    return f'<img src="{data_url(png, "image/png")}" alt="{html.escape(what)}">'


def _p(sentence: str) -> str:
    return f"<p>{html.escape(sentence)}</p>"
