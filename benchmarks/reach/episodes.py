"""Episodes in simulated time, many side by side: pictures and poses out, goals in.

Knows the task and the emulated arm; nothing about who decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lerobot_policy_vla0.tools.so100_emulator import Scene, SteppedArm
from reach.task import BRAKE, CAMERA, FPS, HOLD, STEPS, TOLERANCE, Case, distance, make_scene


class Controller(Protocol):
    """Who decides where arms go.

    Attributes:
        looks: whether it needs pictures; without, it gets none ``(B, 0)``, which saves drawing them.
    """

    looks: bool

    def __call__(self, pictures: NDArray[np.uint8], poses: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return goals ``(B, 6)`` from pictures ``(B, height, width, 3)`` and poses ``(B, 6)``."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How an episode went.

    Attributes:
        distances: metres from the gripper to the ball after every control step.
    """

    distances: tuple[float, ...]

    @property
    def success(self) -> bool:
        """Whether the gripper was at the ball throughout the last steps."""
        return max(self.distances[-HOLD:]) <= TOLERANCE

    @property
    def touched(self) -> bool:
        """Whether it was there at any time, in passing included."""
        return min(self.distances) <= TOLERANCE


def see(scene: Scene, arm: SteppedArm) -> NDArray[np.uint8]:
    """Return the camera's picture of an arm."""
    return scene.render(arm.pose(), CAMERA.width, CAMERA.height)


def run(
    cases: Sequence[Case],
    controller: Controller,
    *,
    steps: int = STEPS,
    shown: Sequence[tuple[float, float]] | None = None,
) -> list[Outcome]:
    """Run an episode from each case and return how it went.

    Args:
        cases: where episodes begin.
        controller: called once per control step with all episodes' pictures and poses.
        steps: control steps.
        shown: where the pictures show the ball, if not where it is.
    """
    arms = [SteppedArm(case.start, max_relative_target=BRAKE) for case in cases]
    scenes = [make_scene(ball) for ball in shown or [case.ball for case in cases]]
    distances: list[list[float]] = [[] for _ in cases]
    for _ in range(steps):
        pictures = np.empty((len(arms), 0), np.uint8)
        if controller.looks:
            pictures = np.stack([see(scene, arm) for scene, arm in zip(scenes, arms, strict=True)])
        goals = controller(pictures, np.array([arm.pose() for arm in arms]))
        for i, (arm, case) in enumerate(zip(arms, cases, strict=True)):
            arm.send(goals[i])
            arm.advance(1 / FPS)
            distances[i].append(distance(arm.pose(), case.ball))
    return [Outcome(tuple(each)) for each in distances]
