"""Faults of a servo bus, switched on and off while a program runs against it.

Knows what can go wrong, not how a bus works. Each fault that bites is logged by name. Methods may be called from any
thread.
"""

from __future__ import annotations

import logging
import threading

from lerobot_policy_vla0.errors import ConfigError

logger = logging.getLogger(__name__)


class BusFaults:
    """What is wrong with a bus at the moment; nothing, to begin with."""

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
        """Set the error byte of a servo's answers (1 voltage, 4 overheat, 32 overload), until `restore`.

        Raises:
            ConfigError: if ``bits`` is not in 0 to 127: the SDK takes a higher one for noise.
        """
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
        """Send the next ``count`` answers late.

        Raises:
            ConfigError: if ``seconds`` is negative or ``count`` is not positive.
        """
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
