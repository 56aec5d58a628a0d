"""One episode of the scripted expert on the simulated arm."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from expert import Expert

from lerobot_policy_vla0.tools.recorder import Episode, Result, disturbance
from lerobot_policy_vla0.tools.so101.arm import SimulatedArm

TASK = "pick_lift"
MAX_STEPS = 150  # the expert needs about 30


def run_expert(arm: SimulatedArm, seed: int, noise: float = 0.0) -> Episode[Result]:
    """Play the expert until the cube is lifted, or `MAX_STEPS`.

    Args:
        arm: Its state before the call does not matter.
        seed: Of the cube's place and of the noise: an episode depends on nothing but its arguments.
        noise: Standard deviation of the disturbance added to the goals of the five joints before they are executed,
            degrees. It drifts (`disturbance`), so that the arm really leaves its path. What is
            kept is the goal that the expert asked for, so demonstrations show how to come back (DART, Laskey et al.
            2017).

    Returns:
        The episode; its frames are `observation.images.wrist` and `.side`, uint8 (T, H, W, 3); `observation.state`
        and `action`, float32 (T, 6), in LeRobot's units.
    """
    disturbed = disturbance(seed, noise, size=5)
    arm.reset(seed)
    expert = Expert(arm.scene)
    rows: dict[str, list[np.ndarray]] = defaultdict(list)
    lifted, steps = False, 0
    while not lifted and steps < MAX_STEPS:
        state, pictures = arm.observe()
        goal = arm.positions(expert.act(grasped=arm.info.get("is_grasped", 0.0) > 0.5))
        seen = {f"observation.images.{name}": picture for name, picture in pictures.items()}
        for key, value in {**seen, "observation.state": state, "action": goal}.items():
            rows[key].append(value)
        arm.send(goal + np.append(next(disturbed), 0.0))
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
