"""One STS3215 servo: its registers, and a shaft that moves toward the goal.

Register names follow the manufacturer's table as LeRobot spells it. The shaft follows a first-order law with limited
speed, which is solved exactly from one access to the next, so that what a host sees depends on the clock only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from enum import IntEnum

from lerobot_policy_vla0.tools.so100_emulator.body import Shaft

SIZE = 256
#: Addresses below this are EEPROM; the rest is lost when power goes.
EEPROM_END = 40
#: The shaft's encoder counts per turn.
RESOLUTION = 4096


class Register(IntEnum):
    """Addresses of bytes, and of the first byte of little-endian words."""

    FIRMWARE_MAJOR = 0
    FIRMWARE_MINOR = 1
    MODEL_NUMBER = 3
    ID = 5
    BAUD_RATE = 6
    RETURN_DELAY_TIME = 7
    MIN_POSITION_LIMIT = 9
    MAX_POSITION_LIMIT = 11
    MAX_TEMPERATURE_LIMIT = 13
    MAX_VOLTAGE_LIMIT = 14
    MIN_VOLTAGE_LIMIT = 15
    MAX_TORQUE_LIMIT = 16
    PHASE = 18
    P_COEFFICIENT = 21
    D_COEFFICIENT = 22
    I_COEFFICIENT = 23
    PROTECTION_CURRENT = 28
    HOMING_OFFSET = 31
    OPERATING_MODE = 33
    OVERLOAD_TORQUE = 36
    TORQUE_ENABLE = 40
    ACCELERATION = 41
    GOAL_POSITION = 42
    GOAL_VELOCITY = 46
    TORQUE_LIMIT = 48
    LOCK = 55
    PRESENT_POSITION = 56
    PRESENT_VELOCITY = 58
    PRESENT_LOAD = 60
    PRESENT_VOLTAGE = 62
    PRESENT_TEMPERATURE = 63
    MOVING = 66
    MAXIMUM_ACCELERATION = 85


#: The bit that is the sign, of the signed registers of two bytes.
SIGN_BITS = {
    Register.HOMING_OFFSET: 11,
    Register.GOAL_POSITION: 15,
    Register.GOAL_VELOCITY: 15,
    Register.PRESENT_POSITION: 15,
    Register.PRESENT_VELOCITY: 15,
    Register.PRESENT_LOAD: 10,
}
#: A host cannot write the identity, and what the servo measures.
READ_ONLY = frozenset({*range(5), *range(Register.PRESENT_POSITION, 73)})
#: Bits per second for each value of the baud rate register.
BAUD_RATES = (1_000_000, 500_000, 250_000, 128_000, 115_200, 57_600, 38_400, 19_200)
#: With this bit in the phase register, positions do not wrap at a turn.
PHASE_MULTI_TURN = 0x10

_FRESH_BYTES = {
    Register.FIRMWARE_MAJOR: 3,
    Register.FIRMWARE_MINOR: 10,
    Register.RETURN_DELAY_TIME: 250,
    Register.MAX_TEMPERATURE_LIMIT: 70,
    Register.MAX_VOLTAGE_LIMIT: 80,
    Register.MIN_VOLTAGE_LIMIT: 40,
    Register.PHASE: 12,
    Register.P_COEFFICIENT: 32,
    Register.D_COEFFICIENT: 32,
    Register.OVERLOAD_TORQUE: 80,
    Register.LOCK: 1,
    Register.PRESENT_VOLTAGE: 74,
    Register.PRESENT_TEMPERATURE: 30,
}
_FRESH_WORDS = {
    Register.MODEL_NUMBER: 777,
    Register.MAX_POSITION_LIMIT: RESOLUTION - 1,
    Register.MAX_TORQUE_LIMIT: 1000,
    Register.PROTECTION_CURRENT: 500,
    Register.TORQUE_LIMIT: 1000,
}


def encode_sign(value: int, bit: int) -> int:
    """Return a signed number as sign and magnitude, the sign in ``bit``.

    >>> encode_sign(-5, 11)
    2053
    """
    return -value | 1 << bit if value < 0 else value


def decode_sign(value: int, bit: int) -> int:
    """Return the signed number; the inverse of `encode_sign`.

    >>> decode_sign(2053, 11)
    -5
    """
    magnitude = value & ((1 << bit) - 1)
    return -magnitude if value >> bit & 1 else magnitude


class Memory:
    """A servo's 256 bytes, of which the first 40 are backed by the EEPROM.

    While the lock register is 1, writes to EEPROM addresses act but do not survive `power_cycle`, as on the servo.
    """

    def __init__(self, id: int) -> None:
        self._bytes = bytearray(SIZE)
        for register, value in _FRESH_BYTES.items():
            self._bytes[register] = value
        for register, value in _FRESH_WORDS.items():
            self._bytes[register : register + 2] = value.to_bytes(2, "little")
        self._bytes[Register.ID] = id
        self._eeprom = self._bytes[:EEPROM_END]
        self._ram = bytes(self._bytes[EEPROM_END:])

    def byte(self, register: Register) -> int:
        """Return one byte."""
        return self._bytes[register]

    def word(self, register: Register) -> int:
        """Return two bytes as a number, signed where the register is."""
        value = int.from_bytes(self._bytes[register : register + 2], "little")
        return decode_sign(value, SIGN_BITS[register]) if register in SIGN_BITS else value

    def set_byte(self, register: Register, value: int) -> None:
        """Set one byte as the servo itself does, also of a read-only register."""
        self.store(register, bytes([value]))

    def set_word(self, register: Register, value: int) -> None:
        """Set two bytes as the servo itself does, also of a read-only register."""
        coded = encode_sign(value, SIGN_BITS[register]) if register in SIGN_BITS else value
        self.store(register, coded.to_bytes(2, "little"))

    def read(self, address: int, length: int) -> bytes:
        """Return ``length`` bytes, as a host reads them; zeros past the end."""
        return bytes(self._bytes[address : address + length]).ljust(length, b"\0")

    def write(self, address: int, data: bytes) -> None:
        """Write as a host does, which changes no read-only address."""
        for offset, value in enumerate(data, start=address):
            if offset < SIZE and offset not in READ_ONLY:
                self.store(offset, bytes([value]))

    def store(self, address: int, data: bytes) -> None:
        """Write to any address. The EEPROM keeps its part if it is unlocked."""
        self._bytes[address : address + len(data)] = data
        if address < EEPROM_END and not self._bytes[Register.LOCK]:
            self._eeprom[address : address + len(data)] = data[: EEPROM_END - address]

    def save(self) -> None:
        """Save all of the EEPROM's part, also if it is locked."""
        self._eeprom = self._bytes[:EEPROM_END]

    def power_cycle(self) -> None:
        """Lose everything but the EEPROM."""
        self._bytes[:] = self._eeprom + self._ram


#: Fastest turn, encoder steps per second: 45 revolutions per minute, about what a 7.4 V STS3215 does without load.
MAX_SPEED = 3072.0
#: Where a hand holds a shaft without torque after some seconds: encoder steps, before the homing offset.
Hand = Callable[[float], float]


def approach(error: float, gain: float, speed: float, seconds: float) -> float:
    """Return what is left of ``error`` after ``seconds`` of motion at ``gain * error``, limited to ``speed``.

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
    """A servo on a bus, which serialises access: a servo is not safe for several threads.

    The shaft starts at ``position``, in encoder steps before the homing offset. While torque is off, ``hand`` moves it.
    If there is a ``body``, it alone says where the shaft is, and is told where to go.
    The clock returns seconds that never decrease.
    """

    def __init__(
        self,
        id: int,
        *,
        position: float = RESOLUTION / 2,
        hand: Hand | None = None,
        clock: Callable[[], float] = time.monotonic,
        body: Shaft | None = None,
    ) -> None:
        self.memory = Memory(id)
        self.hand = hand
        self._body = body
        self._shaft = position if body is None else body.position()
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
        """Write registers, with the side effects of the firmware."""
        self.advance()
        touched = range(address, address + len(data))
        self.memory.write(address, data)
        if Register.GOAL_POSITION in touched and Register.TORQUE_ENABLE not in touched:
            self.memory.set_byte(Register.TORQUE_ENABLE, 1)  # on the servo, a goal switches torque on
        if Register.TORQUE_ENABLE in touched:
            torque = self.memory.byte(Register.TORQUE_ENABLE)
            if torque == 128:  # the command to make this position the middle
                offset = round(self._shaft) - RESOLUTION // 2
                self.memory.set_word(Register.HOMING_OFFSET, max(-2047, min(2047, offset)))
                self.memory.set_byte(Register.TORQUE_ENABLE, 0)
            elif torque and Register.GOAL_POSITION not in touched:
                # We assume that the firmware holds the position.
                self.memory.set_word(Register.GOAL_POSITION, round(self._present()))
        self._aim()
        self._measure()

    def prepare(self, address: int, data: bytes) -> None:
        """Remember a write until `act`."""
        self._pending = (address, data)

    def act(self) -> None:
        """Carry out the prepared write, if there is one."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self.write(*pending)

    def power_cycle(self) -> None:
        """Lose power and come back with fresh RAM and no torque."""
        self.advance()
        self.memory.power_cycle()
        self._pending = None
        self._aim()
        self._measure()

    def advance(self) -> None:
        """Move the shaft to where it is by now."""
        now = self._clock()
        seconds, self._time = now - self._time, now
        before = self._shaft
        if self._body is not None:
            self._shaft = self._body.position()
        elif self.memory.byte(Register.TORQUE_ENABLE):
            self._shaft += (error := self._error()) - approach(error, self._gain(), self._limit(), seconds)
        elif self.hand is not None:
            self._shaft = self.hand(now - self._started)
        if seconds > 0.0:
            self._speed = (self._shaft - before) / seconds
        self._measure()

    def _aim(self) -> None:
        if self._body is not None:
            torque = self.memory.byte(Register.TORQUE_ENABLE)
            self._body.aim(self._shaft + self._error() if torque else None)

    def _present(self) -> float:
        position = self._shaft - self.memory.word(Register.HOMING_OFFSET)
        return position if self.memory.byte(Register.PHASE) & PHASE_MULTI_TURN else position % RESOLUTION

    def _error(self) -> float:
        low = self.memory.word(Register.MIN_POSITION_LIMIT)
        high = self.memory.word(Register.MAX_POSITION_LIMIT)
        goal = self.memory.word(Register.GOAL_POSITION)
        # Two limits of 0 are no limits, as in the servo's multi-turn setting.
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
