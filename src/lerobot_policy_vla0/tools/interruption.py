"""Commands that serve wait here for Ctrl-C or a termination."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def until_interrupted() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C or a termination sets. The earlier signal handlers come back afterwards."""
    done = threading.Event()

    def stop(*_: Any) -> None:
        done.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield done
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
