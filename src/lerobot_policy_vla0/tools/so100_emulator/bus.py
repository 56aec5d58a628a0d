"""A bus of servos: an instruction goes in, status packets come out, with faults on demand."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.so100_emulator.packets import BROADCAST, Instruction, Packet, encode_packet
from lerobot_policy_vla0.tools.so100_emulator.servo import BAUD_RATES, Register, Servo

logger = logging.getLogger(__name__)


class BusFaults:
    """What is wrong with a bus at the moment; nothing, to begin with. Each fault that has an effect is logged by name.

    Methods may be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._silent: set[int] = set()
        self._errors: dict[int, int] = {}
        self._corrupt = 0
        self._delays: list[float] = []

    def silence(self, id: int) -> None:
        """Make a servo deaf and mute, as with a loose connector, until `restore`."""
        with self._lock:
            self._silent.add(id)

    def set_error(self, id: int, bits: int) -> None:
        """Set the error byte of a servo's answers (1 voltage, 4 overheat, 32 overload), until `restore`."""
        # The SDK takes a higher error byte for noise.
        if not 0 <= bits <= 0x7F:
            raise ConfigError(f"error bits {bits} cannot be sent: give 0 to 127")
        with self._lock:
            self._errors[id] = bits

    def restore(self, id: int) -> None:
        """Take back `silence` and `set_error` for a servo."""
        with self._lock:
            self._silent.discard(id)
            self._errors.pop(id, None)

    def corrupt(self, count: int = 1) -> None:
        """Send the next ``count`` answers with a wrong checksum."""
        with self._lock:
            self._corrupt += _at_least_one(count)

    def delay(self, seconds: float, count: int = 1) -> None:
        """Send the next ``count`` answers late."""
        if seconds < 0:
            raise ConfigError(f"a reply cannot be {seconds} s late: give 0 or more")
        with self._lock:
            self._delays += [seconds] * _at_least_one(count)

    def is_silent(self, id: int) -> bool:
        """Return whether a servo is silenced."""
        with self._lock:
            silent = id in self._silent
        if silent:
            logger.warning("fault: servo %d is silent", id)
        return silent

    def error(self, id: int) -> int:
        """Return the error byte of a servo."""
        with self._lock:
            return self._errors.get(id, 0)

    def spoil(self, reply: bytes) -> bytes:
        """Return a frame as it goes out: with a wrong checksum if one is due."""
        with self._lock:
            if not self._corrupt:
                return reply
            self._corrupt -= 1
        logger.warning("fault: wrong checksum in the answer of servo %d", reply[2])
        return reply[:-1] + bytes([reply[-1] ^ 0x55])

    def next_delay(self) -> float:
        """Return how late the next answer goes out, in seconds."""
        with self._lock:
            seconds = self._delays.pop(0) if self._delays else 0.0
        if seconds:
            logger.warning("fault: answer %.3f s late", seconds)
        return seconds


def _at_least_one(count: int) -> int:
    if count < 1:
        raise ConfigError(f"a fault of {count} answers would do nothing: give 1 or more")
    return count


class ServoBus:
    """Servos of different ids on one wire. May be used from any thread.

    Attributes:
        observer: is called with every instruction before it is carried out, from the thread that serves the bus. It
            may call `positions`.
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
        """Return the present positions in encoder steps, in the order of the servos."""
        with self._lock:
            return [servo.position for servo in self.servos]

    def read(self, index: int, register: Register) -> int:
        """Return a two-byte register of the servo at ``index``."""
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

        Servos that are set to another baud rate than the host's do not hear it; None reaches all.
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
            # Each id that is present answers, in the order asked for.
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
        # Servos answer a broadcast only if it is a ping.
        return replies if packet.id != BROADCAST or instruction is Instruction.PING else []

    def _status(self, id: int, data: bytes) -> bytes:
        return encode_packet(id, self.faults.error(id), data)


def _baud_rate(servo: Servo) -> int | None:
    code = servo.memory.byte(Register.BAUD_RATE)
    return BAUD_RATES[code] if code < len(BAUD_RATES) else None
