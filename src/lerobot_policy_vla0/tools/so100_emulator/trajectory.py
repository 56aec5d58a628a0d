"""Scripts for a leader arm: functions of time that return a pose.

A pose is six numbers in LeRobot's units: degrees from the middle of the range, and percent open for the gripper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from lerobot_policy_vla0.errors import ConfigError

Pose = Sequence[float]
#: The pose to be in, t seconds after the arm got its power.
Trajectory = Callable[[float], Pose]

#: Where arms start: folded, with the gripper nearly closed.
REST: Pose = (0.0, -60.0, 60.0, 30.0, 0.0, 10.0)


def wave(seconds: float) -> Pose:
    """Return the pose of an arm that waves. Joints move differently, at 60 degrees a second or less."""
    middles, sizes, periods = (0, -20, 20, 30, 0, 50), (40, 25, 25, 20, 45, 40), (5, 7, 6, 4, 8, 5)
    return [
        middle + size * math.sin(2 * math.pi * seconds / period)
        for middle, size, period in zip(middles, sizes, periods, strict=True)
    ]


def through(points: Sequence[tuple[float, Pose]]) -> Trajectory:
    """Return a trajectory through ``points`` of seconds and pose. It rests in each and starts over after the last."""
    times = [time for time, _ in points]
    if len(points) < 2 or times[0] != 0 or any(b <= a for a, b in pairwise(times)):
        raise ConfigError(f"a trajectory needs two or more points at growing times from 0, got times {times}")

    def pose(seconds: float) -> Pose:
        now = seconds % times[-1]
        index = next(i for i in range(len(points) - 1) if now < times[i + 1])
        (start, before), (end, after) = points[index], points[index + 1]
        share = (1 - math.cos(math.pi * (now - start) / (end - start))) / 2
        return [a + share * (b - a) for a, b in zip(before, after, strict=True)]

    return pose
