"""One STS3215: its registers, and a shaft that moves toward the goal.

The shaft follows a first-order law with limited speed, solved exactly from one access to the next, so that what a host
sees depends on the clock only. Knows nothing about the wire, arms or calibration files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from lerobot_policy_vla0.tools.so100_emulator.registers import PHASE_MULTI_TURN, RESOLUTION, Memory, Register

#: Fastest turn, encoder steps per second: 45 revolutions per minute, about what a 7.4 V STS3215 does without load.
MAX_SPEED = 3072.0
#: Shaft position (encoder steps, before the homing offset) that a hand holds a limp shaft at, t seconds in.
Hand = Callable[[float], float]


def approach(error: float, gain: float, speed: float, seconds: float) -> float:
    """Return what is left of ``error`` after ``seconds`` of moving at ``gain * error``, but no faster than ``speed``.

    >>> approach(1000.0, gain=10.0, speed=500.0, seconds=1.0)
    500.0
    >>> round(approach(-50.0, gain=10.0, speed=500.0, seconds=0.1), 3)  # 1/e of it
    -18.394
    """
    knee = speed / gain  # from here on the gain, not the limit, sets the speed
    size = abs(error)
    if size > knee:
        linear = min(seconds, (size - knee) / speed)
        size -= linear * speed
        seconds -= linear
    if seconds > 0.0:
        size *= math.exp(-gain * seconds)
    return math.copysign(size, error)


class Servo:
    """A servo on a bus. Not safe for several threads: its bus serialises access.

    Args:
        id: address on the bus, 0 to 253.
        position: where the shaft starts, encoder steps before the homing offset.
        hand: what moves the shaft while torque is off; None leaves it where it is.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        id: int,
        *,
        position: float = RESOLUTION / 2,
        hand: Hand | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.memory = Memory(id)
        self.hand = hand
        self._shaft = position
        self._speed = 0.0
        self._clock = clock
        self._started = self._time = clock()
        self._pending: tuple[int, bytes] | None = None
        self._measure()

    @property
    def id(self) -> int:
        """The address the servo answers to."""
        return self.memory.byte(Register.ID)

    @property
    def position(self) -> int:
        """Present position in encoder steps, homing offset applied, as a host reads it."""
        self.advance()
        return self.memory.word(Register.PRESENT_POSITION)

    def read(self, address: int, length: int) -> bytes:
        """Return registers as they are now."""
        self.advance()
        return self.memory.read(address, length)

    def write(self, address: int, data: bytes) -> None:
        """Write registers, with what the firmware does on the side."""
        self.advance()
        touched = range(address, address + len(data))
        self.memory.write(address, data)
        if Register.GOAL_POSITION in touched and Register.TORQUE_ENABLE not in touched:
            self.memory.set_byte(Register.TORQUE_ENABLE, 1)  # a goal switches torque on, as on the servo
        if Register.TORQUE_ENABLE in touched:
            torque = self.memory.byte(Register.TORQUE_ENABLE)
            if torque == 128:  # "here is the middle"
                offset = round(self._shaft) - RESOLUTION // 2
                self.memory.set_word(Register.HOMING_OFFSET, max(-2047, min(2047, offset)))
                self.memory.set_byte(Register.TORQUE_ENABLE, 0)
            elif torque and Register.GOAL_POSITION not in touched:
                self.memory.set_word(
                    Register.GOAL_POSITION, round(self._present())
                )  # hold (assumed of the firmware)
        self._measure()

    def prepare(self, address: int, data: bytes) -> None:
        """Remember a write until `act`."""
        self._pending = (address, data)

    def act(self) -> None:
        """Do the write that was prepared, if one was."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self.write(*pending)

    def power_cycle(self) -> None:
        """Lose power and come back: RAM is fresh, torque is off."""
        self.advance()
        self.memory.power_cycle()
        self._pending = None
        self._measure()

    def advance(self) -> None:
        """Move the shaft to where it is by now."""
        now = self._clock()
        seconds, self._time = now - self._time, now
        before = self._shaft
        if self.memory.byte(Register.TORQUE_ENABLE):
            self._shaft += (error := self._error()) - approach(error, self._gain(), self._limit(), seconds)
        elif self.hand is not None:
            self._shaft = self.hand(now - self._started)
        if seconds > 0.0:
            self._speed = (self._shaft - before) / seconds
        self._measure()

    def _present(self) -> float:
        position = self._shaft - self.memory.word(Register.HOMING_OFFSET)
        return position if self.memory.byte(Register.PHASE) & PHASE_MULTI_TURN else position % RESOLUTION

    def _error(self) -> float:
        low = self.memory.word(Register.MIN_POSITION_LIMIT)
        high = self.memory.word(Register.MAX_POSITION_LIMIT)
        goal = self.memory.word(Register.GOAL_POSITION)
        # Both limits 0 means none, as in the servo's multi-turn setting.
        return (max(low, min(high, goal)) if high > low else goal) - self._present()

    def _gain(self) -> float:
        """Return 1/s: LeRobot's P coefficient of 16 gives a time constant of 62 ms."""
        return max(1.0, float(self.memory.byte(Register.P_COEFFICIENT)))

    def _limit(self) -> float:
        return min(MAX_SPEED, abs(self.memory.word(Register.GOAL_VELOCITY)) or MAX_SPEED)

    def _measure(self) -> None:
        present = round(self._present())
        if not self.memory.byte(Register.PHASE) & PHASE_MULTI_TURN:
            present %= RESOLUTION
        torque = bool(self.memory.byte(Register.TORQUE_ENABLE))
        load = round(max(-1.0, min(1.0, self._error() / 100)) * 1000) if torque else 0
        self.memory.set_word(Register.PRESENT_POSITION, max(-32767, min(32767, present)))
        self.memory.set_word(Register.PRESENT_VELOCITY, max(-32767, min(32767, round(self._speed))))
        self.memory.set_word(Register.PRESENT_LOAD, load)
        self.memory.set_byte(Register.MOVING, int(abs(self._speed) > 1.0))
