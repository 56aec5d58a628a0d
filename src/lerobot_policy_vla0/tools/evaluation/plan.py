"""Splits an evaluation into shards: takes ``lerobot-eval`` arguments and returns those of each part.

LeRobot resets episode ``i`` of every task with ``--seed + i``, in batches of ``--eval.batch_size``. So a shard of whole
batches, given the seed of its first episode, plays the same episodes as the undivided evaluation.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lerobot_policy_vla0.errors import EvaluationError

#: Number of tasks in LIBERO's suites. The benchmark fixes it; importing LIBERO would ask questions on the terminal.
LIBERO_TASKS = dict.fromkeys(("libero_spatial", "libero_object", "libero_goal", "libero_10"), 10)
LIBERO_TASKS["libero_90"] = 90

#: Environments of LIBERO. Their start does not follow from the seed: they count the resets of a process instead.
_LIBERO = ("libero", "libero_plus")

#: Defaults of `lerobot-eval`, except the batch size: LeRobot's is as large as the machine allows.
DEFAULTS = {"seed": "1000", "eval.n_episodes": "50", "eval.batch_size": "1"}

#: Arguments that `vla0 eval` sets itself, and what to do instead.
_SET_BY_US = {
    "output_dir": "say --out: every shard gets a folder below it",
    "config_path": "write the arguments out: each shard changes some of them",
}


@dataclass(frozen=True)
class Shard:
    """A part of an evaluation that one process plays."""

    name: str  # of its folder
    # LeRobot's group of the task in the undivided evaluation. None for environments whose tasks are not known here:
    # then the shard holds all of them, as the environment names them.
    suite: str | None
    task_id: int  # index within the suite, in the undivided evaluation
    task: str  # the task's name in reports
    seed: int  # of its first episode
    first_episode: int  # its index in the undivided evaluation
    n_episodes: int
    arguments: tuple[str, ...]  # of lerobot-eval, without the output folder and the device


def parse_arguments(arguments: Sequence[str]) -> dict[str, str]:
    """Return ``--name=value`` and ``--name value`` arguments by name, defaults filled in.

    Raises:
        EvaluationError: an argument is malformed, given twice, set by ``vla0 eval`` itself or missing, or would share
            one policy between threads.

    >>> parse_arguments(["--policy.path=p", "--env.type", "metaworld"])["env.type"]
    'metaworld'
    """
    values: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--") or len(name) < 3:
            raise EvaluationError(f"{name!r} is not an argument of lerobot-eval: those begin with --")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise EvaluationError(f"{name} has no value: write {name}=VALUE")
            value = rest.pop(0)
        if name[2:] in values:
            raise EvaluationError(f"{name} is given twice: {values[name[2:]]!r} and {value!r}")
        values[name[2:]] = value
    for name, fix in _SET_BY_US.items():
        if name in values:
            raise EvaluationError(f"--{name} cannot be passed on to lerobot-eval: {fix}")
    for name in ("policy.path", "env.type"):
        if name not in values:
            raise EvaluationError(f"--{name} is missing among the arguments of lerobot-eval (those after --)")
    if values.get("env.max_parallel_tasks", "1") != "1":
        raise EvaluationError(
            f"--env.max_parallel_tasks={values['env.max_parallel_tasks']} would share one policy between threads: "
            "leave it out, --shards runs tasks side by side in processes of their own"
        )
    return DEFAULTS | values


def plan_shards(values: dict[str, str], episodes_per_shard: int | None = None) -> list[Shard]:
    """Split an evaluation by task, and each task by episodes if asked to.

    Args:
        values: from `parse_arguments`.
        episodes_per_shard: at most this many episodes of a task in one shard; None keeps tasks whole.

    Returns:
        Shards in the order of tasks and seeds; together they are the undivided evaluation.

    Raises:
        EvaluationError: a task is unknown, a number is not one, or the split would change what is played.
    """
    seed, n_episodes, batch = (
        _integer(values, name) for name in ("seed", "eval.n_episodes", "eval.batch_size")
    )
    if n_episodes < 1 or batch < 1:
        raise EvaluationError(
            f"--eval.n_episodes={n_episodes} and --eval.batch_size={batch}: both have to be 1 or more (a batch size "
            "of 0 would let every machine choose its own, and results differ with it)"
        )
    kind, size = values["env.type"], episodes_per_shard
    if size is None:
        size = n_episodes
    elif kind in _LIBERO:
        raise EvaluationError(
            f"--episodes-per-shard would change what is played: {kind} takes its initial states in "
            "the order of a process's resets, whatever the seed. Leave it out: tasks are divided anyway"
        )
    elif size < 1 or size % batch or n_episodes % batch:
        raise EvaluationError(
            f"--episodes-per-shard={size} and --eval.n_episodes={n_episodes} have to be multiples of "
            f"--eval.batch_size={batch}: only whole batches play the same way in a shard"
        )
    shards = []
    for suite, task_id, task, choice in _tasks(values):
        for first in range(0, n_episodes, size):
            count = min(size, n_episodes - first)
            name = f"{suite or kind}_{task_id:02d}"
            if size < n_episodes:
                name += f"_episodes{first:04d}-{first + count - 1:04d}"
            name = re.sub(r"[^\w.-]+", "-", name)
            own = values | choice | {"seed": str(seed + first), "eval.n_episodes": str(count)}
            arguments = tuple(f"--{key}={value}" for key, value in sorted(own.items()))
            shards.append(Shard(name, suite, task_id, task, seed + first, first, count, arguments))
    if len({shard.name for shard in shards}) != len(shards):
        raise EvaluationError(f"--env.task={values['env.task']} names a task twice")
    return shards


def _tasks(values: dict[str, str]) -> list[tuple[str | None, int, str, dict[str, str]]]:
    """Return (suite, task_id, name, arguments that choose it) of every task."""
    kind, given = values["env.type"], values.get("env.task", "")
    names = [name.strip() for name in given.split(",") if name.strip()]
    examples = dict.fromkeys(_LIBERO, "libero_spatial") | {"metaworld": "metaworld-reach-v3"}
    if kind not in examples:
        return [(None, 0, given or kind, {})]
    if not names:
        raise EvaluationError(
            f"--env.task is missing among the arguments of lerobot-eval, e.g. --env.task={examples[kind]}"
        )
    if kind in _LIBERO:
        return [
            (suite, task_id, f"task {task_id}", {"env.task": suite, "env.task_ids": f"[{task_id}]"})
            for suite in names
            for task_id in _libero_ids(suite, values)
        ]
    return [
        (group, task_id, name, {"env.task": name})
        for group in names
        for task_id, name in enumerate(_metaworld_tasks(group))
    ]


def _libero_ids(suite: str, values: dict[str, str]) -> list[int]:
    if "env.task_ids" in values:
        try:
            ids = json.loads(values["env.task_ids"])
        except ValueError:
            ids = None
        if not isinstance(ids, list) or not ids or not all(type(i) is int and i >= 0 for i in ids):
            raise EvaluationError(
                f"--env.task_ids={values['env.task_ids']} is not a list of indices such as [0,3]"
            )
        if suite in LIBERO_TASKS and max(ids) >= LIBERO_TASKS[suite]:
            raise EvaluationError(
                f"--env.task_ids={values['env.task_ids']}: {suite} has {LIBERO_TASKS[suite]} tasks"
            )
        return ids
    if values["env.type"] == "libero" and suite in LIBERO_TASKS:
        return list(range(LIBERO_TASKS[suite]))
    raise EvaluationError(
        f"how many tasks {suite!r} has is not known here (known: {', '.join(LIBERO_TASKS)}): add "
        "--env.task_ids='[0,1,...]'"
    )


def _metaworld_tasks(name: str) -> list[str]:
    """Return the tasks of a difficulty group of Meta-World, or the one task of that name."""
    import lerobot

    # The file itself: the module of LeRobot that reads it imports the simulator.
    config = json.loads((Path(lerobot.__file__).parent / "envs" / "metaworld_config.json").read_text())
    groups: dict[str, list[str]] = config["DIFFICULTY_TO_TASKS"]
    task, known = name.removeprefix("metaworld-"), config["TASK_DESCRIPTIONS"]
    if groups.get(name):
        return groups[name]
    if task not in known:
        near = difflib.get_close_matches(task, [*known, *groups], n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise EvaluationError(
            f"--env.task: {name!r} is neither a task nor a difficulty group of Meta-World{hint}"
        )
    return [name]


def _integer(values: dict[str, str], name: str) -> int:
    try:
        return int(values[name])
    except ValueError:
        raise EvaluationError(f"--{name}={values[name]} is not a whole number") from None
