"""One episode in real time: LeRobot's own `lerobot-rollout` against the emulated servo bus and camera.

Knows LeRobot's command line; nothing about what runs inside it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from lerobot_policy_vla0.testing.so100 import SO100Emulator
from lerobot_policy_vla0.testing.so100.packets import Instruction, Packet
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
    sent: list[float] = []

    def note(packet: Packet) -> None:
        if packet.code == Instruction.SYNC_WRITE:
            sent.append(time.monotonic())

    with (
        tempfile.TemporaryDirectory() as folder,
        SO100Emulator(
            Path(folder), leaders=(), camera=CAMERA, scene=make_scene(case.ball), start=case.start
        ) as emulator,
    ):
        emulator.followers[0].bus.observer = note
        finished = subprocess.run(
            [
                Path(sys.executable).with_name("lerobot-rollout"),
                *emulator.robot_options(),
                f"--robot.max_relative_target={BRAKE}",
                f"--policy.path={policy}",
                "--policy.device=cpu",
                "--policy.dtype=float32",
                "--strategy.type=base",
                f"--inference.type={inference}",
                f"--task={INSTRUCTION}",
                f"--fps={FPS}",
                f"--duration={seconds}",
                "--return_to_initial_position=false",
                "--play_sounds=false",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if finished.returncode:
            raise RuntimeError(f"lerobot-rollout failed: {finished.stdout[-2000:]}")
        left = distance(emulator.followers[0].pose(), case.ball)
    rate = (len(sent) - 1) / (sent[-1] - sent[0]) if len(sent) > 1 else 0.0
    return RealOutcome(left, len(sent), rate)
