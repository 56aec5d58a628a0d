"""Scripted Meta-World experts run through LeRobot's own environment.

Knows MuJoCo and LeRobot's `MetaworldEnv`; nothing about datasets. Physics, rendering, camera, rewards
and the experts are those of the installed packages: the subclasses below only keep or drop observations.
"""

from __future__ import annotations

import warnings
from collections import defaultdict

import cv2
import numpy as np
from lerobot.envs.metaworld import MetaworldEnv

from lerobot_policy_vla0.tools.recorder import Episode, Result, disturbance

MAX_EPISODE_STEPS = 500  # Meta-World's own limit; LeRobot's --env.episode_length does not change it
FPS = 80  # `MetaworldEnv.metadata["render_fps"]`


def plain_task(task: str) -> str:
    """Return the task name without LeRobot's optional prefix.

    >>> plain_task("metaworld-reach-v3"), plain_task("reach-v3")
    ('reach-v3', 'reach-v3')
    """
    return task.removeprefix("metaworld-")


class RawEnv(MetaworldEnv):
    """LeRobot's Meta-World environment with the raw state as observation and rendering only on request.

    `reset` and `step` return the raw observation, float64 (39,): what the scripted expert reads; its first
    four numbers are LeRobot's `agent_pos` (gripper x, y, z in metres, opening in [0, 1]). `render()` is
    LeRobot's own and gives, for the same moment, the very pixels LeRobot's observation would have held.
    LeRobot renders in `reset`, in every `step` and once more in the reset after success; a frame costs about
    0.15 s here, so frames nobody looks at are not drawn.

    Keep one open at a time: gymnasium makes an OpenGL context current when it is created and not before each
    frame, so a second environment's context, or the end of an older one, leaves the others drawing black
    frames.
    """

    def __init__(self, task: str) -> None:
        super().__init__(task=plain_task(task), obs_type="pixels_agent_pos")
        # The experts warn once that they rely on the environment's clipping; it is done explicitly below.
        warnings.filterwarnings("ignore", message="Constant", module="metaworld.policies")

    def _format_raw_obs(self, raw_obs: np.ndarray) -> np.ndarray:  # type: ignore[override]
        return np.asarray(raw_obs, dtype=np.float64).copy()


def run_expert(env: RawEnv, seed: int, image_size: int | None, noise: float = 0.0) -> Episode[Result]:
    """Play the scripted expert from `env.reset(seed=seed)` until success or the step limit.

    Args:
        env: Environment of the task; its state before the call does not matter.
        seed: Reset seed; also seeds the noise, so an episode depends on nothing but its arguments.
        image_size: Edge of the stored square frames, pixels, 1 to 480; None draws no frames (rendering is nearly
            all of the time).
        noise: Standard deviation of the disturbance added to the expert's motion before it is executed, action
            units (range [-1, 1]); the gripper is left alone. It drifts (`disturbance`),
            so that the arm really leaves its path. What is stored is the action the expert asked for, so the
            demonstrations show how to come back (DART, Laskey et al. 2017).

    Returns:
        The episode; its frames are `observation.image`, uint8 (T, image_size, image_size, 3) RGB,
        `observation.state`, float32 (T, 4), gripper position in metres and opening, and `action`, float32 (T, 4) in
        [-1, 1], as the expert asked for. Frames are only drawn up to the last action: the one after success is
        never stored.
    """
    disturbed = disturbance(seed, noise, size=4)
    rows: dict[str, list[np.ndarray]] = defaultdict(list)
    raw, _ = env.reset(seed=seed)
    success = False
    for _ in range(MAX_EPISODE_STEPS):
        if image_size is not None:
            rows["observation.image"].append(shrunk(env.render(), image_size))
        rows["observation.state"].append(raw[:4].astype(np.float32))
        # The environment clips to [-1, 1] before moving; store that, not the larger number asked for.
        action = np.clip(env.expert_policy.get_action(raw), -1.0, 1.0).astype(np.float32)
        rows["action"].append(action)
        drift = next(disturbed) * [1, 1, 1, 0]  # the gripper is left alone
        executed = np.clip(action + drift, -1.0, 1.0).astype(np.float32)
        raw, _, terminated, truncated, info = env.step(executed)
        success = bool(info["is_success"])
        if terminated or truncated:  # `step` has already reset the simulation after a success
            break
    result = Result(
        task=plain_task(env.task),
        instruction=env.task_description,
        seed=seed,
        success=success,
        steps=len(rows["action"]),
        failure="" if success else "the expert failed",
    )
    return Episode(result, {key: np.stack(values) for key, values in rows.items()})


def shrunk(frame: np.ndarray, image_size: int) -> np.ndarray:
    """Return `frame`, uint8 (480, 480, 3) RGB, with edges of `image_size` pixels.

    INTER_AREA averages all source pixels under a target pixel: 480 to 240 is an exact 2x2 mean without
    aliasing.

    Raises:
        RuntimeError: The frame has one colour only: the renderer lost its context (see `RawEnv`).
    """
    if frame.min() == frame.max():
        raise RuntimeError(
            f"the renderer returned a frame with the single value {frame.min()}: "
            "its OpenGL context is not current. Open one environment per process at a time."
        )
    return cv2.resize(np.ascontiguousarray(frame), (image_size, image_size), interpolation=cv2.INTER_AREA)
