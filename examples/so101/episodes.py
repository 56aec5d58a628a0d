"""One episode of the scripted expert on the simulated arm, or of recorded actions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from expert import Expert

from lerobot_policy_vla0.tools.recorder import Episode, Result
from lerobot_policy_vla0.tools.so101.arm import SimulatedArm
from lerobot_policy_vla0.tools.so101.scene import CAMERAS

TASK = "pick_lift"
MAX_STEPS = 150  # the expert needs about 30
NOISE_CORRELATION = 0.9  # of the disturbance from step to step: its memory is about ten steps


def run_expert(arm: SimulatedArm, seed: int, noise: float = 0.0, look: bool = True) -> Episode[Result]:
    """Play the expert until the cube is lifted, or `MAX_STEPS`.

    Args:
        arm: Its state before the call does not matter.
        seed: Of the cube's place and of the noise: an episode depends on nothing but its arguments.
        noise: Standard deviation of the disturbance added to the goals of the five joints before they are executed,
            degrees. Consecutive steps correlate by `NOISE_CORRELATION`, so that the arm really drifts away. What is
            kept is the goal that the expert asked for, so demonstrations show how to come back (DART, Laskey et al.
            2017).
        look: Whether pictures are kept.

    Returns:
        The episode; its frames are `observation.images.wrist` and `.overhead`, uint8 (T, H, W, 3); `observation.state`
        and `action`, float32 (T, 6), in LeRobot's units.
    """
    rng = np.random.default_rng(seed)
    arm.reset(seed)
    expert = Expert(arm.scene)
    rows: dict[str, list[np.ndarray]] = {"observation.state": [], "action": []}
    rows |= {f"observation.images.{name}": [] for name in CAMERAS if look}
    drift, lifted, steps = rng.normal(0.0, noise, size=5), False, 0
    while not lifted and steps < MAX_STEPS:
        state, pictures = arm.observe()
        goal = arm.positions(expert.act(grasped=arm.info.get("is_grasped", 0.0) > 0.5))
        seen = {f"observation.images.{name}": picture for name, picture in pictures.items() if look}
        for key, value in {**seen, "observation.state": state, "action": goal}.items():
            rows[key].append(value)
        fresh = rng.normal(0.0, noise, size=5)
        drift = NOISE_CORRELATION * drift + math.sqrt(1 - NOISE_CORRELATION**2) * fresh
        arm.send(goal + np.append(drift, 0.0))
        lifted = bool(arm.info["success"])
        steps += 1
    result = Result(
        task=TASK,
        instruction=arm.scene.task_description,
        seed=seed,
        success=lifted,
        steps=steps,
        failure="" if lifted else "the expert failed",
    )
    return Episode(result, {key: np.stack(values) for key, values in rows.items()})


def play_actions(arm: SimulatedArm, seed: int, actions: Sequence[np.ndarray], limit: int) -> tuple[bool, int]:
    """Play goals, (6,) each, from the start of `seed`, and repeat the last one, until the cube is lifted.

    Returns:
        Whether it was within `limit` steps, and the steps executed.
    """
    arm.reset(seed)
    lifted, steps = False, 0
    while not lifted and steps < limit:
        arm.send(actions[min(steps, len(actions) - 1)])
        lifted = bool(arm.info["success"])
        steps += 1
    return lifted, steps
