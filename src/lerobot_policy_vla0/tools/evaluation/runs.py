"""Finds evaluations on disk and reads them as episodes, each with its policy, task and seed.

It reads folders of ``lerobot-eval`` and of ``vla0 eval``. A corrupt or unfinished evaluation is left out and named; an
episode that is there twice is an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lerobot_policy_vla0.errors import EvaluationError
from lerobot_policy_vla0.tools.evaluation import queries
from lerobot_policy_vla0.tools.evaluation.eval_info import FILE_NAME, EvalInfo, read_eval_info
from lerobot_policy_vla0.tools.evaluation.folder import MANIFEST, Failure, read_evaluation
from lerobot_policy_vla0.tools.evaluation.queries import Query, read_queries, summarise

_SEED = re.compile(r"(?:^|[_-])seed[_-]?(\d+)$")


@dataclass(frozen=True)
class Episode:
    """One episode of one policy."""

    suite: str  # LeRobot's task_group
    task_id: int  # index within the suite
    seed: int | None  # of the environment's reset; None if it is not known: lerobot-eval does not write it
    index: int  # position in its evaluation
    success: bool  # whether it was solved
    sum_reward: float  # in the environment's units
    video: Path | None
    source: Path  # the eval_info.json it comes from

    @property
    def task(self) -> tuple[str, int]:
        """Suite and index of the task."""
        return self.suite, self.task_id

    @property
    def start(self) -> tuple[str, int, int | None, int]:
        """What identifies the start of the episode: two policies with the same start saw the same scene."""
        return self.suite, self.task_id, self.seed, self.index if self.seed is None else 0


@dataclass(frozen=True)
class Skipped:
    """An evaluation that was left out."""

    policy: str
    path: Path
    reason: str


@dataclass
class Run:
    """Everything that was read about one policy."""

    name: str  # as it was given
    changes: str = ""  # of what the policy saw and of where LIBERO started; see `ShardedEvaluation.changes`
    start: str = ""  # LIBERO's start positions, if they were not its own
    episodes: list[Episode] = field(default_factory=list)  # sorted by task and seed; at least one
    skipped: list[Skipped] = field(default_factory=list)  # evaluations that were left out, and why
    failures: list[Failure] = field(default_factory=list)  # attempts of `vla0 eval` that hung or died
    task_names: dict[tuple[str, int], str] = field(default_factory=dict)  # for the report, where known
    seconds: float = 0.0  # wall time of all evaluations: simulator, rendering and policy together
    # What `vla0 eval` records (see `folder.describe_policy` and `queries`); lerobot-eval does not.
    policies: list[dict[str, Any]] = field(default_factory=list)
    queries: list[Query] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Its name in the report, which says what was changed."""
        return f"{self.name} ({self.changes})" if self.changes else self.name

    def query_times(self) -> dict[str, float | int | None] | None:
        """Return the summary that `queries.summarise` makes of the queries; None if there are none."""
        steps = {policy.get("config", {}).get("n_action_steps") for policy in self.policies}
        return summarise(self.queries, steps.pop() if len(steps) == 1 else None)


def parse_run_arguments(arguments: Iterable[str]) -> dict[str, list[Path]]:
    """Return folders by policy name from ``FOLDER`` or ``NAME=FOLDER`` arguments.

    A policy without a name gets the folder's. Folders with the same given name are joined.

    Raises:
        EvaluationError: two folders without a given name have the same name.

    >>> parse_run_arguments(["ours=runs/a", "ours=runs/b"])
    {'ours': [PosixPath('runs/a'), PosixPath('runs/b')]}
    """
    named: dict[str, list[Path]] = {}
    unnamed: dict[str, Path] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if equals and name and path and not Path(argument).exists():
            named.setdefault(name, []).append(Path(path))
            continue
        folder = Path(argument)
        name = folder.resolve().name
        if name in unnamed or name in named:
            raise EvaluationError(
                f"{folder} and {unnamed.get(name, name)} would both be called {name!r}: say which policy each one "
                "is, as NAME=FOLDER (the same name joins them)"
            )
        unnamed[name] = folder
        named[name] = [folder]
    return named


def read_run(name: str, folders: Iterable[Path], first_seed: int | None = None) -> Run:
    """Read every evaluation of one policy at or below some folders.

    Seeds come from the manifest of ``vla0 eval``, or from the name of the folder with the ``eval_info.json`` if it ends
    in ``seed<S>`` (its episode i was then reset with S + i), or from ``first_seed``.

    Returns:
        The run; evaluations that could not be read are in its ``skipped``.

    Raises:
        EvaluationError: a folder holds no evaluation, none can be read, an episode is there twice, or some were
            perturbed in another way, or started elsewhere, than others.
    """
    run = Run(name)
    changes: dict[str, Path] = {}  # each with the first evaluation that has it
    for folder in folders:
        found = list(_find(folder))
        if not found:
            raise EvaluationError(
                f"{folder} holds no evaluation: neither {FILE_NAME} nor {MANIFEST} at or below it"
            )
        for path in found:
            kind = _read_one(run, path, first_seed)
            if kind is not None:
                changes.setdefault(kind, path)
    if len(changes) > 1:
        where = "; ".join(f"{kind or 'not'} in {path}" for kind, path in changes.items())
        raise EvaluationError(
            f"{name!r} joins evaluations that were perturbed (--perturb), or started, in different ways: {where}. Give "
            "them different names, as NAME=FOLDER"
        )
    run.changes = next(iter(changes), "")
    if not run.episodes:
        reasons = "; ".join(f"{skipped.path}: {skipped.reason}" for skipped in run.skipped)
        raise EvaluationError(f"nothing of {name!r} can be read: {reasons}")
    run.episodes.sort(
        key=lambda episode: (*episode.task, -1 if episode.seed is None else episode.seed, episode.index)
    )
    for earlier, later in zip(run.episodes, run.episodes[1:], strict=False):
        if earlier.start == later.start:
            seed, fix = f" with seed {later.seed}", ": leave one out"
            if later.seed is None:
                seed, fix = (
                    "",
                    ", and neither says its seeds: let their folders end in _seed<first seed>, or leave one out",
                )
            what = f"{later.suite} task {later.task_id}{seed}"
            raise EvaluationError(f"{name!r} has {what} twice, in {earlier.source} and {later.source}{fix}")
    return run


def _find(folder: Path) -> Iterator[Path]:
    """Yield the folders of evaluations at or below a folder, finished or not, in a fixed order."""
    for here, folders, files in os.walk(folder):
        folders.sort()
        # lerobot-eval makes videos/<task>/ first. Data sets have a folder videos too, and one called meta.
        unfinished = "videos" in folders and "meta" not in folders + files
        if MANIFEST in files or FILE_NAME in files or unfinished:
            folders.clear()
            yield Path(here)


def _read_one(run: Run, path: Path, first_seed: int | None) -> str | None:
    """Add one evaluation's episodes to a run, or the reason why it is left out; return what was changed.

    None means that the evaluation cannot be read.
    """
    try:
        if not (path / MANIFEST).exists():
            named = _SEED.search(path.resolve().name)
            _add(run, read_eval_info(path / FILE_NAME), int(named[1]) if named else first_seed, 0)
            return ""
        evaluation = read_evaluation(path)
    except EvaluationError as error:
        run.skipped.append(Skipped(run.name, path, str(error)))
        return None
    run.policies.append(evaluation.policy)
    for shard in evaluation.shards:
        if shard.suite is not None:
            run.task_names[shard.suite, shard.task_id] = shard.task
        try:
            run.failures += evaluation.failures(shard)
            info = evaluation.read(shard)
        except EvaluationError as error:
            run.skipped.append(Skipped(run.name, evaluation.shard_folder(shard), str(error)))
            continue
        run.queries += read_queries(info.path.with_name(queries.FILE_NAME))
        _add(run, info, shard.seed, shard.first_episode)
    run.start = evaluation.start.name if evaluation.start else ""
    return evaluation.changes


def _add(run: Run, info: EvalInfo, first_seed: int | None, first_index: int) -> None:
    """Add the episodes of one ``eval_info.json`` to a run."""
    run.seconds += info.seconds
    for task in info.tasks:
        for i, outcome in enumerate(zip(task.successes, task.sum_rewards, task.videos, strict=True)):
            seed = None if first_seed is None else first_seed + i
            run.episodes.append(
                Episode(task.suite, task.task_id, seed, first_index + i, *outcome, source=info.path)
            )
