"""One episode in real time: LeRobot's own `lerobot-rollout` against the emulated servo bus and camera.

Knows LeRobot's command line; nothing about what runs inside it.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from rollouts import run_rollout

from lerobot_policy_vla0.tools.so100_emulator import BusLog, SO100Emulator
from reach.task import BRAKE, CAMERA, FPS, INSTRUCTION, STEPS, TOLERANCE, Case, distance, make_scene


@dataclass(frozen=True)
class RealOutcome:
    """How an episode on the wire went.

    Attributes:
        distance: metres from the gripper to the ball when the policy let go.
        goals: goals the arm was sent.
        hertz: goals per second.
    """

    distance: float
    goals: int
    hertz: float

    @property
    def success(self) -> bool:
        """Whether the gripper was left at the ball."""
        return self.distance <= TOLERANCE


def rollout(
    policy: Path, case: Case, *, inference: str = "sync", seconds: float = STEPS / FPS
) -> RealOutcome:
    """Run a policy from a case and return where it left the gripper.

    Raises:
        RuntimeError: if the command fails; the message ends with what it said.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        SO100Emulator(
            Path(folder), leaders=(), cameras=[CAMERA], scene=make_scene(case.ball), start=case.start
        ) as emulator,
        BusLog(emulator.followers[0]) as log,
    ):
        run_rollout(
            emulator.robot_options(),
            policy,
            inference=inference,
            task=INSTRUCTION,
            fps=FPS,
            seconds=seconds,
            options=[f"--robot.max_relative_target={BRAKE}", "--policy.device=cpu", "--policy.dtype=float32"],
        )
        left = distance(emulator.followers[0].pose(), case.ball)
    sent = [goal.time for goal in log.goals]
    rate = (len(sent) - 1) / (sent[-1] - sent[0]) if len(sent) > 1 else 0.0
    return RealOutcome(left, len(sent), rate)
