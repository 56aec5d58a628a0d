"""Runs worker processes that end, with everything they started, when the process that started them ends.

A worker leads a process group of its own and reads from a pipe. Only the parent holds the other end, and it writes
nothing to it: when the parent ends, for whatever reason, the pipe closes, and the worker kills its group.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

POLL = 0.1  # seconds between two looks at a worker


def run_worker(
    command: Sequence[str],
    arguments: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    stop: threading.Event,
    give_up: Callable[[], bool] = lambda: False,
) -> int:
    """Run ``command FD arguments...`` until it, ``stop`` or ``give_up`` ends it; nothing that it started is left.

    The program has to call `end_with_parent` with FD. Its output and errors are added to ``log``, and ``environment``
    is all of its environment variables. ``give_up`` is asked every `POLL` seconds.

    Returns:
        The exit status, or minus the number of the signal that ended it.
    """
    reading, lifeline = os.pipe()  # a child inherits neither end unless pass_fds names it
    try:
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*command, str(reading), *arguments],
                stdin=subprocess.DEVNULL,  # a worker that asks a question reads an end of file, not our terminal
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
    try:
        # It stays a zombie until the last line, so no other process gets its id before the group is killed.
        look = os.WEXITED | os.WNOWAIT | os.WNOHANG
        while os.waitid(os.P_PID, process.pid, look) is None and not give_up() and not stop.wait(POLL):
            pass
    finally:
        os.close(lifeline)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    return status


def run_in_places[Job, Place, Result](
    function: Callable[[Job, Place], Result],
    jobs: Sequence[Job],
    places: Sequence[Place],
    stop: threading.Event,
) -> list[Result]:
    """Call ``function(job, place)`` for every job, as many at a time as there are places, and one at a time in each.

    An exception, Ctrl-C included, sets ``stop``, on which the running calls have to return; the others never begin.
    """
    free: SimpleQueue[Place] = SimpleQueue()
    for place in places:
        free.put(place)

    def call(job: Job) -> Result:
        place = free.get()
        try:
            return function(job, place)
        finally:
            free.put(place)

    with ThreadPoolExecutor(len(places)) as pool:
        try:
            futures = [pool.submit(call, job) for job in jobs]
            for future in as_completed(futures):
                future.result()  # raises the first exception there is
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return [future.result() for future in futures]


def end_with_parent(descriptor: int) -> None:
    """Kill this process's group as soon as the pipe closes. The process has to lead a group of its own."""

    def watch() -> None:
        os.read(descriptor, 1)
        os.killpg(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def in_processes[Result](
    function: Callable[..., Result], calls: Iterable[tuple[Any, ...]], n_processes: int
) -> Iterator[tuple[int, Result]]:
    """Call ``function(*call)`` for every call in processes; yield each one's number and result when it is there.

    The processes end when this one is killed. An exception, Ctrl-C included, does not wait for running calls, and the
    others never begin.
    """
    # Spawned, not forked: an OpenGL context does not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(n_processes, mp_context=context, initializer=_follow_parent)
    try:
        numbers = {pool.submit(function, *call): number for number, call in enumerate(calls)}
        for done in as_completed(numbers):
            yield numbers[done], done.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _follow_parent() -> None:
    """End this process when its parent ends: a pool's process would otherwise wait for work forever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def last_lines(log: Path, count: int) -> list[str]:
    """Return the last lines of a log that are not blank. Progress bars separate their lines by carriage returns."""
    lines = log.read_text(errors="replace").replace("\r", "\n").splitlines()
    return [line for line in lines if line.strip()][-count:]
