"""LeRobot's LIBERO environment, with or without pictures, and what a scripted expert reads from it.

Physics, controller, rendering, start states and the judgement of success are those of the installed packages.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from lerobot.envs.libero import LiberoEnv
from libero.libero import benchmark
from libero.libero.envs.env_wrapper import ControlEnv


def make_env(suite: str, task_id: int, image_size: int | None) -> LiberoEnv:
    """Return LeRobot's environment of one task, started from random placements.

    `init_states=False` lets LIBERO's own samplers place every object anew at each reset, from the reset's seed. An
    evaluation uses the 50 fixed states of the benchmark in their place, so that no policy is tested on a start it was
    trained on.

    Args:
        suite: LIBERO's name of the suite, such as `libero_goal`.
        task_id: The task's number within the suite, from 0.
        image_size: Edge of both cameras' pictures in pixels; None renders nothing, which is many times faster.
    """
    kind = BlindLiberoEnv if image_size is None else LiberoEnv
    return kind(
        task_suite=benchmark.get_benchmark_dict()[suite](),
        task_id=task_id,
        task_suite_name=suite,
        obs_type="pixels_agent_pos",
        observation_height=image_size or 1,
        observation_width=image_size or 1,
        init_states=False,
    )


class BlindLiberoEnv(LiberoEnv):
    """LeRobot's environment without a renderer: the same steps and the same success, no observation."""

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


class Scene:
    """Where everything is now, in metres, world coordinates (x away from the robot's base, y to its left, z up).

    A view of the running simulation: it changes with every step of `env`, and is only valid after a reset.
    """

    def __init__(self, env: LiberoEnv) -> None:
        self._env = env

    @property
    def _robosuite(self) -> Any:
        return self._env._env.env  # rebuilt by every hard reset

    @property
    def hand(self) -> np.ndarray:
        """The point between the fingertips, (3,)."""
        robot = self._robosuite.robots[0]
        return np.array(self._robosuite.sim.data.site_xpos[robot.eef_site_id])

    @property
    def rotation(self) -> np.ndarray:
        """The hand's orientation, (3, 3): its third column points where the fingers point."""
        robot = self._robosuite.robots[0]
        return np.array(self._robosuite.sim.data.site_xmat[robot.eef_site_id]).reshape(3, 3)

    @property
    def opening(self) -> float:
        """Distance between the fingers: 0 to 0.08 m."""
        data = self._robosuite.sim.data
        return float(sum(abs(data.get_joint_qpos(joint)) for joint in self._robosuite.robots[0].gripper.joints))

    def position(self, name: str) -> np.ndarray:
        """Where an object, a fixture or a region of the task file is, (3,)."""
        world = self._robosuite
        if name in world.obj_body_id:
            return np.array(world.sim.data.body_xpos[world.obj_body_id[name]])
        return np.array(world.sim.data.get_site_xpos(name))

    def joint(self, name: str) -> float:
        """A joint of a fixture: radians or metres."""
        return float(self._robosuite.sim.data.get_joint_qpos(name))

    def holds(self, name: str) -> bool:
        """Return whether both fingers touch the object."""
        world = self._robosuite
        return bool(world._check_grasp(world.robots[0].gripper, world.get_object(name).contact_geoms))
