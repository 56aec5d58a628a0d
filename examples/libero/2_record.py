"""Step 2: record demonstrations of the scripted experts as a LeRobot data set.

    python examples/libero/2_record.py --task turn_on_the_stove --episodes 60 --image-size 128 --noise 0.3 \
        --root outputs/libero/stove --repo-id local/libero_stove

It can be killed at any time and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys

import recording

from lerobot_policy_vla0.tools.demonstrations import (
    add_recording_arguments,
    exit_status,
    recording_settings,
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--task", action="append", required=True, help="LIBERO's name of a task; may be repeated"
    )
    add_recording_arguments(
        parser, episodes=60, image_size=256, image_help="edge of both pictures, pixels, as in evaluation"
    )
    parser.add_argument(
        "--video", action="store_true", help="store video: smaller, faster to read, not exact"
    )
    options = parser.parse_args(arguments)

    def record() -> None:
        settings = {
            **recording_settings(parser, options),
            "tasks": recording.known_tasks(options.task),
            "video": options.video,
        }
        recording.record(settings, options.root, options.repo_id, options.workers)

    return exit_status(record)


if __name__ == "__main__":
    sys.exit(main())
