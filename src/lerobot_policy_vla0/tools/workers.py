"""Workers: processes that do not outlive the one that started them, nor leave processes of their own behind.

A worker leads a process group, and reads from a pipe whose other end only its parent holds. Nothing is ever written to
it: it closes when the parent is gone, however it went, and then the whole group ends. Knows nothing about what
workers do.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass(frozen=True)
class Worker:
    """A running worker, as its parent sees it.

    Attributes:
        process: the worker; its ``returncode`` is known after `end`.
        lifeline: the pipe's writing end.
    """

    process: subprocess.Popen[bytes]
    lifeline: int

    def has_ended(self) -> bool:
        """Tell whether it has ended, and leave it to be waited for: until then nobody else gets its process id."""
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def end(self) -> int:
        """End it with everything it started, and return its status."""
        os.close(self.lifeline)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()


def start_worker(
    command: Sequence[str], arguments: Sequence[str], output: IO[bytes], environment: Mapping[str, str]
) -> Worker:
    """Start ``command FD arguments...``; the program has to call `end_with_parent` with FD.

    Args:
        command: the program.
        arguments: that follow the descriptor.
        output: where it writes, errors included.
        environment: all of it.
    """
    reading, lifeline = os.pipe()  # neither end is inherited unless named below
    try:
        process = subprocess.Popen(
            [*command, str(reading), *arguments],
            stdin=subprocess.DEVNULL,  # who asks a question gets an end of file, not our terminal
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=(reading,),
            start_new_session=True,
        )
    except BaseException:
        os.close(lifeline)
        raise
    finally:
        os.close(reading)
    return Worker(process, lifeline)


def end_with_parent(descriptor: int) -> None:
    """Kill this process's group as soon as the pipe closes. The process has to lead a group of its own."""

    def watch() -> None:
        os.read(descriptor, 1)
        os.killpg(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def last_lines(log: Path, count: int) -> list[str]:
    """Return the last lines of a log that are not blank; progress bars put carriage returns between theirs."""
    lines = log.read_text(errors="replace").replace("\r", "\n").splitlines()
    return [line for line in lines if line.strip()][-count:]
