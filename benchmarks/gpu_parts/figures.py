"""The figures of one stage: all are named at the start, and the file is written again with every one measured."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

NOT_MEASURED = "not measured: "
#: What stands in the file for a figure whose turn has not come.
PENDING = NOT_MEASURED + "the stage ended before"


class Figures:
    """Collects figures; one that fails is written down with its reason, and the next one is measured.

    Args:
        path: the JSON file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        #: Names of figures that raised an error.
        self.failed: list[str] = []

    def plan(self, names: Iterable[str]) -> None:
        """Name figures that will come, so that a stage that is cut off says what it did not get to."""
        self.values |= dict.fromkeys(names, PENDING)
        self._write()

    def put(self, name: str, value: Any) -> None:
        """Keep a figure."""
        self.values[name] = value
        print(f"  {name}: {value}", flush=True)
        self._write()

    def skip(self, name: str, reason: str) -> None:
        """Say why a figure is not measured here."""
        self.put(name, NOT_MEASURED + reason)

    def measure(self, name: str, function: Callable[[], Any]) -> None:
        """Keep what a function returns, or the error that it raises."""
        try:
            value = function()
        except Exception as error:
            traceback.print_exc()
            self.fail(name, f"{type(error).__name__}: {_first_line(error)}")
        else:
            self.put(name, value)

    def fail(self, name: str, reason: str) -> None:
        """Say what went wrong with a figure."""
        self.failed.append(name)
        self.skip(name, reason)

    def _write(self) -> None:
        # Whoever kills this process may do so in the middle of writing.
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps({"figures": self.values, "failed": self.failed}))
        os.replace(fresh, self.path)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
