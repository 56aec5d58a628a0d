"""The task: bring the gripper of an SO-100 to a red ball that lies somewhere on the table.

Where the ball is can be seen in the camera's picture only. Knows the emulated arm; nothing about datasets or policies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lerobot_policy_vla0.tools.so100_emulator import CameraSettings, Scene, gripper_tip, reach

INSTRUCTION = "touch the ball"
FPS = 5  # control steps per second
CAMERA = CameraSettings("top", width=160, height=120, fps=30)
#: An episode's control steps. The farthest ball is 8 away for the expert.
STEPS = 20
#: Metres between the middle of the jaws' tips and the middle of the ball: within it, the gripper touches the ball.
TOLERANCE = 0.03
#: Control steps at an episode's end throughout which the gripper has to be there.
HOLD = 3
#: LeRobot's brake, --robot.max_relative_target: degrees a goal may be ahead of a joint. The leader, and the policy that
#: learns from it, point at the ball at once; the arm follows at this pace.
BRAKE = 20.0

_ARRIVED = 1.0  # degrees


def make_scene(ball: tuple[float, float] = (0.24, 0.0)) -> Scene:
    """Return what the camera looks at: from ahead and above, so that no arm hides the ball for long."""
    return Scene(
        ball=ball, ball_radius=TOLERANCE, eye=(0.62, 0.0, 0.5), look_at=(0.14, 0.0, 0.09), field_of_view=44.0
    )


@dataclass(frozen=True)
class Case:
    """How an episode begins.

    Attributes:
        start: the arm's pose; degrees, percent open.
        ball: x and y, metres.
    """

    start: tuple[float, ...]
    ball: tuple[float, float]


def draw_case(seed: int) -> Case:
    """Return a start pose and a place for the ball; the same for the same seed.

    Four joints begin anywhere in a range of 60 to 120 degrees with the gripper above the table; the ball is within 45
    degrees of straight ahead, 17 to 29 cm from the arm's axis.
    """
    rng = np.random.default_rng(seed)
    bearing, distance = np.deg2rad(rng.uniform(-45, 45)), rng.uniform(0.17, 0.29)
    ball = (float(distance * np.cos(bearing)), float(distance * np.sin(bearing)))
    while True:
        start = (*rng.uniform((-60, -60, -10, 0), (60, 0, 60, 60)).tolist(), 0.0, 0.0)
        if 0.06 < gripper_tip(start)[2] < 0.2:
            return Case(start, ball)


def expert(ball: tuple[float, float]) -> list[float]:
    """Return the expert's goal: the pose with the gripper's tip in the middle of the ball."""
    return reach([*ball, TOLERANCE])


def arrived(pose: Sequence[float], ball: tuple[float, float]) -> bool:
    """Return whether an expert would call it done."""
    return bool(np.abs(np.subtract(pose[:4], expert(ball)[:4])).max() < _ARRIVED)


def distance(pose: Sequence[float], ball: tuple[float, float]) -> float:
    """Return metres between the middle of the jaws' tips and the middle of the ball."""
    return float(np.linalg.norm(gripper_tip(pose) - make_scene(ball).ball_centre))
