"""Builds the report of some runs, and writes it as Markdown, JSON and HTML.

Everything shown is a function of what was read: no dates, no machine, no order that could change. What the page
looks like is `report_html`'s.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lerobot_policy_vla0.errors import EvaluationError
from lerobot_policy_vla0.output_files import write_json, write_text
from lerobot_policy_vla0.tools.evaluation.compare import Comparison, Line, Rate, compare, success_lines
from lerobot_policy_vla0.tools.evaluation.report_text import as_markdown
from lerobot_policy_vla0.tools.evaluation.runs import Run, Skipped
from lerobot_policy_vla0.tools.evaluation.statistics import LEVEL, POWER

_WRITTEN_BY = "vla0 eval-report"
_FILES = ("report.md", "report.json", "index.html")


@dataclass
class Report:
    """What a report says.

    Attributes:
        runs: one per policy, in the order given.
        lines: the success table.
        comparisons: one list (all tasks, then by suite) per pair of policies.
    """

    runs: list[Run]
    lines: list[Line]
    comparisons: list[list[Comparison]] = field(default_factory=list)

    @property
    def skipped(self) -> list[Skipped]:
        """Evaluations that were left out."""
        return [skipped for run in self.runs for skipped in run.skipped]


def build_report(runs: Sequence[Run], pairs: Sequence[tuple[str, str]] = ()) -> Report:
    """Put together what is to be said about some runs.

    Args:
        runs: at least one, from `runs.read_run`.
        pairs: names of policies to compare episode by episode.

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


def as_json(report: Report) -> dict[str, Any]:
    """Return every number of the report."""
    return {
        "written_by": _WRITTEN_BY,
        "policies": [run.name for run in report.runs],
        "success": [
            {
                "kind": line.kind,
                "name": line.name,
                "rates": {name: _rate_json(r) for name, r in line.rates.items()},
            }
            for line in report.lines
        ],
        "comparisons": [_comparison_json(one) for comparisons in report.comparisons for one in comparisons],
        "skipped": [{"policy": s.policy, "path": str(s.path), "reason": s.reason} for s in report.skipped],
        "time": {
            run.name: {
                "seconds_per_episode": run.seconds / len(run.episodes),
                "query_milliseconds": run.query_times(),
            }
            for run in report.runs
        },
        "episodes": {
            run.name: [
                {
                    "suite": e.suite,
                    "task_id": e.task_id,
                    "seed": e.seed,
                    "success": e.success,
                    "sum_reward": e.sum_reward,
                }
                for e in run.episodes
            ]
            for run in report.runs
        },
    }


def _rate_json(rate: Rate | None) -> dict[str, Any] | None:
    if rate is None:
        return None
    return {
        "n_success": rate.n_success,
        "n_episodes": rate.n_episodes,
        "rate": rate.rate,
        "wilson_95": list(rate.interval),
    }


def _comparison_json(c: Comparison) -> dict[str, Any]:
    return {
        "first": c.first,
        "second": c.second,
        "scope": c.scope,
        "both": c.both,
        "only_first": c.only_first,
        "only_second": c.only_second,
        "neither": c.neither,
        "unpaired": list(c.unpaired),
        "difference": c.difference,
        "difference_95": list(c.interval),
        "p_mcnemar_exact": c.p_value,
        "episodes_needed": c.episodes_needed,
        "level": LEVEL,
        "power": POWER,
    }


def write_report(report: Report, out: Path) -> Path:
    """Write ``report.md``, ``report.json`` and ``index.html``; returns the path of the page.

    A report that is there already is replaced: it can be made again from the same runs.

    Raises:
        EvaluationError: the folder holds files of these names that this command did not write.
    """
    from lerobot_policy_vla0.tools.evaluation.report_html import as_html

    present = [name for name in _FILES if (out / name).exists()]
    if present and not _is_ours(out / "report.json"):
        raise EvaluationError(
            f"{out / present[0]} exists and is no report of {_WRITTEN_BY}: give another --out"
        )
    page = as_html(report, out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "report.json", as_json(report))
    write_text(out / "report.md", as_markdown(report, plots=True))
    write_text(out / "index.html", page)
    return out / "index.html"


def _is_ours(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text()).get("written_by") == _WRITTEN_BY)
    except (OSError, ValueError, AttributeError):
        return False
