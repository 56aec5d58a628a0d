"""What a report says, in sentences and tables of text, and all of it as Markdown.

Knows how numbers are worded; where they come from is `compare`'s, what a page looks like `report_html`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from lerobot_policy_vla0.tools.evaluation.compare import Comparison, Rate, task_name
from lerobot_policy_vla0.tools.evaluation.runs import Episode, Run
from lerobot_policy_vla0.tools.evaluation.statistics import LEVEL, POWER
from lerobot_policy_vla0.tools.reporting.pages import Table, clock, markdown_table, percent, percent_range

if TYPE_CHECKING:
    from lerobot_policy_vla0.tools.evaluation.report import Report

SUCCESS_NOTE = (
    "Solved of played, in per cent, and the 95 % Wilson interval. Lines over several tasks count every episode the "
    "same. The interval says how well these episodes pin the rate down, not how much another training seed would "
    "change it."
)
TIME_NOTE = (
    "Wall time per episode is simulator, rendering, video and policy together, in the process that ran it; shards "
    "that run side by side share the machine. A query is one call of the model for all environments of a batch; "
    "per executed step is its mean divided by n_action_steps."
)


def lead(report: Report) -> str:
    """Return what was evaluated, in a sentence."""
    played = [f"{len(run.episodes)} episodes of {run.name}" for run in report.runs]
    tasks = len({episode.task for run in report.runs for episode in run.episodes})
    return f"{', '.join(played)}; {tasks} task{'s' * (tasks != 1)}."


def success_table(report: Report) -> Table:
    """Return the success table: a column per policy."""
    names = [run.name for run in report.runs]
    rows = [[line.name, *(_rate_cell(line.rates[name]) for name in names)] for line in report.lines]
    return Table(["", *names], rows)


def _rate_cell(rate: Rate | None) -> str:
    if rate is None:
        return "not evaluated"
    return f"{rate.n_success} of {rate.n_episodes} = {percent(rate.rate)} ({percent_range(rate.interval)})"


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Return the counts of a pair of policies, by scope."""
    one = comparisons[0]
    header = [
        "",
        "pairs",
        "both",
        f"only {one.first}",
        f"only {one.second}",
        "neither",
        "difference",
        "95 %",
        "p",
    ]
    rows = [
        [
            *(c.scope, str(c.n), str(c.both), str(c.only_first), str(c.only_second), str(c.neither)),
            *(percent(c.difference, signed=True), percent_range(c.interval, signed=True), f"{c.p_value:.3g}"),
        ]
        for c in comparisons
    ]
    return Table(header, rows)


def comparison_text(comparison: Comparison) -> str:
    """Return what a comparison means, in sentences."""
    c = comparison
    text = (
        f"{c.n} starts that both played: {c.first} solves {c.only_first} that {c.second} does not, {c.second} "
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


def skipped_table(report: Report) -> Table:
    """Return what was left out, and why."""
    rows = [[s.policy, str(s.path), s.reason] for s in report.skipped]
    return Table(["policy", "left out", "why"], rows, text=(1, 2))


def decoded_lines(report: Report) -> list[str]:
    """Return, per policy, what its answers were: under the grammar no text can be malformed, so nothing was parsed."""
    return [f"{run.name}: {_decoded(run)}" for run in report.runs]


def _decoded(run: Run) -> str:
    configs = [policy.get("config", {}) for policy in run.policies]
    if not configs or any(config.get("type") != "vla0" for config in configs):
        return (
            "not recorded (lerobot-eval does not write which policy it ran; vla0 eval does, for checkpoints in a "
            "folder). A vla0 policy cannot write malformed text: its grammar allows well-formed answers only."
        )
    several = len({policy["fingerprint"] for policy in run.policies})
    joined = f"{several} different checkpoints under one name. " if several > 1 else ""
    shapes = {
        tuple(config.get(key, "?") for key in ("chunk_size", "action_dim", "n_bins")) for config in configs
    }
    answers = " or ".join(
        f"{steps} x {dim} integers in 0 to {bins}" for steps, dim, bins in sorted(shapes, key=str)
    )
    count = sum(query.rows for query in run.queries)
    amount = f"{count} answers, each" if count else "answers (not counted), each"
    return (
        f"{joined}{amount} {answers}, written under a grammar that allows nothing else. None was malformed, none "
        "was repaired or replaced by a default: there is no code that could, and an illegal token would have ended "
        "the evaluation."
    )


def time_table(report: Report) -> Table:
    """Return wall time per episode, and the policy's own where it was recorded."""
    header = [
        "",
        "wall time per episode",
        "queries",
        "ms per query, median",
        "95 % below",
        "ms per executed step",
    ]
    rows = []
    for run in report.runs:
        cells = [run.name, clock(run.seconds / len(run.episodes), 1)]
        latency = run.query_times()
        if latency is None:
            cells += ["not recorded"] * 4
        else:
            per_step = "not known" if latency["per_step"] is None else f"{latency['per_step']:.1f}"
            cells += [str(latency["queries"]), f"{latency['median']:.1f}", f"{latency['p95']:.1f}", per_step]
        rows.append(cells)
    return Table(header, rows)


def episodes_by_task(run: Run) -> list[tuple[tuple[str, int], list[Episode]]]:
    """Return a run's episodes by task, in the order of their seeds."""
    return [(task, list(group)) for task, group in groupby(run.episodes, key=lambda episode: episode.task)]


def seeds_text(episodes: Sequence[Episode]) -> str:
    """Return which seeds some episodes have, runs of them joined.

    Returns:
        For example ``0-9, 20-24``; ``not known`` if one is not.
    """
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


def episode_table(report: Report) -> Table:
    """Return every episode's outcome: + solved, - not, in the order of the seeds."""
    rows = [
        [
            run.name,
            task_name(report.runs, task),
            seeds_text(episodes),
            "".join("+" if e.success else "-" for e in episodes),
        ]
        for run in report.runs
        for task, episodes in episodes_by_task(run)
    ]
    return Table(["policy", "task", "seeds", "outcomes"], rows, text=(1, 2, 3))


def as_markdown(report: Report, *, plots: bool = False) -> str:
    """Return the report as Markdown, without the plots or with links to them.

    Args:
        report: what to say.
        plots: refer to the pictures in the page beside it.
    """
    parts = ["# Evaluation", lead(report), *warning_lines(report)]
    if report.skipped:
        parts.append(markdown_table(skipped_table(report)))
    parts += ["## Success", markdown_table(success_table(report)), SUCCESS_NOTE]
    for comparisons in report.comparisons:
        parts.append(f"## {comparisons[0].first} against {comparisons[0].second}")
        parts += [markdown_table(comparison_table(comparisons)), *map(comparison_lines, comparisons)]
    parts += ["## What was decoded", "\n".join(f"- {line}" for line in decoded_lines(report))]
    parts += ["## Time", markdown_table(time_table(report)), TIME_NOTE]
    parts += [
        "## Episodes",
        markdown_table(episode_table(report)),
        "`+` solved, `-` not, in the order of the seeds.",
    ]
    if plots:
        parts.append("Plots and videos: [index.html](index.html).")
    return "\n\n".join(parts) + "\n"


def comparison_lines(comparison: Comparison) -> str:
    """Return a comparison's sentences with its scope in front."""
    return f"{comparison.scope}: {comparison_text(comparison)}"


def warning_lines(report: Report) -> list[str]:
    """Return what has to be read before the numbers: how much is missing from them."""
    count = len(report.skipped)
    if not count:
        return []
    return [
        f"**{count} evaluation{'s were' if count > 1 else ' was'} left out; the numbers below do not include them.**"
    ]
