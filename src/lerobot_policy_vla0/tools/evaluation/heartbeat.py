"""Notices a worker that lives and makes no progress, such as one whose simulator hangs in native code.

The worker notes in a small file what it begins and ends: each reset, each step, each query of the policy. The notes
come from the code that steps the environments (`watched`), so no thread can go on writing them while that code hangs.
The parent reads the file, by its own clock, so the worker's threads need not run for a hang to be noticed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

FILE_NAME = "heartbeat.json"

#: Seconds without a note after which a worker counts as hanging, unless ``--stall-seconds`` says otherwise.
STALL_SECONDS = 600.0
#: The same for `SLOW` activities: a policy may have to be downloaded, and many videos be written.
SLOW_SECONDS = 3600.0

_LENGTH = 200  # bytes of a note; every note overwrites the one before it


class Activity(StrEnum):
    """What a worker does until its next note. The values complete a sentence: it hung while ..."""

    STARTING = "starting"  # imports
    BUILDING = "building the environments"
    LOADING = "loading the policy"
    RESETTING = "resetting the environments"
    ACTING = "computing an action"  # policy and processors
    STEPPING = "stepping the environments"
    RENDERING = "rendering a video frame"
    BETWEEN = "writing videos"  # between two episodes, or after the last
    EXITING = "exiting"  # the result is written
    UNWATCHED = "running an environment from the Hub"  # LeRobot builds it in a way that cannot be watched


#: Activities that may take `SLOW_SECONDS`.
SLOW = frozenset({Activity.STARTING, Activity.LOADING, Activity.BETWEEN})


@dataclass(frozen=True)
class Note:
    """What a worker last said about itself."""

    activity: Activity = Activity.STARTING
    step: int = 0  # steps since the last reset
    played: int = 0  # finished episodes
    solved: int = 0  # of them


class Heartbeat:
    """The worker's end: writes notes to a file."""

    def __init__(self, path: Path) -> None:
        self.note = Note()
        self._count = 0
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)

    def beat(self, activity: Activity, *, step: int = 0, played: int = 0, solved: int = 0) -> None:
        """Note what begins now."""
        self.note = Note(activity, step, played, solved)
        self._count += 1
        text = json.dumps({"beat": self._count, **asdict(self.note)})
        os.pwrite(self._file, text.ljust(_LENGTH - 1).encode() + b"\n", 0)

    def again(self, activity: Activity) -> None:
        """Note that something else begins in the same step."""
        counts = asdict(self.note)
        self.beat(**{**counts, "activity": activity})

    @contextmanager
    def during(self, activity: Activity) -> Iterator[None]:
        """Note that something begins, and when it ends, that what was done before goes on."""
        before = self.note.activity
        self.again(activity)
        yield
        self.again(before)


class StallWatch:
    """The parent's end: reads a worker's notes and tells whether it hangs.

    Args:
        path: the worker's file, which need not exist yet.
        stall_seconds: see `STALL_SECONDS`.
        clock: seconds, for tests.
    """

    def __init__(self, path: Path, stall_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.note = Note()
        self._path, self._seconds, self._clock = path, stall_seconds, clock
        self._text, self._since = b"", clock()
        self.hung = False  # what `hangs` said last

    @property
    def limit(self) -> float:
        """Seconds that may pass before the worker's next note."""
        if self.note.activity is Activity.UNWATCHED:
            return float("inf")
        return max(self._seconds, SLOW_SECONDS) if self.note.activity in SLOW else self._seconds

    def hangs(self) -> bool:
        """Read the file and tell whether the last note is too old."""
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            text = b""
        now = self._clock()
        if text != self._text:
            self._text, self._since = text, now
            self.note = _read(text) or self.note
        self.hung = now - self._since > self.limit
        return self.hung

    def describe(self) -> str:
        """Return how it hung, as the end of a sentence about a worker."""
        note = self.note
        place = f" in step {note.step} after {note.played} finished episodes" if note.step else ""
        return f"hung while {note.activity}{place}: no progress for {self.limit:g} s"


def _read(text: bytes) -> Note | None:
    """Return the note in a file; None if it was read while it was being written."""
    try:
        raw = json.loads(text)
        return Note(Activity(raw["activity"]), raw["step"], raw["played"], raw["solved"])
    except (ValueError, KeyError, TypeError):
        return None
