"""What policies that see nothing reach, as the demos' report reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lerobot_policy_vla0.output_files import write_json

Array = np.ndarray[Any, Any]

#: ``n_success``, and ``success`` and ``steps`` of every episode.
Played = dict[str, Any]


def play_blindly(
    seeds: Iterable[int],
    reset: Callable[[int], object],
    step: Callable[[Array], bool],
    actions: Sequence[Array],
    limit: int,
) -> Played:
    """Play the same actions from every start, and repeat the last one, until success or ``limit`` steps.

    Args:
        seeds: of the starts, in order.
        reset: goes to the start of a seed.
        step: executes an action, ``(D,)``, and says whether the task is solved.
        actions: one per step.
        limit: steps of an episode.
    """
    successes, lengths = [], []
    for seed in seeds:
        reset(seed)
        solved, steps = False, 0
        while not solved and steps < limit:
            solved = bool(step(actions[min(steps, len(actions) - 1)]))
            steps += 1
        successes.append(solved)
        lengths.append(steps)
    return {"n_success": sum(successes), "success": successes, "steps": lengths}


def write_baselines(
    path: Path,
    task: str,
    seeds: Sequence[int],
    mean: Iterable[float],
    constant: Played,
    replays: list[Played],
    **about: Any,
) -> None:
    """Write both baselines and print them, the strongest replay first.

    Args:
        path: JSON file; its folder is made.
        task: its name.
        seeds: of the episodes, in order.
        mean: the action that is repeated, ``(D,)``.
        constant: how it did.
        replays: how each demonstration did, with its ``episode_index``.
        **about: what else the file says.
    """
    replays = sorted(replays, key=lambda replay: -replay["n_success"])  # stable: ties in the order recorded
    action = [round(float(value), 6) for value in mean]
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {"task": task, "seeds": list(seeds), **about, "constant": {"action": action, **constant}}
    write_json(path, {**report, "blind_replays": replays})
    print(f"constant mean action: {constant['n_success']} of {len(seeds)}")
    for replay in replays:
        print(
            f"blind replay of demonstration {replay['episode_index']}: {replay['n_success']} of {len(seeds)}"
        )
