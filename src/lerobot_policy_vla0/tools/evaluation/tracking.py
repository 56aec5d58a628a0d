"""Logs a running evaluation to wandb or trackio: success so far with its interval, by task, and what failed.

Both are called in the same way. They decide themselves where the numbers go: wandb by ``WANDB_MODE`` and its login,
trackio to a folder of the user unless ``TRACKIO_SPACE_ID`` is set.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

from lerobot_policy_vla0.errors import EvaluationError
from lerobot_policy_vla0.tools.evaluation.eval_info import TaskResult
from lerobot_policy_vla0.tools.evaluation.folder import ShardedEvaluation
from lerobot_policy_vla0.tools.evaluation.plan import Shard
from lerobot_policy_vla0.tools.evaluation.statistics import wilson_interval

TOOLS = ("trackio", "wandb")
_PROJECT = "vla0-eval"  # unless WANDB_PROJECT or TRACKIO_PROJECT is set


def load_tool(name: str) -> ModuleType:
    """Import the package that ``--track`` names.

    Raises:
        EvaluationError: it is not one of `TOOLS`, or not installed; names the command that installs it.
    """
    if name not in TOOLS:
        raise EvaluationError(f"--track={name} is none of {', '.join(TOOLS)}")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EvaluationError(
            f"--track={name} needs the package {name}, which cannot be imported ({error}): pip install {name}"
        ) from error


class Tracker:
    """Counts what an evaluation has done so far, and logs it whenever it changes; used by several threads.

    Args:
        run: what the tool's ``init`` returned; None logs nothing.
        say: called with a line if logging fails.
    """

    def __init__(self, run: Any, say: Callable[[str], None]) -> None:
        self._run, self._say, self._lock = run, say, Lock()
        self._counts: dict[str, dict[str, tuple[int, int]]] = {}  # by shard and task: solved, played
        self._failures = {"failed_attempts": 0, "hung_attempts": 0, "failed_parts": 0}

    def progress(self, shard: Shard, solved: int, played: int) -> None:
        """Count the episodes that the running attempt at a shard has finished."""
        if played != sum(count for _, count in self._counts.get(shard.name, {}).values()):
            self._set(shard, {_label(shard.suite, shard.task): (solved, played)})

    def finished(self, shard: Shard, tasks: Sequence[TaskResult]) -> None:
        """Count the result of a shard."""
        self._set(shard, _results(shard, tasks))

    def finished_before(self, results: Sequence[tuple[Shard, Sequence[TaskResult]]]) -> None:
        """Count what an earlier call of `vla0 eval` finished, in one line of the log."""
        with self._lock:
            for shard, tasks in results:
                self._counts[shard.name] = _results(shard, tasks)
            self._log({task for shard, _ in results for task in self._counts[shard.name]})

    def failed(self, shard: Shard, hung: bool, last: bool) -> None:
        """Count an attempt that hung or died, and forget its episodes: the next one plays them again."""
        with self._lock:
            forgotten = self._counts.pop(shard.name, {})
            self._failures["failed_attempts"] += 1
            self._failures["hung_attempts"] += hung
            self._failures["failed_parts"] += last
            self._log(forgotten)

    def close(self) -> None:
        """Tell the tool that the run is over."""
        if self._run is not None:
            self._run.finish()

    def _set(self, shard: Shard, counts: dict[str, tuple[int, int]]) -> None:
        with self._lock:
            if self._counts.get(shard.name) != counts:
                self._counts[shard.name] = counts
                self._log(counts)

    def _log(self, changed: Any) -> None:
        """Log the totals, and the tasks that changed."""
        if self._run is None:
            return
        tasks: dict[str, list[int]] = {}
        for counts in self._counts.values():
            for task, (solved, played) in counts.items():
                total = tasks.setdefault(task, [0, 0])
                total[0] += solved
                total[1] += played
        solved, played = (sum(total[i] for total in tasks.values()) for i in (0, 1))
        metrics: dict[str, float] = {"episodes": played, **self._failures}
        if played:
            low, high = wilson_interval(solved, played)
            metrics |= {"success": solved / played, "success_low": low, "success_high": high}
        for task in changed:
            solved, played = tasks.get(task, (0, 0))
            metrics[f"task_episodes/{task}"] = played
            if played:
                metrics[f"task_success/{task}"] = solved / played
        try:
            self._run.log(metrics)
        except Exception as error:  # of the tool: hours of evaluation are worth more than its log
            self._run = None
            self._say(f"--track: logging failed and stops here ({error}); the evaluation goes on")


def _label(suite: str | None, task: str) -> str:
    return task if suite in (None, task) else f"{suite} {task}"


def _results(shard: Shard, tasks: Sequence[TaskResult]) -> dict[str, tuple[int, int]]:
    return {
        _label(shard.suite, shard.task) if shard.suite else f"{task.suite} task {task.task_id}": (
            sum(task.successes),
            len(task.successes),
        )
        for task in tasks
    }


@contextmanager
def tracking(
    name: str | None, out: Path, evaluation: ShardedEvaluation, say: Callable[[str], None]
) -> Iterator[Tracker]:
    """Begin a run of the tool, named after the evaluation's folder, and end it when the block ends.

    Raises:
        EvaluationError: the tool cannot start, e.g. wandb without a login; says what to do.
    """
    run = None
    if name is not None:
        config = {
            "arguments": evaluation.arguments,
            "policy": evaluation.policy,
            "versions": evaluation.versions,
            "perturb": evaluation.changes,
            "parts": len(evaluation.shards),
        }
        project = os.environ.get(f"{name.upper()}_PROJECT") or _PROJECT
        try:
            run = load_tool(name).init(project=project, name=out.resolve().name, config=config)
        except EvaluationError:
            raise
        except Exception as error:  # of the tool, which has many
            raise EvaluationError(
                f"--track={name}: {name} could not start ({error}). Log in, or stay on this machine with "
                "WANDB_MODE=offline (wandb) or without TRACKIO_SPACE_ID (trackio), or leave --track out"
            ) from error
    tracker = Tracker(run, say)
    try:
        yield tracker
    finally:
        tracker.close()
