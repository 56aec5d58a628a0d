"""The wire format of Feetech's protocol 0: frames, checksums, and a parser that finds frames in a stream of bytes.

::

    instruction   FF FF  id  length  instruction  parameters...  checksum
    status        FF FF  id  length  error        data...        checksum

``length`` counts what follows it; the checksum is the inverted low byte of the sum from ``id`` on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

HEADER = b"\xff\xff"
BROADCAST = 0xFE


class Instruction(IntEnum):
    """What a host can ask for."""

    PING = 0x01
    READ = 0x02
    WRITE = 0x03
    REG_WRITE = 0x04
    ACTION = 0x05
    SYNC_READ = 0x82
    SYNC_WRITE = 0x83


@dataclass(frozen=True)
class Packet:
    """A frame that was received whole."""

    id: int
    code: int  # instruction or error byte
    parameters: bytes


def checksum(body: bytes) -> int:
    """Return the checksum of a frame's bytes from the id to the last parameter.

    >>> hex(checksum(bytes([1, 2, 1])))  # ping of servo 1
    '0xfb'
    """
    return ~sum(body) & 0xFF


def encode_packet(id: int, code: int, parameters: bytes = b"") -> bytes:
    """Return a frame. The inverse of `PacketParser`.

    >>> encode_packet(1, Instruction.PING).hex(" ")
    'ff ff 01 02 01 fb'
    """
    body = bytes([id, len(parameters) + 2, code]) + parameters
    return HEADER + body + bytes([checksum(body)])


class PacketParser:
    """Finds frames in a stream that arrives in pieces. Noise and frames with a wrong checksum are skipped."""

    def __init__(self) -> None:
        self.rejected = 0  # frames that had a wrong checksum
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Packet]:
        """Take bytes and yield the frames they complete."""
        self._buffer += data
        while True:
            start = self._buffer.find(HEADER)
            if start < 0:
                # A header may be split between this piece and the next one.
                del self._buffer[: -1 if self._buffer.endswith(b"\xff") else None]
                return
            del self._buffer[:start]
            if len(self._buffer) < 4:
                return
            # In a frame, no id is FF and no length is below 2.
            if self._buffer[2] == 0xFF or self._buffer[3] < 2:
                del self._buffer[0]
                continue
            end = self._buffer[3] + 4
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[2 : end - 1])
            if self._buffer[end - 1] == checksum(body):
                del self._buffer[:end]
                yield Packet(body[0], body[2], body[3:])
            else:
                self.rejected += 1
                del self._buffer[0]
