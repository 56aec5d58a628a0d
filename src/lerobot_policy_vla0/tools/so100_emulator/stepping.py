"""A follower in simulated time: the emulated servos, without a port, as fast as the caller's loop runs.

Goals are rounded, and servos set up, as LeRobot's ``so100_follower`` does it, so that an episode here is what a
real-time episode on `Arm` would be if nothing were ever late. For datasets and evaluations too long for real time.
Knows nothing about pictures.
"""

from __future__ import annotations

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.so100_emulator.arm import build_bus
from lerobot_policy_vla0.tools.so100_emulator.calibration import (
    Calibration,
    default_calibration,
    from_steps,
    to_steps,
)
from lerobot_policy_vla0.tools.so100_emulator.packets import BROADCAST, Instruction, Packet
from lerobot_policy_vla0.tools.so100_emulator.registers import Register
from lerobot_policy_vla0.tools.so100_emulator.trajectory import REST, Pose

#: What LeRobot's ``so100_follower`` sets the servos to when it connects.
P_COEFFICIENT = 16


class SteppedArm:
    """A follower whose time passes in `advance` only.

    Args:
        start: pose to begin in.
        calibration: None for that of a plausible arm.
        max_relative_target: LeRobot's brake, ``--robot.max_relative_target``: goals are at most this far from where
            each joint is (degrees, percent); None for no brake.

    Raises:
        ConfigError: if ``max_relative_target`` is not positive.

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
        """Let time pass.

        Raises:
            ConfigError: if ``seconds`` is negative.
        """
        if not seconds >= 0:
            raise ConfigError(f"time cannot pass by {seconds} s: give 0 or more")
        self._now += seconds

    def _command(self, id: int, instruction: Instruction, parameters: list[int]) -> None:
        self._bus.handle(Packet(id, instruction, bytes(parameters)))
