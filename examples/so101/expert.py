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
#: The fingers' point, at the finger that does not move, goes this far before the cube's middle, so that the cube lies
#: in the middle between open fingers; and this far under it. Metres.
INWARDS, UNDER = 0.015, 0.004
#: The fingers close where the cube is at most so far from there: along the arm, to the side, in height. Measured: it is
#: lifted from 20, 8 and 8 mm.
ALONG, ASIDE, HIGH = 0.015, 0.008, 0.008
#: They go down beside a cube that is at most so far to the side, which they then have between them, and do not touch.
SWEEP = 0.015
HOVER = 0.045  # metres above the cube, while the hand is further away
SLOPE = 3.0  # metres higher for each metre further
LIFT = 0.1  # metres above the table
#: The fingers point down at the table, and outwards above it, so much for each metre: straight down, the wrist's limit
#: would be in the way there; outwards at the table, the gripper's motor would.
TILT = np.radians(250.0)
#: The five joints where the search for a pose begins. Always the same, so that a goal depends only on the cube.
START = np.radians([0.0, 0.0, 0.0, 75.0, 0.0])
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
        cube, fingers = self._data.body(CUBE).xpos, self._data.site(FINGERS).xpos
        ahead = cube[:2] / np.linalg.norm(cube[:2])
        openness = np.clip(self._data.qpos[self._positions[5]] / OPEN, 0.0, 1.0)
        goal = cube - np.append(INWARDS * openness * ahead, UNDER)
        along, aside = np.abs(np.array([ahead, [-ahead[1], ahead[0]]]) @ (goal - fingers)[:2])
        # Fingers that have begun to close go on: disturbed ones would otherwise open and push the cube away.
        slack = 2.0 if openness < 0.8 else 1.0
        near = max(along / ALONG, aside / ASIDE, abs(goal[2] - fingers[2]) / HIGH) < slack
        if grasped:
            goal[2] = LIFT
        elif not near:
            goal[2] += min(HOVER, SLOPE * max(0.0, along - ALONG, aside - SWEEP))
        return np.append(self._reach(goal), CLOSED if near or grasped else OPEN)

    def _reach(self, goal: np.ndarray) -> np.ndarray:
        """Return the five joint angles that bring the fingers to `goal`, pointing down, open along the arm.

        The cube may be turned: closing fingers turn it. Turning the wrist instead made goals that jump where the
        cube's next side is nearer, which a small policy did not learn (mean error of the wrist's roll 11 degrees).
        """
        ahead = np.arctan2(goal[1], goal[0])
        c, s = np.cos(ahead), np.sin(ahead)
        frame = np.array([[-c, -s, 0.0], [-s, c, 0.0], [0.0, 0.0, -1.0]])
        tilt = TILT * goal[2]
        down, out = np.cos(tilt), np.sin(tilt)
        frame = frame @ np.array([[down, 0.0, -out], [0.0, 1.0, 0.0], [out, 0.0, down]])
        target = np.zeros(4)
        mujoco.mju_mat2Quat(target, frame.ravel())
        model, scratch = self._model, self._scratch
        scratch.qpos[:] = self._data.qpos
        angles = START
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
