"""An SO-100 arm: six servos on a bus behind a port, calibrated as its calibration file says.

Knows what an arm is made of; nothing about pictures or LeRobot's commands.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from lerobot_policy_vla0.tools.so100_emulator.bus import ServoBus
from lerobot_policy_vla0.tools.so100_emulator.calibration import (
    JOINTS,
    Calibration,
    from_steps,
    load_or_write,
    to_steps,
)
from lerobot_policy_vla0.tools.so100_emulator.faults import BusFaults
from lerobot_policy_vla0.tools.so100_emulator.port import SerialPort
from lerobot_policy_vla0.tools.so100_emulator.registers import RESOLUTION, Register
from lerobot_policy_vla0.tools.so100_emulator.servo import Hand, Servo
from lerobot_policy_vla0.tools.so100_emulator.trajectory import REST, Pose, Trajectory


class Arm:
    """An arm that LeRobot's ``so100_follower`` and ``so100_leader`` connect to. Served from construction until `close`.

    Args:
        name: LeRobot's ``id`` of the arm, and the name of its port.
        folder: the port appears at ``folder/ports/name``; calibration is read from, or written to,
            ``folder/calibration/name.json``.
        trajectory: what moves the arm while its torque is off (a leader's script); None leaves it where it is.
        start: pose to begin in, without a trajectory.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        trajectory: Trajectory | None = None,
        start: Pose = REST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.calibration_dir = folder / "calibration"
        self.calibration: Calibration = load_or_write(self.calibration_dir / f"{name}.json")
        self.bus = build_bus(self.calibration, start, trajectory=trajectory, clock=clock)
        self.port = SerialPort(self.bus, folder / "ports" / name)

    @property
    def faults(self) -> BusFaults:
        """What is wrong with the bus; the cable is `port`'s."""
        return self.bus.faults

    def pose(self) -> list[float]:
        """Return where the arm is: degrees for five joints, percent open for the gripper."""
        return from_steps(self.bus.positions(), self.calibration)

    def goal(self) -> list[float]:
        """Return where the arm was last told to go, in the same units."""
        steps = [self.bus.read(i, Register.GOAL_POSITION) for i in range(len(JOINTS))]
        return from_steps(steps, self.calibration)

    def torque(self) -> bool:
        """Return whether any joint is under torque."""
        return any(self.bus.read(i, Register.TORQUE_ENABLE) & 0xFF for i in range(len(JOINTS)))

    def close(self) -> None:
        """Take the port away; the calibration file stays."""
        self.port.close()


def build_bus(
    calibration: Calibration,
    start: Pose,
    *,
    trajectory: Trajectory | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> ServoBus:
    """Return the six servos of an arm on one bus; see `Arm` for the arguments."""
    return ServoBus(_servo(i, calibration, trajectory, start, clock) for i in range(len(JOINTS)))


def _servo(
    index: int,
    calibration: Calibration,
    trajectory: Trajectory | None,
    start: Pose,
    clock: Callable[[], float],
) -> Servo:
    joint = calibration[JOINTS[index]]

    def shaft(pose: Pose) -> float:
        return to_steps(pose, calibration)[index] + joint.homing_offset

    hand: Hand | None = None
    if trajectory is not None:
        script = trajectory
        hand = lambda seconds: shaft(script(seconds))  # noqa: E731 - closes over this joint

    servo = Servo(joint.id, position=shaft(start) % RESOLUTION, hand=hand, clock=clock)
    servo.memory.set_word(Register.HOMING_OFFSET, joint.homing_offset)
    servo.memory.set_word(Register.MIN_POSITION_LIMIT, joint.range_min)
    servo.memory.set_word(Register.MAX_POSITION_LIMIT, joint.range_max)
    servo.memory.save()
    servo.advance()
    return servo
