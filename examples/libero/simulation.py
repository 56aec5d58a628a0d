"""LeRobot's LIBERO environment, with or without pictures, and what a scripted expert reads from it.

Physics, controller, rendering, placements and the judgement of success are those of the installed packages.
"""

from __future__ import annotations

import os
import sys
from typing import Any

if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")  # needs no display; read when MuJoCo is imported

import numpy as np
import torch
from lerobot.envs.libero import LiberoEnv, get_task_init_states
from lerobot.envs.utils import preprocess_observation
from lerobot.processor.env_processor import LiberoProcessorStep
from libero.libero import benchmark
from libero.libero.envs.env_wrapper import ControlEnv

IMAGES = ("observation.images.image", "observation.images.image2")  # third person, wrist


class BlindLiberoEnv(LiberoEnv):
    """LeRobot's environment without a renderer: the same steps and the same success, but no observation."""

    def _ensure_env(self) -> None:
        if self._env is None:
            self._env = ControlEnv(
                bddl_file_name=self._task_bddl_file,
                control_freq=self.control_freq,
                has_offscreen_renderer=False,
                use_camera_obs=False,
            )
            self._env.reset()

    def _format_raw_obs(self, raw_obs: Any) -> dict[str, Any]:
        return {}


def task_number(suite: str, name: str) -> int:
    """Return LIBERO's number of a task, which `lerobot-eval --env.task_ids` takes."""
    number: int = benchmark.get_benchmark_dict()[suite]().get_task_names().index(name)
    return number


def make_env(suite: str, name: str, image_size: int | None, fixed_starts: bool = False) -> LiberoEnv:
    """Return LeRobot's environment of one task.

    It starts from random placements: LIBERO's own samplers place every object anew at each reset, from the reset's
    seed. Evaluation uses the benchmark's 50 fixed states in their place, so no policy is tested on a start it was
    trained on (`compare_with_fixed_starts` checks it).

    Args:
        suite: LIBERO's name of the suite, such as `libero_goal`.
        name: LIBERO's name of the task, such as `turn_on_the_stove`.
        image_size: Edge of both cameras' pictures in pixels; None renders nothing, which is many times faster.
        fixed_starts: Whether episode after episode starts from the fixed states instead, as in evaluation.
    """
    tasks = benchmark.get_benchmark_dict()[suite]()
    kind = BlindLiberoEnv if image_size is None else LiberoEnv
    return kind(
        task_suite=tasks,
        task_id=task_number(suite, name),
        task_suite_name=suite,
        obs_type="pixels_agent_pos",
        observation_height=image_size or 1,
        observation_width=image_size or 1,
        init_states=fixed_starts,
    )


def policy_observation(observation: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return what `lerobot-eval` gives to a policy, by the functions it calls.

    Returns:
        Both pictures, uint8 (image_size, image_size, 3), turned by 180 degrees, and `observation.state`, float32 (8,):
        position of the hand in metres, axis times angle of its orientation, and both fingers' joints in metres.
    """
    robot = {
        part: {key: np.array(value)[None] for key, value in values.items()}  # a batch of one
        for part, values in observation["robot_state"].items()
    }
    batch = preprocess_observation({"pixels": observation["pixels"], "robot_state": robot})
    batch = LiberoProcessorStep().observation(batch)
    pictures = {key: (batch[key][0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy() for key in IMAGES}
    return {**pictures, "observation.state": batch["observation.state"][0].numpy()}


def compare_with_fixed_starts(env: LiberoEnv) -> tuple[float, float]:
    """Compare where the objects are, after a reset, with the benchmark's 50 fixed states of the task.

    Returns:
        `distance`, metres: to the nearest fixed state. Its distance is that of the object that differs most, along
        x or y.
        `outside`, metres: how far any object is outside of the box that it keeps to in all fixed states. The samplers
        now and then place objects into one another, and one is thrown away; no fixed state has that.
    """
    tasks = benchmark.get_benchmark_dict()[env_suite(env)]()
    # (50, 1 + nq + nv): time, positions, velocities
    fixed = np.asarray(get_task_init_states(tasks, env.task_id))
    model, data = env._env.sim.model, env._env.sim.data
    free = model.jnt_qposadr[model.jnt_type == 0]  # a free joint has x, y, z and a quaternion
    columns = np.concatenate([free, free + 1])
    fixed, here = fixed[:, 1 + columns], data.qpos[columns]
    distance = np.abs(fixed - here).max(axis=1).min()
    outside = np.maximum(fixed.min(axis=0) - here, here - fixed.max(axis=0)).max()
    return float(distance), float(max(outside, 0.0))


def env_suite(env: LiberoEnv) -> str:
    """Return the suite of an environment: the folder of its task file."""
    return os.path.basename(os.path.dirname(env._task_bddl_file))


class Scene:
    """Where everything is now, in metres, world coordinates: x away from the robot's base, y to its left, z up.

    A view of the running simulation, valid after the first reset: it changes with every step of the environment.
    """

    def __init__(self, env: LiberoEnv) -> None:
        self._env = env

    @property
    def _world(self) -> Any:
        return self._env._env.env  # robosuite's environment

    @property
    def hand(self) -> np.ndarray:
        """The point between the fingertips, (3,)."""
        return np.array(self._world.sim.data.site_xpos[self._world.robots[0].eef_site_id])

    @property
    def rotation(self) -> np.ndarray:
        """The hand's orientation, (3, 3): its third column points where the fingers point."""
        return np.array(self._world.sim.data.site_xmat[self._world.robots[0].eef_site_id]).reshape(3, 3)

    def position(self, name: str) -> np.ndarray:
        """Where an object, a fixture or a region of the task file is, (3,)."""
        world = self._world
        if name in world.obj_body_id:
            return np.array(world.sim.data.body_xpos[world.obj_body_id[name]])
        return np.array(world.sim.data.get_site_xpos(name))

    def joint(self, name: str) -> float:
        """A joint of a fixture: radians or metres."""
        return float(self._world.sim.data.get_joint_qpos(name))

    def holds(self, name: str) -> bool:
        """Return whether both fingers touch the object."""
        world = self._world
        return bool(world._check_grasp(world.robots[0].gripper, world.get_object(name).contact_geoms))
