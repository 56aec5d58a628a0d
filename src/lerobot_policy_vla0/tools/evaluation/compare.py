"""Computes success rates and paired comparisons from episodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lerobot_policy_vla0.errors import EvaluationError
from lerobot_policy_vla0.tools.evaluation import statistics
from lerobot_policy_vla0.tools.evaluation.runs import Episode, Run


@dataclass(frozen=True)
class Rate:
    """A success rate."""

    n_success: int
    n_episodes: int

    @property
    def rate(self) -> float:
        """Fraction in [0, 1]."""
        return self.n_success / self.n_episodes

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval."""
        return statistics.wilson_interval(self.n_success, self.n_episodes)


@dataclass(frozen=True)
class Line:
    """One line of the success table."""

    kind: str  # task, suite or all
    name: str  # in the report
    rates: dict[str, Rate | None]  # by policy; None where it was not evaluated


def rate_of(episodes: Iterable[Episode]) -> Rate | None:
    """Return the success rate of some episodes, each counting the same; None if there are none."""
    outcomes = [episode.success for episode in episodes]
    return Rate(sum(outcomes), len(outcomes)) if outcomes else None


def success_lines(runs: Sequence[Run]) -> list[Line]:
    """Return a line per task, per suite of several tasks, and one for everything if there are several suites."""

    def line(kind: str, name: str, members: Sequence[tuple[str, int]]) -> Line:
        rates = {run.label: rate_of(e for e in run.episodes if e.task in members) for run in runs}
        return Line(kind, name, rates)

    tasks = sorted({episode.task for run in runs for episode in run.episodes})
    suites = sorted({suite for suite, _ in tasks})
    lines = []
    for suite in suites:
        members = [task for task in tasks if task[0] == suite]
        lines += [line("task", task_name(runs, task), [task]) for task in members]
        if len(members) > 1:
            lines.append(line("suite", f"{suite}, all {len(members)}", members))
    if len(suites) > 1:
        lines.append(line("all", f"all {len(tasks)} tasks", tasks))
    return lines


def task_name(runs: Sequence[Run], task: tuple[str, int]) -> str:
    """Return a task's name for the report; it is the suite's if the suite has no other task."""
    suite, task_id = task
    alone = all(episode.task == task for run in runs for episode in run.episodes if episode.suite == suite)
    known = next((run.task_names[task] for run in runs if task in run.task_names), f"task {task_id}")
    return suite if alone or known == suite else f"{suite}, {known}"


@dataclass(frozen=True)
class Comparison:
    """Two policies on the same starts; if LIBERO's start positions differ, on the same tasks and seeds."""

    first: str  # the policies' names
    second: str
    scope: str  # a suite, or "all tasks"
    both: int  # episodes by who solved them
    only_first: int
    only_second: int
    neither: int
    unpaired: tuple[int, int]  # episodes that are left out: the other policy did not play their start
    other_starts: bool = False  # the start positions of one are not those of the other

    @property
    def n(self) -> int:
        """Paired episodes."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def p_value(self) -> float:
        """Two-sided, of the exact McNemar test."""
        return statistics.mcnemar_exact(self.only_first, self.only_second)

    @property
    def difference(self) -> float:
        """Rate of the first minus that of the second."""
        return (self.only_first - self.only_second) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference."""
        return statistics.paired_difference_interval(self.only_first, self.only_second, self.n)

    @property
    def episodes_needed(self) -> int | None:
        """Paired episodes that would separate policies as different as measured; None if they measured the same."""
        return statistics.pairs_to_separate(self.only_first, self.only_second, self.n)


def compare(first: Run, second: Run) -> list[Comparison]:
    """Compare two policies on the starts both played: all together, and by suite if there are several.

    A start is a task and a seed. Where LIBERO's start positions differ, the same task and seed is another scene.

    Raises:
        EvaluationError: the seeds of one are not known, or there is no start that both played.
    """
    for run in (first, second):
        unknown = next((episode for episode in run.episodes if episode.seed is None), None)
        if unknown is not None:
            raise EvaluationError(
                f"{run.name!r} cannot be compared episode by episode: {unknown.source} does not say with which "
                "seeds it was made. Let its folder end in _seed<first seed>, evaluate with vla0 eval, or add "
                "--first-seed"
            )
    solved_first, solved_second = (
        {episode.start: episode.success for episode in run.episodes} for run in (first, second)
    )
    if not solved_first.keys() & solved_second.keys():
        raise EvaluationError(
            f"{first.name!r} and {second.name!r} have no episode in common: {_extent(first)} and {_extent(second)}. "
            "Evaluate both with the same tasks and --seed"
        )
    suites = sorted({suite for suite, *_ in solved_first.keys() & solved_second.keys()})
    comparisons = []
    for scope in [*(["all tasks"] if len(suites) > 1 else []), *suites]:
        members = suites if scope == "all tasks" else [scope]
        pairs = Counter(
            (solved_first.get(start), solved_second.get(start))
            for start in solved_first | solved_second
            if start[0] in members
        )
        comparisons.append(
            Comparison(
                first.label,
                second.label,
                scope,
                both=pairs[True, True],
                only_first=pairs[True, False],
                only_second=pairs[False, True],
                neither=pairs[False, False],
                unpaired=(pairs[True, None] + pairs[False, None], pairs[None, True] + pairs[None, False]),
                other_starts=first.start != second.start,
            )
        )
    return comparisons


def _extent(run: Run) -> str:
    seeds = [episode.seed for episode in run.episodes if episode.seed is not None]
    return f"{', '.join(sorted({episode.suite for episode in run.episodes}))} with seeds {min(seeds)} to {max(seeds)}"
