"""Records what a host does with a follower: when it reads the joints, what it commands, and when.

Everything is derived from the packets on the bus, so it holds for any program that reads the joints once per tick of
its control loop and then commands.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.so100_emulator.arm import Arm
from lerobot_policy_vla0.tools.so100_emulator.calibration import JOINTS, from_steps
from lerobot_policy_vla0.tools.so100_emulator.packets import Instruction, Packet
from lerobot_policy_vla0.tools.so100_emulator.servo import Register

_ROW = 3  # bytes per servo in a goal: id, and a word
_SAME_TICK = 0.8  # of a control step


@dataclass(frozen=True)
class Goal:
    """One command to all joints, in degrees, and percent open for the gripper."""

    time: float  # seconds, by the log's clock
    pose: list[float]  # where the joints are told to go
    seen: list[float]  # where they were at that moment


class BusLog:
    """Records the times of reads and the commands (`goals`) on a follower's bus, from construction until `close`."""

    def __init__(self, arm: Arm, clock: Callable[[], float] = time.perf_counter) -> None:
        if arm.bus.observer is not None:
            raise ConfigError(
                f"the bus of arm {arm.name!r} has an observer already: close the other log first"
            )
        self.reads: list[float] = []
        self.goals: list[Goal] = []
        self._arm = arm
        self._clock = clock
        arm.bus.observer = self._record

    def close(self) -> None:
        """Stop recording. What was recorded stays."""
        self._arm.bus.observer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def idle_ticks(self, fps: float, warm_up: float = 0.0) -> int:
        """Return the number of control ticks after the first goal on which the host commanded nothing.

        A tick begins when the host reads the joints. With ``--inference.type=rtc`` a tick is idle if the queue of
        actions was empty. The last tick does not count, nor do those of the first ``warm_up`` seconds.

        A second read before most of a step is over belongs to the same tick: LeRobot reads again if an answer is late,
        and with ``--robot.max_relative_target`` before each goal.
        """
        if not self.goals:
            return 0
        reads = [(at, False) for at in self.reads]
        goals = [(goal.time, True) for goal in self.goals]
        idle, start, commanded = 0, -math.inf, True
        for at, is_goal in sorted(reads + goals):
            if is_goal:
                commanded = True
            elif at - start >= _SAME_TICK / fps:
                idle += not commanded and start >= self.goals[0].time + warm_up
                start, commanded = at, False
        return idle

    def intervals(self, warm_up: float = 0.0) -> list[float]:
        """Return the seconds from each goal to the next after the first ``warm_up`` seconds."""
        times = [goal.time for goal in self.goals]
        return [b - a for a, b in pairwise(times) if a >= times[0] + warm_up]

    def changes(self, warm_up: float = 0.0) -> list[list[float]]:
        """Return how far each goal is from the one before, per joint, after the first ``warm_up`` seconds."""
        return [
            [abs(y - x) for x, y in zip(a.pose, b.pose, strict=True)]
            for a, b in pairwise(self.goals)
            if a.time >= self.goals[0].time + warm_up
        ]

    def _record(self, packet: Packet) -> None:
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
