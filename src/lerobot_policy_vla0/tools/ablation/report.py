"""Writes the report of an ablation: tables per factor from the finished evaluations, and the list of the others."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lerobot_policy_vla0.errors import EvaluationError
from lerobot_policy_vla0.tools.ablation.plan import Factor, Plan
from lerobot_policy_vla0.tools.ablation.sweep import evaluation_folder, finished_run
from lerobot_policy_vla0.tools.ablation.trainings import setting_effect, spread, spread_of_episodes
from lerobot_policy_vla0.tools.evaluation.compare import Comparison, Rate, compare, rate_of
from lerobot_policy_vla0.tools.evaluation.report import build_report, write_report
from lerobot_policy_vla0.tools.evaluation.runs import Run, read_run
from lerobot_policy_vla0.tools.reporting.pages import Table, markdown_table, percent, percent_range

_NOTE = (
    "In a first table rates pool all seeds; the interval is Wilson's, 95 %, and treats episodes as independent: what "
    "another training seed changes shows in the column of seeds only. The difference is taken on the starts that both "
    "played (exact McNemar test), against the first row. It is about these trained policies."
)
_TRAININGS_NOTE = (
    "In a second table a training counts once, so it is about the setting. The spread is the standard deviation of "
    "the trainings' rates; beside it, what so few episodes would spread by if all trainings were equally good. The "
    "difference is that of the means, with Student's interval, 95 % (Welch's; of the pairs where both rows play the "
    "same trainings); p is the permutation test's over trainings, and cannot be smaller than the number in brackets."
)
_TRAININGS_HEADER = [
    "",
    "trainings",
    "mean",
    "spread",
    "by episodes alone",
    "difference to the first row",
    "95 %",
    "p",
]
_HEADER = ["", "solved", "95 %", "by seed", "difference to the first row", "p", "ms per query"]


@dataclass(frozen=True)
class Row:
    """A variant's results."""

    name: str  # of the variant
    run: Run | None  # its episodes; None if there are none yet
    by_seed: list[str]  # solved/played per training seed
    trained: dict[str, Rate]  # of each finished training, by its name
    missing: list[str]  # evaluations that are not finished
    comparison: Comparison | None  # with the first variant; None for itself and without a common start


def read_factor(factor: Factor, out: Path) -> list[Row]:
    """Read the finished evaluations of a factor."""
    rows: list[Row] = []
    for variant in factor.variants:
        folders, missing, by_seed = [], [], []
        trained: dict[str, Rate] = {}
        for evaluation in variant.evaluations:
            run = finished_run(evaluation, out)
            if run is None:  # a part of an evaluation is not counted
                missing.append(evaluation.name)
                by_seed.append("-")
            else:
                folders.append(evaluation_folder(out, evaluation))
                rate = Rate(sum(e.success for e in run.episodes), len(run.episodes))
                by_seed.append(f"{rate.n_success}/{rate.n_episodes}")
                trained[evaluation.training.name] = rate
        run = read_run(variant.name, folders) if folders else None
        comparison = None
        if run is not None and rows and rows[0].run is not None:
            with suppress(EvaluationError):  # there is no start yet that both played
                comparison = compare(run, rows[0].run)[0]
        rows.append(Row(variant.name, run, by_seed, trained, missing, comparison))
    return rows


def factor_table(rows: list[Row]) -> Table:
    """Return a factor's table: a line per variant."""
    lines = []
    for row in rows:
        rate = rate_of(row.run.episodes) if row.run else None
        if row.run is None or rate is None:
            lines.append([row.name, "not measured", *[""] * (len(_HEADER) - 2)])
            continue
        c, times = row.comparison, row.run.query_times()
        lines.append(
            [
                row.run.label,
                f"{rate.n_success} of {rate.n_episodes} = {percent(rate.rate)}",
                percent_range(rate.interval),
                " ".join(row.by_seed),
                "" if c is None else f"{percent(c.difference, signed=True)} ({c.n} pairs)",
                "" if c is None else f"{c.p_value:.3g}",
                "" if times is None else f"{times['median']:.0f}",
            ]
        )
    return Table(_HEADER, lines, text=(3,))


def trainings_table(rows: list[Row]) -> Table | None:
    """Return the table in which a training counts once; None unless the first variant has two finished trainings."""
    first = rows[0].trained
    if len(first) < 2:
        return None
    lines = []
    for row in rows:
        rates = [rate.rate for rate in row.trained.values()]
        if len(rates) < 2:
            lines.append([row.name, str(len(rates)), *[""] * (len(_TRAININGS_HEADER) - 2)])
            continue
        mean, played = sum(rates) / len(rates), min(rate.n_episodes for rate in row.trained.values())
        spreads = [percent(spread(rates)), percent(spread_of_episodes(mean, played))]
        compared = ["", "", ""]
        if row is not rows[0]:
            common = [name for name in row.trained if name in first]
            paired = len(common) > 1
            ours = [row.trained[name].rate for name in (common if paired else row.trained)]
            theirs = [first[name].rate for name in (common if paired else first)]
            effect = setting_effect(ours, theirs, paired=paired)
            limits = "no spread" if effect.interval is None else percent_range(effect.interval, signed=True)
            p = f"{effect.p_value:.3g} ({effect.smallest_p_value:.3g})"
            compared = [percent(effect.difference, signed=True), limits, p]
        lines.append([row.name, str(len(rates)), percent(mean), *spreads, *compared])
    return Table(_TRAININGS_HEADER, lines)


def write_ablation_report(plan: Plan, out: Path, title: str) -> tuple[str, list[str]]:
    """Write ``OUT/report.md``, and a page with plots and videos per factor below ``OUT/report/``.

    Returns:
        The report as Markdown, and the evaluations that are not finished.

    Raises:
        EvaluationError: nothing is finished.
    """
    parts = [f"# {title}"]
    missing: dict[str, None] = {}  # a set that keeps the order
    notes: dict[str, None] = {_NOTE: None}  # another one
    pages = 0
    for factor in plan.factors:
        rows = read_factor(factor, out)
        for row in rows:
            missing |= dict.fromkeys(row.missing)
        parts += [f"## {factor.name}", markdown_table(factor_table(rows))]
        by_training = trainings_table(rows)
        if by_training is not None:
            parts.append(markdown_table(by_training))
            notes[_TRAININGS_NOTE] = None
        runs = [row.run for row in rows if row.run is not None]
        if runs:
            pairs = [(row.name, rows[0].name) for row in rows if row.comparison is not None]
            page = write_report(build_report(runs, pairs), out / "report" / factor.name)
            parts.append(f"[Episodes, plots and videos](<{page.relative_to(out)}>)")
            pages += 1
    if not pages:
        raise EvaluationError(f"nothing below {out} is finished yet: there is nothing to report")
    parts += notes
    if missing:
        parts.append("**Not finished, and not counted:** " + ", ".join(missing))
    text = "\n\n".join(parts) + "\n"
    (out / "report.md").write_text(text)
    return text, list(missing)
