"""Inverse kinematics of the SO-101: the joint angles that bring the fingers to a place."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from so101_nexus.config import SO101_JOINT_NAMES
from so101_nexus.kinematics import ee_ik_delta_q

from lerobot_policy_vla0.tools.so101.scene import FINGERS

Array = np.ndarray[Any, Any]

ITERATIONS = 30
TURN_WEIGHT = 0.2  # of a radian beside a metre
#: The fingers point down at the table, and outwards above it, so much for each metre: straight down, the wrist's limit
#: would be in the way there; outwards at the table, the gripper's motor would. Radians.
TILT = np.radians(250.0)
#: The five joints where the search for a pose begins: the same for all places, so that near places have near poses.
START = np.radians([0.0, 0.0, 0.0, 75.0, 0.0])


class Reach:
    """Finds poses in a model that has the arm."""

    def __init__(self, model: Any) -> None:
        self._model, self._data = model, mujoco.MjData(model)
        joints = [model.joint(name) for name in SO101_JOINT_NAMES[:5]]
        self._positions = np.array([joint.qposadr[0] for joint in joints])
        self._velocities = np.array([joint.dofadr[0] for joint in joints])
        self._low, self._high = np.array([joint.range for joint in joints]).T
        self._site = model.site(FINGERS).id

    def __call__(self, place: Array) -> Array:
        """Return the five joint angles, radians, with the fingers at ``place``, ``(3,)`` metres, open along the arm.

        What cannot be reached is approached.
        """
        ahead, tilt = np.arctan2(place[1], place[0]), TILT * place[2]
        c, s, down, out = np.cos(ahead), np.sin(ahead), np.cos(tilt), np.sin(tilt)
        frame = np.array([[-c, -s, 0.0], [-s, c, 0.0], [0.0, 0.0, -1.0]])
        frame = frame @ np.array([[down, 0.0, -out], [0.0, 1.0, 0.0], [out, 0.0, down]])
        target, quaternion = np.zeros(4), np.zeros(4)
        mujoco.mju_mat2Quat(target, frame.ravel())
        model, data, angles = self._model, self._data, START
        moves, turns = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        for _ in range(ITERATIONS):
            data.qpos[self._positions] = angles
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            mujoco.mj_jacSite(model, data, moves, turns, self._site)
            mujoco.mju_mat2Quat(quaternion, data.site_xmat[self._site])
            jacobian = np.vstack([moves[:, self._velocities], turns[:, self._velocities]])
            step = ee_ik_delta_q(
                jacobian,
                data.site_xpos[self._site],
                quaternion,
                place,
                target,
                orientation_weight=TURN_WEIGHT,
            )
            angles = np.clip(angles + step, self._low, self._high)
        return angles
