"""The folder of a data set that is being recorded: it goes on where it stopped, and is never mixed with another.

For the recorders in ``examples/``. An episode is staged in ``<root>.staging`` until the whole data set is written.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lerobot_policy_vla0.errors import Vla0Error

#: In the data set's folder and in the staging folder: the settings, and in the first one the seeds of the episodes.
SETTINGS_FILE = "recording.json"
#: What an episode depends on beside its task and seed; the other settings only choose among episodes.
PER_EPISODE = ("image_size", "noise")


class RecordingError(Vla0Error):
    """The recording cannot go on; the message says what to change."""


def open_recording(root: Path, settings: Mapping[str, Any]) -> Path | None:
    """Return the staging folder of the recording that ``settings`` describe; None if it is complete, and reused.

    Raises:
        RecordingError: ``root`` or its staging folder holds something else; names both values of each difference.
    """
    if root.exists():
        file = root / SETTINGS_FILE
        if not file.is_file():
            raise RecordingError(
                f"{root} exists and has no {SETTINGS_FILE}: not recorded here. Choose another --root."
            )
        _check_same(json.loads(file.read_text())["settings"], settings, root)
        print(f"reusing {root}: it was recorded with the same settings")
        return None
    staging = root.with_name(root.name + ".staging")
    staging.mkdir(parents=True, exist_ok=True)
    per_episode = {name: settings[name] for name in PER_EPISODE}
    file = staging / SETTINGS_FILE
    if file.is_file():
        _check_same(json.loads(file.read_text()), per_episode, staging)
    else:
        file.write_text(json.dumps(per_episode))
    return staging


def _check_same(found: Mapping[str, Any], asked: Mapping[str, Any], where: Path) -> None:
    differences = [
        f"{name}: recorded {found.get(name)!r}, asked for {asked[name]!r}"
        for name in asked
        if found.get(name) != asked[name]
    ]
    if differences:
        raise RecordingError(
            f"{where} was recorded with other settings ({'; '.join(differences)}). "
            "Choose another --root, or repeat the recorded settings to reuse it; nothing was changed."
        )


def add_recording_arguments(
    parser: argparse.ArgumentParser,
    *,
    episodes: int,
    image_size: int,
    image_help: str,
    noise_help: str = "std of the disturbance of the expert's motion, action units",
) -> None:
    """Add what all recorders take, with these defaults."""
    add = parser.add_argument
    add("--episodes", type=int, default=episodes, help="successful episodes per task")
    add("--root", type=Path, required=True, help="folder of the data set")
    add("--repo-id", required=True, help="name of the data set, e.g. local/reach")
    add("--workers", type=int, default=2, help="rendering processes; one per core is best")
    add("--image-size", type=int, default=image_size, help=image_help)
    add("--seed", type=int, default=100_000, help="first seed; evaluation must use others")
    add("--noise", type=float, default=0.0, help=noise_help)


def exit_status(work: Callable[[], object]) -> int:
    """Do a command's work and return its exit status; a `RecordingError` is one line on stderr, and status 2."""
    try:
        work()
    except RecordingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def recording_settings(parser: argparse.ArgumentParser, options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that the data set depends on, from parsed options; ends with status 2 if they are bad."""
    if options.episodes < 1 or options.workers < 1 or options.noise < 0:
        parser.error("--episodes and --workers start at 1, --noise at 0")
    return {
        "tasks": options.task,
        "episodes": options.episodes,
        "seed": options.seed,
        "image_size": options.image_size,
        "noise": options.noise,
    }
