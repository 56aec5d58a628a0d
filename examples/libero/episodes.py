"""One episode of a scripted expert."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from lerobot.envs.libero import LiberoEnv
from simulation import IMAGES, BlindLiberoEnv, Scene, compare_with_fixed_starts, policy_observation
from tasks import TASKS

from lerobot_policy_vla0.tools.recorder import Episode, Result, disturbance

MAX_STEPS = 200  # none of the experts needs as many
THROWN = 0.05  # metres outside of where the fixed states have an object: it was not placed there
STILL = 1e-3  # an action below it, with the gripper as before, is standing still: less than 0.05 mm


@dataclass(kw_only=True)
class Placed(Result):
    """How one episode went, by LIBERO's predicate, and where it started.

    Attributes:
        start_distance: Metres to the nearest fixed start: `compare_with_fixed_starts`.
        thrown: Whether the placement threw an object away; then nothing was played.
    """

    start_distance: float
    thrown: bool


def run_expert(env: LiberoEnv, task: str, seed: int, noise: float = 0.0) -> Episode[Placed]:
    """Play the expert of `task` from the placements of `seed` until success or `MAX_STEPS`.

    Args:
        env: The task's environment from `make_env`; its state before the call does not matter.
        task: A name in `TASKS`.
        seed: Seed of the placements and of the noise: an episode depends on nothing but its arguments.
        noise: Standard deviation of the disturbance added to the hand's motion along x, y and z before it is executed,
            action units. It drifts (`disturbance`), so that the hand really leaves its path.
            What is kept is the action the expert asked for, so demonstrations show how to come back (DART, Laskey
            et al. 2017).

    Returns:
        The episode; its frames are `observation.images.image` and `.image2`, uint8 (T, H, W, 3); `observation.state`,
        float32 (T, 8); `action`, float32 (T, 7), as the expert asked for. Without a renderer the actions only.
    """
    disturbed = disturbance(seed, noise, size=3)
    expert, scene, sees = TASKS[task].expert, Scene(env), not isinstance(env, BlindLiberoEnv)
    observation, _ = env.reset(seed=seed)
    start_distance, outside = compare_with_fixed_starts(env)
    thrown = outside > THROWN
    rows: dict[str, list[np.ndarray]] = {key: [] for key in (*IMAGES, "observation.state", "action")}
    gripper, terminated, steps = 0.0, False, 0
    while not thrown and not terminated and steps < MAX_STEPS:
        action = expert(scene).astype(np.float32)
        still = np.abs(action[:6]).max() < STILL and action[6] == gripper
        if not still:
            seen = policy_observation(observation) if sees else {}
            for key, value in {**seen, "action": action}.items():
                rows[key].append(value)
        gripper = action[6]
        executed = action.copy()
        executed[:3] = np.clip(action[:3] + next(disturbed), -1.0, 1.0)
        observation, _, terminated, _, _ = env.step(executed)
        steps += 1
    result = Placed(
        task=task,
        instruction=env.task_description,
        seed=seed,
        success=bool(terminated),
        steps=steps,
        failure=""
        if terminated
        else "an object was thrown away at the start"
        if thrown
        else "the expert failed",
        start_distance=start_distance,
        thrown=thrown,
    )
    return Episode(result, {key: np.stack(values) for key, values in rows.items() if values})
