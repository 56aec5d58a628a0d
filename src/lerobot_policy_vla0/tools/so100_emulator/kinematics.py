"""Where an SO-100's parts are for its joint angles, and the angles that bring the gripper to a place.

Link lengths are approximate, and joints have no limits here.

Coordinates are metres: x ahead of the arm, y to its left, z up, the origin on the table under the shoulder's axis.
Poses are as in `trajectory`: degrees from the middle for five joints, percent open for the gripper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lerobot_policy_vla0.errors import ConfigError

Points = NDArray[np.float64]

SHOULDER_HEIGHT, UPPER_ARM, FOREARM, WRIST, JAW = 0.12, 0.116, 0.135, 0.06, 0.1


def joint_points(pose: Sequence[float]) -> Points:
    """Return base, shoulder, elbow, wrist, palm, tip of the fixed jaw and tip of the moving one: ``(7, 3)`` metres.

    In the pose of zeros the upper arm points straight up and the forearm straight ahead.
    """
    pan, lift, elbow, wrist, roll = np.deg2rad(np.asarray(pose[:5], dtype=np.float64))
    opening = np.deg2rad(pose[5] * 0.9)
    ahead = np.array([np.cos(pan), -np.sin(pan), 0.0])
    up = np.array([0.0, 0.0, 1.0])

    def along(pitch: float) -> Points:
        """Return the direction at an angle from straight up, leaning ahead."""
        direction: Points = np.sin(pitch) * ahead + np.cos(pitch) * up
        return direction

    pitches = np.cumsum([lift, np.pi / 2 + elbow, wrist])
    palm_direction = along(pitches[2])
    # The jaws open in a plane that the roll turns about the palm's direction.
    side = np.cos(roll) * np.array([np.sin(pan), np.cos(pan), 0.0]) + np.sin(roll) * along(
        pitches[2] - np.pi / 2
    )
    shoulder = SHOULDER_HEIGHT * up
    elbow_point = shoulder + UPPER_ARM * along(pitches[0])
    wrist_point = elbow_point + FOREARM * along(pitches[1])
    palm = wrist_point + WRIST * palm_direction
    fixed = palm + JAW * palm_direction - 0.015 * side
    moving = palm + JAW * (np.cos(opening) * palm_direction + np.sin(opening) * side) + 0.015 * side
    return np.stack([np.zeros(3), shoulder, elbow_point, wrist_point, palm, fixed, moving])


def gripper_tip(pose: Sequence[float]) -> Points:
    """Return the point between the tips of the two jaws: ``(3,)`` metres."""
    middle: Points = joint_points(pose)[5:7].mean(axis=0)
    return middle


def reach(point: Sequence[float], pitch: float = 150.0) -> list[float]:
    """Return the pose that brings the tip of the closed gripper to x, y, z, with elbow up and roll 0.

    The gripper points ahead with a ``pitch`` of 90 degrees, and down with 180. A place out of reach is refused.

    >>> pose = reach([0.2, -0.1, 0.03])
    >>> [round(angle, 1) for angle in pose]
    [26.6, 12.5, 16.1, 31.4, 0.0, 0.0]
    >>> gripper_tip(pose).round(6).tolist()
    [0.2, -0.1, 0.03]
    """
    x, y, z = (float(value) for value in point)
    hand, down = WRIST + JAW, math.radians(pitch)
    # The wrist, seen from the shoulder, in the upright plane through the arm: how far out, how far up.
    out = math.hypot(x, y) - hand * math.sin(down)
    up = z - hand * math.cos(down) - SHOULDER_HEIGHT
    distance = math.hypot(out, up)
    if not abs(UPPER_ARM - FOREARM) < distance <= UPPER_ARM + FOREARM:
        raise ConfigError(
            f"the gripper cannot be at {[x, y, z]} with pitch {pitch}: its wrist would be {distance:.3f} m from the "
            f"shoulder, and the arm reaches {abs(UPPER_ARM - FOREARM):.3f} to {UPPER_ARM + FOREARM:.3f} m"
        )
    cosine = (UPPER_ARM**2 + distance**2 - FOREARM**2) / (2 * UPPER_ARM * distance)
    upper = math.atan2(out, up) - math.acos(cosine)
    fore = math.atan2(out - UPPER_ARM * math.sin(upper), up - UPPER_ARM * math.cos(upper))
    angles = (-math.atan2(y, x), upper, fore - upper - math.pi / 2, down - fore)
    return [*(math.degrees(angle) for angle in angles), 0.0, 0.0]
