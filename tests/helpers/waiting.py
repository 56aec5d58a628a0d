"""What tests need to get along with a busy machine, and with other tests on it: time, and ports."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable
from pathlib import Path

#: Seconds until something counts as hanging: a machine with twenty things to do has taken five minutes for imports.
LONG = 900.0


def wait_until(condition: Callable[[], object], why: Callable[[], str] = lambda: "it never happened") -> None:
    """Wait until a condition holds.

    Args:
        condition: asked again and again.
        why: says what there is to say if it never holds.

    Raises:
        AssertionError: if it does not hold after `LONG` seconds.
    """
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, why()
        time.sleep(0.05)


def has_ended(pid: int) -> bool:
    """Tell whether a process is gone, or only waits for somebody to ask how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def free_port() -> int:
    """Return a TCP port that nobody listens on, nor is given by the kernel before it is used: those are above 32767."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        return port
