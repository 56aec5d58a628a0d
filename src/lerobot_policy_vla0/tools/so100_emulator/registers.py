"""The register map of an STS3215: addresses, number formats, what a fresh servo holds, what survives power.

Names follow the manufacturer's table as LeRobot spells it. Knows nothing about motion or the wire.
"""

from __future__ import annotations

from enum import IntEnum

SIZE = 256
#: Addresses below this are EEPROM; the rest is lost when power goes.
EEPROM_END = 40
#: The shaft's encoder counts per turn.
RESOLUTION = 4096


class Register(IntEnum):
    """Addresses. Words are little-endian and start here."""

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


#: Registers of two bytes whose top bit of this number is the sign.
SIGN_BITS = {
    Register.HOMING_OFFSET: 11,
    Register.GOAL_POSITION: 15,
    Register.GOAL_VELOCITY: 15,
    Register.PRESENT_POSITION: 15,
    Register.PRESENT_VELOCITY: 15,
    Register.PRESENT_LOAD: 10,
}
#: A host cannot write these: identity, and what the servo measures.
READ_ONLY = frozenset({*range(5), *range(Register.PRESENT_POSITION, 73)})
#: Bits per second for each value of the baud rate register.
BAUD_RATES = (1_000_000, 500_000, 250_000, 128_000, 115_200, 57_600, 38_400, 19_200)
#: Set in the phase register: positions count on past a turn instead of wrapping.
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
    """A servo's 256 bytes, and the EEPROM behind the first 40.

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
        """Set one byte, as the servo itself does: read-only registers too."""
        self.store(register, bytes([value]))

    def set_word(self, register: Register, value: int) -> None:
        """Set two bytes, as the servo itself does: read-only registers too."""
        coded = encode_sign(value, SIGN_BITS[register]) if register in SIGN_BITS else value
        self.store(register, coded.to_bytes(2, "little"))

    def read(self, address: int, length: int) -> bytes:
        """Return ``length`` bytes, as a host reads them; zeros past the end."""
        return bytes(self._bytes[address : address + length]).ljust(length, b"\0")

    def write(self, address: int, data: bytes) -> None:
        """Write as a host does: read-only addresses and those past the end keep what they hold."""
        for offset, value in enumerate(data, start=address):
            if offset < SIZE and offset not in READ_ONLY:
                self.store(offset, bytes([value]))

    def store(self, address: int, data: bytes) -> None:
        """Write anything anywhere; kept without power if it is EEPROM and unlocked."""
        self._bytes[address : address + len(data)] = data
        if address < EEPROM_END and not self._bytes[Register.LOCK]:
            self._eeprom[address : address + len(data)] = data[: EEPROM_END - address]

    def save(self) -> None:
        """Keep all of the EEPROM's part as it is now, locked or not."""
        self._eeprom = self._bytes[:EEPROM_END]

    def power_cycle(self) -> None:
        """Lose everything but the EEPROM."""
        self._bytes[:] = self._eeprom + self._ram
