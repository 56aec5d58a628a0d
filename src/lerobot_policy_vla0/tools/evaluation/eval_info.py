"""Reads one ``eval_info.json`` of ``lerobot-eval`` (0.6.1) and checks that it is whole and consistent."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lerobot_policy_vla0.errors import EvaluationError

FILE_NAME = "eval_info.json"


@dataclass(frozen=True)
class TaskResult:
    """The results on one task, one value per episode, in the order of their seeds."""

    # LeRobot's task_group: a suite of LIBERO, a task or difficulty group of Meta-World, or an environment's type.
    suite: str
    task_id: int  # index within the suite
    successes: tuple[bool, ...]
    sum_rewards: tuple[float, ...]  # in the environment's units
    max_rewards: tuple[float, ...]  # likewise
    videos: tuple[Path | None, ...]  # None where LeRobot wrote none or the file is gone


@dataclass(frozen=True)
class EvalInfo:
    """One finished run of ``lerobot-eval``."""

    path: Path  # the file
    tasks: tuple[TaskResult, ...]  # at least one
    seconds: float  # wall time of all rollouts: simulator, rendering and policy together


def read_eval_info(path: Path) -> EvalInfo:
    """Read and check an ``eval_info.json``.

    Raises:
        EvaluationError: the file is missing, is not JSON (a killed evaluation leaves half a file), lacks a field,
            or its totals differ from its episodes; names the file and the reason.
    """
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        raise EvaluationError(f"{path} is missing: the evaluation did not finish") from None
    except (ValueError, OSError) as error:
        raise EvaluationError(f"{path} cannot be read ({error}): was the evaluation killed?") from None
    try:
        tasks = tuple(_read_task(task, path.parent) for task in raw["per_task"])
        overall = raw["overall"]
        n_stated, percent = int(overall["n_episodes"]), float(overall["pc_success"])
        seconds = float(overall["eval_s"])
    except (KeyError, TypeError, ValueError) as error:
        problem = f"has no field {error}" if isinstance(error, KeyError) else str(error)
        raise EvaluationError(f"{path} is not what lerobot-eval writes: {problem}") from None
    outcomes = [success for task in tasks for success in task.successes]
    if not outcomes:
        raise EvaluationError(f"{path} holds no episode")
    if n_stated != len(outcomes):
        raise EvaluationError(f"{path} says {n_stated} episodes and lists {len(outcomes)}")
    if not math.isclose(percent, 100 * sum(outcomes) / len(outcomes), abs_tol=1e-6):
        raise EvaluationError(
            f"{path} says {percent:g} % success and lists {sum(outcomes)} of {len(outcomes)}"
        )
    if len({(task.suite, task.task_id) for task in tasks}) != len(tasks):
        raise EvaluationError(f"{path} lists a task twice")
    return EvalInfo(path, tasks, seconds)


def _read_task(raw: dict[str, Any], folder: Path) -> TaskResult:
    metrics = raw["metrics"]
    successes, name = metrics["successes"], f"{raw['task_group']} task {raw['task_id']}"
    if not all(isinstance(value, bool) for value in successes):
        raise ValueError(f"successes of {name} are not true or false")
    for key in ("sum_rewards", "max_rewards"):
        if len(metrics[key]) != len(successes):
            raise ValueError(f"{name} has {len(successes)} successes and {len(metrics[key])} {key}")
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in metrics[key]):
            raise ValueError(f"{key} of {name} are not all numbers")
    videos = [_find_video(written, folder) for written in metrics.get("video_paths", [])]
    if len(videos) > len(successes):
        raise ValueError(f"{name} has {len(successes)} episodes and {len(videos)} videos")
    return TaskResult(
        suite=str(raw["task_group"]),
        task_id=int(raw["task_id"]),
        successes=tuple(successes),
        sum_rewards=tuple(map(float, metrics["sum_rewards"])),
        max_rewards=tuple(map(float, metrics["max_rewards"])),
        videos=(*videos, *[None] * (len(successes) - len(videos))),
    )


def _find_video(written: str, folder: Path) -> Path | None:
    """Return where a video of an evaluation is now, or None if it is gone.

    LeRobot writes its path relative to where ``lerobot-eval`` ran (``.../videos/<task>/<episode>.mp4``), and the
    evaluation's folder may have been moved since.
    """
    beside = folder.joinpath(*Path(written).parts[-3:])
    return next((path for path in (beside, Path(written)) if path.is_file()), None)
