"""A scripted expert that lifts the cube: where the gripper has to be, and the joint angles that bring it there.

It reads where everything is from the simulator, and remembers nothing: the same state always gives the same goal. A
goal is a pose to go to, however far: the motors' speed makes it a motion.
"""

from __future__ import annotations

import mujoco
import numpy as np
from so101_nexus.config import SO101_JOINT_NAMES
from so101_nexus.kinematics import ee_ik_delta_q

from lerobot_policy_vla0.tools.so101.scene import CUBE, FINGERS, PickLift

OPEN, CLOSED = np.radians(60.0), np.radians(-10.0)
HOVER = 0.07  # metres above the cube, while the hand is beside it
SLOPE = 3.0  # metres higher for each metre to the side
LIFT = 0.12  # metres above the table
SIDEWAYS, HEIGHT = 0.011, 0.008  # metres from the cube's middle at which the fingers close
ITERATIONS = 30
TURN_WEIGHT = 0.2  # of a radian beside a metre


class Expert:
    """The expert for one simulation."""

    def __init__(self, scene: PickLift) -> None:
        self._model, self._data = scene.model, scene.data
        self._scratch = mujoco.MjData(self._model)
        joints = [self._model.joint(name) for name in SO101_JOINT_NAMES]
        self._positions = np.array([joint.qposadr[0] for joint in joints])
        self._arm = np.array([joint.dofadr[0] for joint in joints[:5]])
        self._low, self._high = scene.action_space.low.astype(float), scene.action_space.high.astype(float)

    def act(self, grasped: bool) -> np.ndarray:
        """Return the next goal of the six joints, radians."""
        cube, fingers = self._data.body(CUBE), self._data.site(FINGERS)
        away = cube.xpos - fingers.xpos
        sideways, height = float(np.linalg.norm(away[:2])), abs(float(away[2]))
        # Fingers that have begun to close go on: disturbed ones would otherwise open and push the cube away.
        slack = 2.0 if self._data.qpos[self._positions[5]] < 0.8 * OPEN else 1.0
        near = sideways < slack * SIDEWAYS and height < slack * HEIGHT
        goal = cube.xpos.copy()
        if grasped:
            goal[2] = LIFT
        elif not near:
            goal[2] += min(HOVER, SLOPE * max(0.0, sideways - SIDEWAYS / 2))
        return np.append(self._reach(goal), CLOSED if near or grasped else OPEN)

    def _reach(self, goal: np.ndarray) -> np.ndarray:
        """Return the five joint angles that bring the fingers to `goal`, pointing down, open along the arm.

        The cube may be turned: closing fingers turn it. Turning the wrist instead made goals that jump where the
        cube's next side is nearer, which a small policy did not learn (mean error of the wrist's roll 11 degrees).
        """
        ahead = np.arctan2(goal[1], goal[0])
        c, s = np.cos(ahead), np.sin(ahead)
        frame = np.array([[-c, -s, 0.0], [-s, c, 0.0], [0.0, 0.0, -1.0]])
        target = np.zeros(4)
        mujoco.mju_mat2Quat(target, frame.ravel())
        model, scratch = self._model, self._scratch
        scratch.qpos[:] = self._data.qpos
        angles = scratch.qpos[self._positions[:5]].copy()
        moves, turns = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        site, quaternion = model.site(FINGERS).id, np.zeros(4)
        for _ in range(ITERATIONS):
            scratch.qpos[self._positions[:5]] = angles
            mujoco.mj_kinematics(model, scratch)
            mujoco.mj_comPos(model, scratch)
            mujoco.mj_jacSite(model, scratch, moves, turns, site)
            mujoco.mju_mat2Quat(quaternion, scratch.site_xmat[site])
            angles = angles + ee_ik_delta_q(
                np.vstack([moves[:, self._arm], turns[:, self._arm]]),
                scratch.site_xpos[site],
                quaternion,
                goal,
                target,
                orientation_weight=TURN_WEIGHT,
            )
            angles = np.clip(angles, self._low[:5], self._high[:5])
        return angles
