"""A bus of servos: an instruction in, status packets out. Knows nothing about serial ports."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.so100_emulator.faults import BusFaults
from lerobot_policy_vla0.tools.so100_emulator.packets import BROADCAST, Instruction, Packet, encode_packet
from lerobot_policy_vla0.tools.so100_emulator.registers import BAUD_RATES, Register
from lerobot_policy_vla0.tools.so100_emulator.servo import Servo

logger = logging.getLogger(__name__)


class ServoBus:
    """Servos on one wire. May be used from any thread.

    Args:
        servos: the servos; ids must differ.

    Raises:
        ConfigError: if two servos share an id.

    Attributes:
        servos: as given.
        faults: what is wrong with the wire.
        observer: called with every instruction before it is carried out, from the thread that serves the bus; it may
            call `positions`.
    """

    def __init__(self, servos: Iterable[Servo]) -> None:
        self.servos = tuple(servos)
        ids = [servo.id for servo in self.servos]
        if len(set(ids)) != len(ids):
            raise ConfigError(f"servos on one bus need different ids, got {ids}")
        self.faults = BusFaults()
        self.observer: Callable[[Packet], None] | None = None
        self._lock = threading.Lock()

    def positions(self) -> list[int]:
        """Return the present positions in encoder steps, in the order the servos were given."""
        with self._lock:
            return [servo.position for servo in self.servos]

    def read(self, index: int, register: Register) -> int:
        """Return a two-byte register of a servo, by its place in the order given."""
        with self._lock:
            servo = self.servos[index]
            servo.advance()
            return servo.memory.word(register)

    def power_cycle(self) -> None:
        """Take the supply away from all servos and give it back."""
        with self._lock:
            for servo in self.servos:
                servo.power_cycle()

    def handle(self, packet: Packet, baud_rate: int | None = None) -> list[bytes]:
        """Carry out an instruction and return the answers, in the order they are sent.

        Args:
            packet: what the host sent.
            baud_rate: bits per second the host talks at; servos set to another rate do not hear it. None reaches all.
        """
        try:
            instruction = Instruction(packet.code)
        except ValueError:
            logger.warning("instruction 0x%02X is not emulated: no answer", packet.code)
            return []
        if self.observer is not None:
            self.observer(packet)
        with self._lock:
            heard = {
                servo.id: servo
                for servo in self.servos
                if baud_rate in (None, _baud_rate(servo)) and not self.faults.is_silent(servo.id)
            }
            try:
                replies = self._dispatch(instruction, packet, heard)
            except (IndexError, ValueError):
                logger.warning(
                    "%s with parameters %s is malformed", instruction.name, packet.parameters.hex(" ")
                )
                return []
        return [self.faults.spoil(reply) for reply in replies]

    def _dispatch(self, instruction: Instruction, packet: Packet, heard: dict[int, Servo]) -> list[bytes]:
        parameters = packet.parameters
        if instruction is Instruction.SYNC_READ:
            address, length = parameters[0], parameters[1]
            # One answer per id that is there, in the order asked for; nobody speaks for the absent.
            return [self._status(id, heard[id].read(address, length)) for id in parameters[2:] if id in heard]
        if instruction is Instruction.SYNC_WRITE:
            address, length = parameters[0], parameters[1]
            rows = parameters[2:]
            for start in range(0, len(rows), length + 1):
                id, data = rows[start], rows[start + 1 : start + 1 + length]
                if id in heard and len(data) == length:
                    heard[id].write(address, data)
            return []

        targets = (
            list(heard.values()) if packet.id == BROADCAST else [heard[i] for i in [packet.id] if i in heard]
        )
        replies = []
        for servo in targets:
            id = servo.id  # the answer to a change of id carries the old one
            data = b""
            if instruction is Instruction.READ:
                data = servo.read(parameters[0], parameters[1])
            elif instruction is Instruction.WRITE:
                servo.write(parameters[0], parameters[1:])
            elif instruction is Instruction.REG_WRITE:
                servo.prepare(parameters[0], parameters[1:])
            elif instruction is Instruction.ACTION:
                servo.act()
            replies.append(self._status(id, data))
        # To a broadcast only a ping is answered.
        return replies if packet.id != BROADCAST or instruction is Instruction.PING else []

    def _status(self, id: int, data: bytes) -> bytes:
        return encode_packet(id, self.faults.error(id), data)


def _baud_rate(servo: Servo) -> int | None:
    code = servo.memory.byte(Register.BAUD_RATE)
    return BAUD_RATES[code] if code < len(BAUD_RATES) else None
