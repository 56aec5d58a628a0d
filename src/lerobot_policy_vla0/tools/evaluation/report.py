"""Builds the report of some runs and writes it: Markdown (also for the terminal), JSON, and one HTML page.

The same runs give the same bytes: the report holds no date, no machine name and no order that could change. The page
contains its pictures; it links the episodes' videos.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lerobot_policy_vla0.errors import EvaluationError
from lerobot_policy_vla0.output_files import write_json, write_text
from lerobot_policy_vla0.tools.evaluation.compare import (
    Comparison,
    Line,
    Rate,
    compare,
    success_lines,
    task_name,
)
from lerobot_policy_vla0.tools.evaluation.runs import Episode, Run, Skipped
from lerobot_policy_vla0.tools.evaluation.statistics import LEVEL, POWER
from lerobot_policy_vla0.tools.reporting import pages
from lerobot_policy_vla0.tools.reporting.pages import Table, clock, percent, percent_range

_WRITTEN_BY = "vla0 eval-report"
_FILES = ("report.md", "report.json", "index.html")

_SUCCESS_NOTE = (
    "Solved of played, in per cent, and the 95 % Wilson interval. Lines over several tasks count every episode the "
    "same. The interval says how well these episodes determine the rate, not how much another training seed would "
    "change it."
)
_TIME_NOTE = (
    "Wall time per episode is simulator, rendering, video and policy together, in the process that ran it; shards "
    "that run side by side share the machine. A query is one call of the model for all environments of a batch; "
    "per executed step is its mean divided by n_action_steps."
)
_FAILURES_NOTE = (
    "A part that hung or died was played again from its first episode; the numbers are those of the attempt that "
    "finished."
)
_OUTCOMES_NOTE = "`+` solved, `-` not, in the order of the seeds."
_LINKS_NOTE = "+ solved, - not, in the order of the seeds; underlined ones lead to the episode's video."

_STYLE = """
p.warning { border-left: 4px solid #b8443a; padding-left: .8rem; font-weight: 600; }
table { font-size: .9rem; }
.e { font-family: ui-monospace, monospace; text-decoration: none; padding: 0 .15em; color: white; border-radius: 3px; }
.y { background: #3d8b57; } .n { background: #b8443a; } a.e { text-decoration: underline; }
"""


@dataclass
class Report:
    """What a report says."""

    runs: list[Run]  # one per policy, in the order given
    lines: list[Line]  # the success table
    comparisons: list[list[Comparison]]  # one list (all tasks, then by suite) per pair of policies

    @property
    def skipped(self) -> list[Skipped]:
        """Evaluations that were left out."""
        return [skipped for run in self.runs for skipped in run.skipped]


def build_report(runs: Sequence[Run], pairs: Sequence[tuple[str, str]] = ()) -> Report:
    """Compute the success rates of some runs, and compare the policies that ``pairs`` names episode by episode.

    Raises:
        EvaluationError: a pair names a policy that is not there, or cannot be compared (see `compare.compare`).
    """
    by_name = {run.name: run for run in runs}
    for first, second in pairs:
        for name in (first, second):
            if name not in by_name:
                raise EvaluationError(
                    f"--compare: there is no policy {name!r}; there are {', '.join(by_name)}"
                )
        if first == second:
            raise EvaluationError(f"--compare: {first!r} with itself")
    comparisons = [compare(by_name[first], by_name[second]) for first, second in pairs]
    return Report(list(runs), success_lines(runs), comparisons)


def write_report(report: Report, out: Path) -> Path:
    """Write ``report.md``, ``report.json`` and ``index.html``, and return the path of the page.

    It replaces a report that is there already, which can be made again from the same runs.

    Raises:
        EvaluationError: the folder holds files of these names that this command did not write.
    """
    present = [name for name in _FILES if (out / name).exists()]
    if present and not _is_report(out / "report.json"):
        raise EvaluationError(
            f"{out / present[0]} exists and is no report of {_WRITTEN_BY}: give another --out"
        )
    html = as_html(report, out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "report.json", as_json(report))
    write_text(out / "report.md", as_markdown(report, plots=True))
    write_text(out / "index.html", html)
    return out / "index.html"


def _is_report(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text()).get("written_by") == _WRITTEN_BY)
    except (OSError, ValueError, AttributeError):
        return False


# ---------------------------------------------------------------------- JSON, Markdown, HTML


def as_json(report: Report) -> dict[str, Any]:
    """Return every number of the report."""

    def rate(r: Rate | None) -> dict[str, Any] | None:
        return None if r is None else asdict(r) | {"rate": r.rate, "wilson_95": r.interval}

    def comparison(c: Comparison) -> dict[str, Any]:
        return asdict(c) | {
            "difference": c.difference,
            "difference_95": c.interval,
            "p_mcnemar_exact": c.p_value,
            "episodes_needed": c.episodes_needed,
            "level": LEVEL,
            "power": POWER,
        }

    def times(run: Run) -> dict[str, Any]:
        seconds = run.seconds / len(run.episodes)
        return {"seconds_per_episode": seconds, "query_milliseconds": run.query_times()}

    def episode(e: Episode) -> dict[str, Any]:
        return {key: getattr(e, key) for key in ("suite", "task_id", "seed", "success", "sum_reward")}

    return {
        "written_by": _WRITTEN_BY,
        "policies": [run.label for run in report.runs],
        "perturbed": {run.label: run.changes for run in report.runs},
        "success": [
            {"kind": line.kind, "name": line.name, "rates": {name: rate(r) for name, r in line.rates.items()}}
            for line in report.lines
        ],
        "comparisons": [comparison(one) for comparisons in report.comparisons for one in comparisons],
        "failed_attempts": {run.label: [asdict(one) for one in run.failures] for run in report.runs},
        "skipped": [asdict(one) | {"path": str(one.path)} for one in report.skipped],
        "time": {run.label: times(run) for run in report.runs},
        "episodes": {run.label: [episode(e) for e in run.episodes] for run in report.runs},
    }


def as_markdown(report: Report, *, plots: bool = False) -> str:
    """Return the report as Markdown; ``plots`` adds a link to the page beside it, which has the pictures."""
    parts = ["# Evaluation", _lead(report)]
    if report.skipped:
        parts += [f"**{_warning(report)}**", pages.markdown_table(_skipped_table(report))]
    for section in _sections(report):
        parts.append(f"## {section.title}")
        if section.table:
            parts.append(pages.markdown_table(section.table))
        parts += ["\n".join(f"- {line}" for line in section.text)] if section.bullets else section.text
    table = _episode_table(report, lambda episodes: "".join(map(_mark, episodes)))
    parts += ["## Episodes", pages.markdown_table(table), _OUTCOMES_NOTE]
    if plots:
        parts.append("Plots and videos: [index.html](index.html).")
    return "\n\n".join(parts) + "\n"


def as_html(report: Report, folder: Path) -> str:
    """Return the report as a page that needs no other file; links to videos are relative to ``folder``."""
    from lerobot_policy_vla0.tools.evaluation.plots import plot_comparison, plot_success

    pictures = {"Success": pages.html_image(plot_success(report.lines), "Success rates with 95 % intervals.")}
    for comparisons in report.comparisons:
        same = "task and seed" if comparisons[0].other_starts else "start"
        caption = f"Episodes with the same {same}, by who solves them."
        pictures[_comparison_title(comparisons)] = pages.html_image(plot_comparison(comparisons), caption)
    sections = []
    if report.skipped:
        table = pages.html_table(_skipped_table(report), "skipped")
        sections.append(("Left out", pages.html_text(_warning(report), name="warning") + table))
    for section in _sections(report):
        table = pages.html_table(section.table, section.name) if section.table else ""
        picture = pictures.get(section.title, "")
        sections.append((section.title, table + picture + pages.html_text(*section.text)))
    episodes = _episode_table(report, lambda several: " ".join(_link(episode, folder) for episode in several))
    sections.append(
        ("Episodes", pages.html_table(episodes, "episodes", markup=(3,)) + pages.html_text(_LINKS_NOTE))
    )
    names = ", ".join(run.label for run in report.runs)
    return pages.page(f"Evaluation: {names}", _lead(report), sections, _STYLE)


def _mark(episode: Episode) -> str:
    return "+" if episode.success else "-"


def _link(episode: Episode, folder: Path) -> str:
    """Return an episode's mark as HTML; it is a link to the episode's video if there is one."""
    seed = f"episode {episode.index}" if episode.seed is None else f"seed {episode.seed}"
    outcome, kind = ("solved", "y") if episode.success else ("not solved", "n")
    attributes = f'class="e {kind}" title="{seed}: {outcome}"'
    if episode.video is None:
        return f"<span {attributes}>{_mark(episode)}</span>"
    link = quote(Path(os.path.relpath(episode.video.resolve(), folder.resolve())).as_posix())
    return f'<a {attributes} href="{link}">{_mark(episode)}</a>'


# ---------------------------------------------------------------------- what Markdown and HTML both say


@dataclass(frozen=True)
class _Section:
    """One part of the report."""

    title: str  # its heading
    text: list[str]  # paragraphs of plain text below the table
    table: Table | None = None
    name: str = ""  # of the table, as a CSS class
    bullets: bool = False  # whether the text is a list in Markdown


def _sections(report: Report) -> list[_Section]:
    """Return all parts but the episodes, which HTML links to their videos."""
    sections = [_Section("Success", [_SUCCESS_NOTE], _success_table(report), "success")]
    for comparisons in report.comparisons:
        text = [f"{one.scope}: {_comparison_text(one)}" for one in comparisons]
        table = _comparison_table(comparisons)
        sections.append(_Section(_comparison_title(comparisons), text, table, "comparison"))
    decoded = [f"{run.label}: {_decoded_text(run)}" for run in report.runs]
    sections.append(_Section("What was decoded", decoded, bullets=True))
    sections.append(_Section("Time", [_TIME_NOTE], _time_table(report), "time"))
    if any(run.failures for run in report.runs):
        sections.append(
            _Section("Attempts that failed", [_FAILURES_NOTE], _failures_table(report), "failures")
        )
    return sections


def _lead(report: Report) -> str:
    """Return what was evaluated, in a sentence."""
    played = [f"{len(run.episodes)} episodes of {run.label}" for run in report.runs]
    tasks = len({episode.task for run in report.runs for episode in run.episodes})
    return f"{', '.join(played)}; {tasks} task{'s' * (tasks != 1)}."


def _warning(report: Report) -> str:
    """Return a sentence for readers to see before the numbers: how much is missing from them."""
    count = len(report.skipped)
    were = "evaluations were" if count > 1 else "evaluation was"
    return f"{count} {were} left out; the numbers below do not include them."


def _skipped_table(report: Report) -> Table:
    rows = [[s.policy, str(s.path), s.reason] for s in report.skipped]
    return Table(["policy", "left out", "why"], rows, text=(1, 2))


def _success_table(report: Report) -> Table:
    """Return the success table: a column per policy."""

    def cell(rate: Rate | None) -> str:
        if rate is None:
            return "not evaluated"
        interval = percent_range(rate.interval)
        return f"{rate.n_success} of {rate.n_episodes} = {percent(rate.rate)} ({interval})"

    names = [run.label for run in report.runs]
    rows = [[line.name, *(cell(line.rates[name]) for name in names)] for line in report.lines]
    return Table(["", *names], rows)


def _comparison_title(comparisons: Sequence[Comparison]) -> str:
    return f"{comparisons[0].first} against {comparisons[0].second}"


def _comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Return the counts of a pair of policies, by scope."""
    only = [f"only {comparisons[0].first}", f"only {comparisons[0].second}"]
    header = ["", "pairs", "both", *only, "neither", "difference", "95 %", "p"]
    rows = [
        [
            *(c.scope, str(c.n), str(c.both), str(c.only_first), str(c.only_second), str(c.neither)),
            *(percent(c.difference, signed=True), percent_range(c.interval, signed=True), f"{c.p_value:.3g}"),
        ]
        for c in comparisons
    ]
    return Table(header, rows)


def _comparison_text(c: Comparison) -> str:
    """Return what a comparison means, in sentences."""
    pairs = "starts that both played"
    if c.other_starts:
        pairs = "pairs of the same task and seed, from different start positions"
    text = (
        f"{c.n} {pairs}: {c.first} solves {c.only_first} that {c.second} does not, {c.second} "
        f"solves {c.only_second} that {c.first} does not; p = {c.p_value:.3g} (exact McNemar test, two-sided). "
    )
    if c.p_value <= LEVEL:
        text += f"{c.first if c.difference > 0 else c.second} is better at the {LEVEL:g} level. "
    else:
        text += f"This does not separate them at the {LEVEL:g} level. "
    if c.episodes_needed is None:
        text += "They measured the same, so no number of episodes follows that would separate them."
    else:
        text += (
            f"If they differ as much as measured, it takes {c.episodes_needed} paired episodes to separate them "
            f"(exact test, two-sided level {LEVEL:g}, power {POWER:g})."
        )
    if any(c.unpaired):
        text += (
            f" Left out, because only one of them played it: {c.unpaired[0]} episodes of {c.first}, {c.unpaired[1]} "
            f"of {c.second}."
        )
    return text


def _decoded_text(run: Run) -> str:
    """Return the form of a policy's answers and their number. The grammar makes malformed answers impossible."""
    configs = [policy.get("config", {}) for policy in run.policies]
    if not configs or any(config.get("type") != "vla0" for config in configs):
        return (
            "not recorded (lerobot-eval does not write which policy it ran; vla0 eval does, for checkpoints in a "
            "folder). A vla0 policy cannot write malformed text: its grammar allows well-formed answers only."
        )
    several = len({policy["fingerprint"] for policy in run.policies})
    joined = f"{several} different checkpoints under one name. " if several > 1 else ""
    forms = {
        tuple(config.get(key, "?") for key in ("chunk_size", "action_dim", "n_bins")) for config in configs
    }
    answers = " or ".join(
        f"{steps} x {dim} integers in 0 to {bins}" for steps, dim, bins in sorted(forms, key=str)
    )
    count = sum(query.rows for query in run.queries)
    amount = f"{count} answers, each" if count else "answers (not counted), each"
    return (
        f"{joined}{amount} {answers}, written under a grammar that allows nothing else. None was malformed, none "
        "was repaired or replaced by a default: there is no code that could, and an illegal token would have ended "
        "the evaluation."
    )


def _time_table(report: Report) -> Table:
    """Return wall time per episode, and the time of the policy's queries where it was recorded."""
    milliseconds = ["ms per query, median", "95 % below", "ms per executed step"]
    rows = []
    for run in report.runs:
        cells = [run.label, clock(run.seconds / len(run.episodes), 1)]
        times = run.query_times()
        if times is None:
            cells += ["not recorded"] * 4
        else:
            per_step = "not known" if times["per_step"] is None else f"{times['per_step']:.1f}"
            cells += [str(times["queries"]), f"{times['median']:.1f}", f"{times['p95']:.1f}", per_step]
        rows.append(cells)
    return Table(["", "wall time per episode", "queries", *milliseconds], rows)


def _failures_table(report: Report) -> Table:
    """Return a row per attempt that hung or died."""
    rows = [[run.label, one.shard, str(one.attempt), one.why] for run in report.runs for one in run.failures]
    return Table(["policy", "part", "attempt", "what happened"], rows, text=(1, 3))


def _episode_table(report: Report, outcomes: Callable[[list[Episode]], str]) -> Table:
    """Return a row per policy and task; ``outcomes`` makes the cell of its episodes, in the order of their seeds."""
    rows = []
    for run in report.runs:
        for task, group in groupby(run.episodes, key=lambda episode: episode.task):
            episodes = list(group)
            rows.append([run.label, task_name(report.runs, task), seeds_text(episodes), outcomes(episodes)])
    return Table(["policy", "task", "seeds", "outcomes"], rows, text=(1, 2, 3))


def seeds_text(episodes: Sequence[Episode]) -> str:
    """Return the seeds of some episodes, consecutive ones joined: ``0-9, 20-24``; ``not known`` if one is not."""
    seeds = [episode.seed for episode in episodes]
    if None in seeds:
        return "not known"
    ends: list[list[int]] = []
    for seed in sorted(seed for seed in seeds if seed is not None):
        if ends and ends[-1][1] == seed - 1:
            ends[-1][1] = seed
        else:
            ends.append([seed, seed])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ends)
