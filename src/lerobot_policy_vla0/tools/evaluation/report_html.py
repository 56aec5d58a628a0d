"""The report as one HTML page that needs no other file: pictures are inside, the episodes' videos are linked.

Lays out what `report_text` says; computes nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from lerobot_policy_vla0.tools.evaluation import plots
from lerobot_policy_vla0.tools.evaluation import report_text as text
from lerobot_policy_vla0.tools.evaluation.compare import task_name
from lerobot_policy_vla0.tools.evaluation.runs import Episode
from lerobot_policy_vla0.tools.reporting.pages import Table, html_image, html_table, html_text, page

if TYPE_CHECKING:
    from lerobot_policy_vla0.tools.evaluation.report import Report

_STYLE = """
p.warning { border-left: 4px solid #b8443a; padding-left: .8rem; font-weight: 600; }
table { font-size: .9rem; }
.e { font-family: ui-monospace, monospace; text-decoration: none; padding: 0 .15em; color: white; border-radius: 3px; }
.y { background: #3d8b57; } .n { background: #b8443a; } a.e { text-decoration: underline; }
"""
_EPISODES_NOTE = "+ solved, - not, in the order of the seeds; underlined ones lead to the episode's video."


def as_html(report: Report, folder: Path) -> str:
    """Return the page.

    Args:
        report: what it says.
        folder: where it will lie; links to videos are relative to it.
    """
    sections = []
    if report.skipped:
        warning = html_text(*(line.strip("*") for line in text.warning_lines(report)), name="warning")
        sections.append(("Left out", warning + html_table(text.skipped_table(report), "skipped")))
    picture = html_image(plots.plot_success(report.lines), "Success rates with 95 % intervals.")
    success = html_table(text.success_table(report), "success")
    sections.append(("Success", success + picture + html_text(text.SUCCESS_NOTE)))
    for comparisons in report.comparisons:
        title = f"{comparisons[0].first} against {comparisons[0].second}"
        picture = html_image(
            plots.plot_comparison(comparisons), "Episodes with the same start, by who solves them."
        )
        said = html_text(*map(text.comparison_lines, comparisons))
        sections.append(
            (title, html_table(text.comparison_table(comparisons), "comparison") + picture + said)
        )
    sections += [
        ("What was decoded", html_text(*text.decoded_lines(report))),
        ("Time", html_table(text.time_table(report), "time") + html_text(text.TIME_NOTE)),
        ("Episodes", _episodes(report, folder) + html_text(_EPISODES_NOTE)),
    ]
    names = ", ".join(run.name for run in report.runs)
    return page(f"Evaluation: {names}", text.lead(report), sections, _STYLE)


def _episodes(report: Report, folder: Path) -> str:
    rows = [
        [
            run.name,
            task_name(report.runs, task),
            text.seeds_text(episodes),
            " ".join(_episode(episode, folder) for episode in episodes),
        ]
        for run in report.runs
        for task, episodes in text.episodes_by_task(run)
    ]
    table = Table(["policy", "task", "seeds", "outcomes"], rows, text=(1, 2, 3))
    return html_table(table, "episodes", markup=(3,))


def _episode(episode: Episode, folder: Path) -> str:
    seed = f"episode {episode.index}" if episode.seed is None else f"seed {episode.seed}"
    outcome, kind = ("solved", "y") if episode.success else ("not solved", "n")
    look = f'class="e {kind}" title="{seed}: {outcome}"'
    mark = "+" if episode.success else "-"
    if episode.video is None:
        return f"<span {look}>{mark}</span>"
    link = quote(Path(os.path.relpath(episode.video.resolve(), folder.resolve())).as_posix())
    return f'<a {look} href="{link}">{mark}</a>'
