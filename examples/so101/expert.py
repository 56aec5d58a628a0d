"""A scripted expert that lifts the cube: where the gripper has to be, and the joint angles that bring it there.

It reads where everything is from the simulator, and remembers nothing: the same state always gives the same goal. A
goal is a pose to go to, however far: the motors' speed makes it a motion.
"""

from __future__ import annotations

import numpy as np
from so101_nexus.config import SO101_JOINT_NAMES

from lerobot_policy_vla0.tools.so101.reach import Reach
from lerobot_policy_vla0.tools.so101.scene import CUBE, FINGERS, PickLift

OPEN, CLOSED = np.radians(60.0), np.radians(-10.0)
#: The fingers' point, at the finger that does not move, goes this far before the cube's middle, so that the cube lies
#: in the middle between open fingers; and this far under it. Metres.
INWARDS, UNDER = 0.015, 0.004
#: The fingers close where they are at most so far from there: along the arm, to the side, in height. Measured: the cube
#: was lifted from 15 mm along the arm either way, from 8 mm below and 10 above; from 10 mm to the side 3 of 12 times.
ALONG, ASIDE, HIGH = 0.015, 0.008, 0.008
#: They go down beside a cube that is at most so far to the side, which they then have between them, and do not touch.
SWEEP = 0.015
HOVER = 0.045  # metres above the cube, while the hand is further away
SLOPE = 3.0  # metres higher for each metre further
LIFT = 0.1  # metres above the table


class Expert:
    """The expert for one simulation."""

    def __init__(self, scene: PickLift) -> None:
        self._data, self._reach = scene.data, Reach(scene.model)
        self._gripper = scene.model.joint(SO101_JOINT_NAMES[5]).qposadr[0]

    def act(self, grasped: bool) -> np.ndarray:
        """Return the next goal of the six joints, radians."""
        cube, fingers = self._data.body(CUBE).xpos, self._data.site(FINGERS).xpos
        ahead = cube[:2] / np.linalg.norm(cube[:2])
        # Closing fingers push the cube to the one that does not move.
        openness = np.clip(self._data.qpos[self._gripper] / OPEN, 0.0, 1.0)
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
