"""Finds evaluations on disk and reads them as episodes, each with its policy, task and seed.

Knows plain ``lerobot-eval`` folders and those of ``vla0 eval``; knows nothing about statistics. What is corrupt or
unfinished is left out and named; what contradicts itself (an episode twice) is an error.
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
from lerobot_policy_vla0.tools.evaluation.eval_info import FILE_NAME, EvalInfo, TaskResult, read_eval_info
from lerobot_policy_vla0.tools.evaluation.folder import MANIFEST, read_evaluation
from lerobot_policy_vla0.tools.evaluation.queries import Query, read_queries, summarise

_SEED = re.compile(r"(?:^|[_-])seed[_-]?(\d+)$")


@dataclass(frozen=True)
class Episode:
    """One episode of one policy.

    Attributes:
        suite: LeRobot's ``task_group``.
        task_id: index within the suite.
        seed: the environment was reset with it; None if it is not known (``lerobot-eval`` does not write it).
        index: position in its evaluation.
        success: whether it was solved.
        sum_reward: in the environment's units.
        video: a file, or None.
        source: the ``eval_info.json`` it comes from.
    """

    suite: str
    task_id: int
    seed: int | None
    index: int
    success: bool
    sum_reward: float
    video: Path | None
    source: Path

    @property
    def task(self) -> tuple[str, int]:
        """Suite and index of the task."""
        return self.suite, self.task_id

    @property
    def start(self) -> tuple[str, int, int | None, int]:
        """What identifies the start of the episode: two policies with the same one saw the same scene."""
        return self.suite, self.task_id, self.seed, self.index if self.seed is None else 0


@dataclass(frozen=True)
class Skipped:
    """An evaluation that was left out."""

    policy: str
    path: Path
    reason: str


@dataclass
class Run:
    """Everything that was read about one policy.

    Attributes:
        name: as it appears in the report.
        episodes: sorted by task and seed; at least one.
        skipped: evaluations that were left out, and why.
        task_names: names of tasks for people, where they are known.
        seconds: wall time of all evaluations read: simulator, rendering and policy together.
        policies: what the evaluations say about the policies they ran, if they do.
        queries: of the policy, where they were recorded (`vla0 eval` does).
    """

    name: str
    episodes: list[Episode] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    task_names: dict[tuple[str, int], str] = field(default_factory=dict)
    seconds: float = 0.0
    policies: list[dict[str, Any]] = field(default_factory=list)
    queries: list[Query] = field(default_factory=list)

    def query_times(self) -> dict[str, float | int | None] | None:
        """Return what `queries.summarise` says of the queries; None if there are none."""
        steps = {policy.get("config", {}).get("n_action_steps") for policy in self.policies}
        return summarise(self.queries, steps.pop() if len(steps) == 1 else None)


def parse_run_arguments(arguments: Iterable[str]) -> dict[str, list[Path]]:
    """Return folders by policy name from ``FOLDER`` or ``NAME=FOLDER`` arguments.

    Without a name it is the folder's own; a name given several times joins its folders.

    Raises:
        EvaluationError: two folders without a name are called alike.

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
    """Read every evaluation of one policy below some folders.

    Seeds come from ``vla0 eval``'s manifest, or from the name of the folder with the ``eval_info.json`` if it ends in
    ``seed<S>`` (its episode i was then reset with S + i), or from `first_seed`.

    Args:
        name: of the policy.
        folders: each an evaluation, or with evaluations somewhere below.
        first_seed: ``--seed`` of the evaluations that do not say it.

    Returns:
        The run; evaluations that could not be read are in its ``skipped``.

    Raises:
        EvaluationError: a folder holds no evaluation, none can be read, or an episode is there twice.
    """
    run = Run(name)
    for folder in folders:
        found = list(_find(folder))
        if not found:
            raise EvaluationError(
                f"{folder} holds no evaluation: neither {FILE_NAME} nor {MANIFEST} at or below it"
            )
        for path in found:
            _read_one(run, path, first_seed)
    if not run.episodes:
        reasons = "; ".join(f"{skipped.path}: {skipped.reason}" for skipped in run.skipped)
        raise EvaluationError(f"nothing of {name!r} can be read: {reasons}")
    run.episodes.sort(
        key=lambda episode: (*episode.task, -1 if episode.seed is None else episode.seed, episode.index)
    )
    for earlier, later in zip(run.episodes, run.episodes[1:], strict=False):
        if earlier.start == later.start:
            what = f"{later.suite} task {later.task_id}"
            if later.seed is not None:
                raise EvaluationError(
                    f"{name!r} has {what} with seed {later.seed} twice, in {earlier.source} and {later.source}: "
                    "leave one out"
                )
            raise EvaluationError(
                f"{name!r} has {what} twice, in {earlier.source} and {later.source}, and neither says its seeds: "
                "let their folders end in _seed<first seed>, or leave one out"
            )
    return run


def _find(folder: Path) -> Iterator[Path]:
    """Yield the folders of evaluations at or below a folder, finished or not, in a fixed order."""
    for here, folders, files in os.walk(folder):
        folders.sort()
        path = Path(here)
        if MANIFEST in files or FILE_NAME in files or _looks_unfinished(path):
            folders.clear()
            yield path


def _looks_unfinished(path: Path) -> bool:
    """Tell whether ``lerobot-eval`` began here: it makes ``videos/<task>/`` first. Datasets have ``videos`` as well."""
    return (path / "videos").is_dir() and not (path / "meta").exists()


def _read_one(run: Run, path: Path, first_seed: int | None) -> None:
    """Add one evaluation's episodes to a run, or what is wrong with it."""
    if not (path / MANIFEST).exists():
        try:
            info = read_eval_info(path / FILE_NAME)
        except EvaluationError as error:
            run.skipped.append(Skipped(run.name, path, str(error)))
            return
        named = _SEED.search(path.resolve().name)
        _add(run, info, int(named[1]) if named else first_seed, 0)
        return
    try:
        evaluation = read_evaluation(path)
    except EvaluationError as error:
        run.skipped.append(Skipped(run.name, path, str(error)))
        return
    run.policies.append(evaluation.policy)
    for shard in evaluation.shards:
        if shard.suite is not None:
            run.task_names[shard.suite, shard.task_id] = shard.task
        try:
            info = evaluation.read(shard)
        except EvaluationError as error:
            run.skipped.append(Skipped(run.name, evaluation.shard_folder(shard), str(error)))
            continue
        run.queries += read_queries(info.path.with_name(queries.FILE_NAME))
        _add(run, info, shard.seed, shard.first_episode)


def _add(run: Run, info: EvalInfo, first_seed: int | None, first_index: int) -> None:
    run.seconds += info.seconds
    for task in info.tasks:
        run.episodes += list(_episodes(task, info.path, first_seed, first_index))


def _episodes(task: TaskResult, source: Path, first_seed: int | None, first_index: int) -> Iterator[Episode]:
    for i, (success, reward, video) in enumerate(
        zip(task.successes, task.sum_rewards, task.videos, strict=True)
    ):
        seed = None if first_seed is None else first_seed + i
        yield Episode(task.suite, task.task_id, seed, first_index + i, success, reward, video, source)
