"""The options of LeRobot's commands as a file that a shell script sources.

Knows bash's spelling; nothing about what the options mean.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.so100_emulator.emulator import SO100Emulator

_MARK = "# Written by vla0 emulate-so100, and gone when it ends."


def bash_arrays(emulator: SO100Emulator) -> str:
    """Return the arrays ``ROBOT`` and ``TELEOP``: the options of the first follower and of the first leader."""
    named = {
        "ROBOT": emulator.robot_options() if emulator.followers else [],
        "TELEOP": emulator.teleop_options() if emulator.leaders else [],
    }
    lines = [_MARK]
    for name, options in named.items():
        lines += [f"{name}=(", *(f"  {shlex.quote(option)}" for option in options), ")"]
    return "\n".join(lines) + "\n"


@contextmanager
def options_file(emulator: SO100Emulator, path: Path) -> Iterator[None]:
    """Keep `bash_arrays` in a file while the context lasts.

    Raises:
        ConfigError: if there is such a file that an emulator did not write.
    """
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(_MARK):
        raise ConfigError(f"{path} exists and is not an emulator's: give another file, or move it away")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = bash_arrays(emulator)
    path.write_text(text, encoding="utf-8")
    try:
        yield
    finally:
        if (
            path.exists() and path.read_text(encoding="utf-8") == text
        ):  # not that of an emulator started since
            path.unlink()
