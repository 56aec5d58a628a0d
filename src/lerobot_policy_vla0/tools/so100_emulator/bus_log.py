"""What a host does with a follower, noted on its bus: when it looks, what it commands, and when.

Everything is derived from the packets, so it holds for any program that drives the arm. Knows nothing about policies
or LeRobot beyond its control loop: look once per tick, then command.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Self

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.so100_emulator.arm import Arm
from lerobot_policy_vla0.tools.so100_emulator.calibration import JOINTS, from_steps
from lerobot_policy_vla0.tools.so100_emulator.packets import Instruction, Packet
from lerobot_policy_vla0.tools.so100_emulator.registers import Register

_ROW = 3  # bytes per servo in a goal: id, and a word
_SAME_TICK = 0.8  # of a control step


@dataclass(frozen=True)
class Goal:
    """One command to all joints.

    Attributes:
        time: seconds, by the log's clock.
        pose: where the joints are told to go: degrees, and percent open for the gripper.
        seen: where they were at that moment, in the same units.
    """

    time: float
    pose: list[float]
    seen: list[float]


class BusLog:
    """Notes looks (`reads`) and commands (`goals`) on a follower's bus, from construction until `close`.

    Args:
        arm: the follower.
        clock: seconds, never going back.

    Raises:
        ConfigError: if the bus is being observed already.
    """

    def __init__(self, arm: Arm, clock: Callable[[], float] = time.perf_counter) -> None:
        if arm.bus.observer is not None:
            raise ConfigError(
                f"the bus of arm {arm.name!r} has an observer already: close the other log first"
            )
        self.reads: list[float] = []
        self.goals: list[Goal] = []
        self._arm = arm
        self._clock = clock
        arm.bus.observer = self._note

    def close(self) -> None:
        """Stop noting; what was noted stays."""
        self._arm.bus.observer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def idle_ticks(self, fps: float, warm_up: float = 0.0) -> int:
        """Return the control ticks after the first goal that commanded nothing.

        A tick begins when the host looks at the joints. With ``--inference.type=rtc`` the idle ones are those on which
        the queue of actions was empty. The last tick is not judged.

        Args:
            fps: control steps per second. A second look before most of a step is over belongs to the same tick: LeRobot
                asks again if an answer is late, and ``--robot.max_relative_target`` looks before each goal.
            warm_up: seconds after the first goal that do not count yet.
        """
        if not self.goals:
            return 0
        looks = [(at, False) for at in self.reads]
        goals = [(goal.time, True) for goal in self.goals]
        idle, start, commanded = 0, -math.inf, True
        for at, is_goal in sorted(looks + goals):
            if is_goal:
                commanded = True
            elif at - start >= _SAME_TICK / fps:
                idle += not commanded and start >= self.goals[0].time + warm_up
                start, commanded = at, False
        return idle

    def intervals(self, warm_up: float = 0.0) -> list[float]:
        """Return the seconds from each goal to the next, without the first ``warm_up`` seconds."""
        times = [goal.time for goal in self.goals]
        return [b - a for a, b in pairwise(times) if a >= times[0] + warm_up]

    def changes(self, warm_up: float = 0.0) -> list[list[float]]:
        """Return how far each goal is from the one before, per joint, without the first ``warm_up`` seconds."""
        if not self.goals:
            return []
        from_now = self.goals[0].time + warm_up
        return [
            [abs(y - x) for x, y in zip(a.pose, b.pose, strict=True)]
            for a, b in pairwise(self.goals)
            if a.time >= from_now
        ]

    def _note(self, packet: Packet) -> None:
        now = self._clock()
        address = packet.parameters[0] if packet.parameters else None
        if packet.code == Instruction.SYNC_READ and address == Register.PRESENT_POSITION:
            self.reads.append(now)
        elif packet.code == Instruction.SYNC_WRITE and address == Register.GOAL_POSITION:
            rows = packet.parameters[2:]
            words = {
                rows[at]: int.from_bytes(rows[at + 1 : at + _ROW], "little")
                for at in range(0, len(rows), _ROW)
            }
            ids = [self._arm.calibration[joint].id for joint in JOINTS]
            if all(id in words for id in ids):  # LeRobot commands all joints at once
                pose = from_steps([words[id] for id in ids], self._arm.calibration)
                self.goals.append(Goal(now, pose, self._arm.pose()))
