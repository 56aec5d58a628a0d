"""One episode of a scripted expert, and the file it is kept in until the data set is written."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from lerobot.envs.libero import LiberoEnv
from simulation import IMAGES, BlindLiberoEnv, Scene, compare_with_fixed_starts, policy_observation
from tasks import TASKS

MAX_STEPS = 200  # none of the experts needs as many
THROWN = 0.05  # metres outside of where the fixed states have an object: it was not placed there
NOISE_CORRELATION = 0.9  # of the disturbance from step to step: its memory is about ten steps
STILL = 1e-3  # an action below it, with the gripper as before, is standing still: less than 0.05 mm


@dataclass
class Result:
    """How one episode went."""

    task: str
    instruction: str
    seed: int  # given to `env.reset(seed=...)`
    success: bool  # by LIBERO's predicate
    steps: int  # executed
    start_distance: float  # metres to the nearest fixed start: `compare_with_fixed_starts`
    thrown: bool  # whether the placement threw an object away; then nothing was played


@dataclass
class Episode:
    """An episode and its frames, each taken BEFORE the action of its row; only actions without a renderer.

    Attributes:
        result: How it went.
        frames: `observation.images.image` and `.image2`, uint8 (T, H, W, 3); `observation.state`, float32 (T, 8);
            `action`, float32 (T, 7), as the expert asked for.
    """

    result: Result
    frames: dict[str, np.ndarray]


def run_expert(env: LiberoEnv, task: str, seed: int, noise: float = 0.0) -> Episode:
    """Play the expert of `task` from the placements of `seed` until success or `MAX_STEPS`.

    Args:
        env: The task's environment from `make_env`; its state before the call does not matter.
        task: A name in `TASKS`.
        seed: Seed of the placements and of the noise: an episode depends on nothing but its arguments.
        noise: Standard deviation of the disturbance added to the hand's motion along x, y and z before it is executed,
            action units. Consecutive steps correlate by `NOISE_CORRELATION`, so that the hand really drifts away.
            What is kept is the action the expert asked for, so demonstrations show how to come back (DART, Laskey
            et al. 2017).
    """
    rng = np.random.default_rng(seed)
    expert, scene, sees = TASKS[task].expert, Scene(env), not isinstance(env, BlindLiberoEnv)
    observation, _ = env.reset(seed=seed)
    start_distance, outside = compare_with_fixed_starts(env)
    thrown = outside > THROWN
    rows: dict[str, list[np.ndarray]] = {key: [] for key in (*IMAGES, "observation.state", "action")}
    drift, gripper, terminated, steps = rng.normal(0.0, noise, size=3), 0.0, False, 0
    while not thrown and not terminated and steps < MAX_STEPS:
        action = expert(scene).astype(np.float32)
        still = np.abs(action[:6]).max() < STILL and action[6] == gripper
        if not still:
            seen = policy_observation(observation) if sees else {}
            for key, value in {**seen, "action": action}.items():
                rows[key].append(value)
        gripper = action[6]
        fresh = rng.normal(0.0, noise, size=3)
        drift = NOISE_CORRELATION * drift + math.sqrt(1 - NOISE_CORRELATION**2) * fresh
        executed = action.copy()
        executed[:3] = np.clip(action[:3] + drift, -1.0, 1.0)
        observation, _, terminated, _, _ = env.step(executed)
        steps += 1
    result = Result(task, env.task_description, seed, bool(terminated), steps, start_distance, thrown)
    return Episode(result, {key: np.stack(values) for key, values in rows.items() if values})


def play_actions(env: LiberoEnv, actions: list[np.ndarray], limit: int) -> tuple[bool, int]:
    """Play actions, (7,) each, after a reset, and repeat the last one, until success or `limit` steps.

    Returns:
        Whether the task was solved, and the steps executed.
    """
    solved, steps = False, 0
    while not solved and steps < limit:
        _, _, solved, _, _ = env.step(actions[min(steps, len(actions) - 1)])
        steps += 1
    return bool(solved), steps


def write_episode(path: Path, episode: Episode) -> None:
    """Write `episode` to `path` in one step: the file is complete or not there. A failure keeps no frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    frames = episode.frames if episode.result.success else {}
    with temporary.open("wb") as file:
        np.savez_compressed(file, result=np.array(json.dumps(asdict(episode.result))), **frames)
    temporary.replace(path)


def read_result(path: Path) -> Result:
    """Read how the episode in `path` went, without its frames."""
    with np.load(path) as data:
        return Result(**json.loads(str(data["result"])))


def read_episode(path: Path) -> Episode:
    """Read back what `write_episode` wrote."""
    with np.load(path) as data:
        frames = {key: data[key] for key in data.files if key != "result"}
    return Episode(read_result(path), frames)
