"""An SO-100 arm: six servos on a bus, calibrated as its calibration file says.

`Arm` is behind a serial port and moves in real time. `SteppedArm` has no port and moves in simulated time, as fast as
the caller's loop runs, for datasets and evaluations that are too long for real time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.so100_emulator.body import Body
from lerobot_policy_vla0.tools.so100_emulator.bus import BusFaults, ServoBus
from lerobot_policy_vla0.tools.so100_emulator.calibration import (
    JOINTS,
    Calibration,
    default_calibration,
    from_steps,
    load_or_write,
    to_steps,
)
from lerobot_policy_vla0.tools.so100_emulator.packets import BROADCAST, Instruction, Packet
from lerobot_policy_vla0.tools.so100_emulator.port import SerialPort
from lerobot_policy_vla0.tools.so100_emulator.servo import RESOLUTION, Register, Servo
from lerobot_policy_vla0.tools.so100_emulator.trajectory import REST, Pose, Trajectory

#: What LeRobot's ``so100_follower`` sets the servos to when it connects.
P_COEFFICIENT = 16


class Arm:
    """An arm that LeRobot's ``so100_follower`` and ``so100_leader`` connect to, from construction until `close`.

    Args:
        name: LeRobot's ``id`` of the arm, and the name of its port.
        folder: the port appears at ``folder/ports/name``; calibration is read from, or written to,
            ``folder/calibration/name.json``.
        trajectory: what moves the arm while its torque is off (a leader's script); None leaves it where it is.
        start: pose to begin in, without a trajectory.
        clock: returns seconds that never decrease.
        body: what moves the arm in place of the servos' own law of motion; it begins where it is, and not in ``start``.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        trajectory: Trajectory | None = None,
        start: Pose = REST,
        clock: Callable[[], float] = time.monotonic,
        body: Body | None = None,
    ) -> None:
        self.name = name
        self.calibration_dir = folder / "calibration"
        self.calibration: Calibration = load_or_write(self.calibration_dir / f"{name}.json")
        self.bus = build_bus(self.calibration, start, trajectory=trajectory, clock=clock, body=body)
        self.port = SerialPort(self.bus, folder / "ports" / name)

    @property
    def faults(self) -> BusFaults:
        """The faults of the bus. Those of the cable are `port`'s."""
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
        """Remove the port. The calibration file stays."""
        self.port.close()


class SteppedArm:
    """A follower whose time passes in `advance` only.

    Servos are set up and goals are rounded as by LeRobot's ``so100_follower``, so that an episode is what a real-time
    episode on `Arm` would be if nothing were ever late.

    Args:
        start: pose to begin in.
        calibration: None for that of a plausible arm.
        max_relative_target: LeRobot's ``--robot.max_relative_target``: goals are at most this far from where each joint
            is (degrees, percent); None for no limit.

    >>> arm = SteppedArm()
    >>> arm.send([30, -60, 60, 30, 0, 10])
    >>> arm.advance(1.0)
    >>> round(arm.pose()[0])
    30
    """

    def __init__(
        self,
        start: Pose = REST,
        calibration: Calibration | None = None,
        max_relative_target: float | None = None,
    ) -> None:
        if max_relative_target is not None and not max_relative_target > 0:
            raise ConfigError(
                f"max_relative_target={max_relative_target} lets nothing move: give more than 0"
            )
        self.calibration = calibration or default_calibration()
        self.max_relative_target = max_relative_target
        self._now = 0.0
        self._bus = build_bus(self.calibration, start, clock=lambda: self._now)
        for joint in self.calibration.values():
            self._command(joint.id, Instruction.WRITE, [Register.P_COEFFICIENT, P_COEFFICIENT])

    def pose(self) -> list[float]:
        """Return where the arm is, as LeRobot reads it: degrees for five joints, percent open for the gripper."""
        return from_steps(self._bus.positions(), self.calibration)

    def send(self, goal: Pose) -> None:
        """Tell the arm where to go, in the units of `pose`."""
        if (limit := self.max_relative_target) is not None:
            goal = [
                here + max(-limit, min(limit, there - here))
                for here, there in zip(self.pose(), goal, strict=True)
            ]
        data = [int(Register.GOAL_POSITION), 2]
        for joint, steps in zip(self.calibration.values(), to_steps(goal, self.calibration), strict=True):
            data += [joint.id, *int(steps).to_bytes(2, "little")]  # LeRobot cuts fractions off
        self._command(BROADCAST, Instruction.SYNC_WRITE, data)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        if not seconds >= 0:
            raise ConfigError(f"time cannot pass by {seconds} s: give 0 or more")
        self._now += seconds

    def _command(self, id: int, instruction: Instruction, parameters: list[int]) -> None:
        self._bus.handle(Packet(id, instruction, bytes(parameters)))


def build_bus(
    calibration: Calibration,
    start: Pose,
    *,
    trajectory: Trajectory | None = None,
    clock: Callable[[], float] = time.monotonic,
    body: Body | None = None,
) -> ServoBus:
    """Return the six servos of an arm on one bus. `Arm` describes the arguments."""

    def shaft(index: int, pose: Pose) -> float:
        return to_steps(pose, calibration)[index] + calibration[JOINTS[index]].homing_offset

    shafts = [None] * len(JOINTS) if body is None else body.shafts(calibration)
    servos = []
    for index, joint in enumerate(calibration[name] for name in JOINTS):
        hand = None if trajectory is None else lambda t, i=index, script=trajectory: shaft(i, script(t))
        position = shaft(index, start) % RESOLUTION
        servo = Servo(joint.id, position=position, hand=hand, clock=clock, body=shafts[index])
        servo.memory.set_word(Register.HOMING_OFFSET, joint.homing_offset)
        servo.memory.set_word(Register.MIN_POSITION_LIMIT, joint.range_min)
        servo.memory.set_word(Register.MAX_POSITION_LIMIT, joint.range_max)
        servo.memory.save()
        servo.advance()
        servos.append(servo)
    return ServoBus(servos)
