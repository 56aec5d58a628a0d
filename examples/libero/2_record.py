"""Step 2: record demonstrations of the scripted experts as a LeRobot data set.

    python examples/libero/2_record.py --task turn_on_the_stove --episodes 60 --image-size 128 --noise 0.3 \
        --root outputs/libero/stove --repo-id local/libero_stove

It can be killed at any time and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import recording


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--task", action="append", required=True, help="LIBERO's name of a task; may be repeated"
    )
    parser.add_argument("--episodes", type=int, default=60, help="successful episodes per task")
    parser.add_argument(
        "--image-size", type=int, default=256, help="edge of both pictures, pixels, as in evaluation"
    )
    parser.add_argument("--seed", type=int, default=100_000, help="seed of the first placement of every task")
    parser.add_argument(
        "--noise", type=float, default=0.0, help="std of the disturbance of the hand, action units"
    )
    parser.add_argument(
        "--video", action="store_true", help="store video: smaller, faster to read, not exact"
    )
    parser.add_argument("--workers", type=int, default=2, help="rendering processes; one per core is best")
    parser.add_argument("--root", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--repo-id", required=True, help="name of the data set, e.g. local/libero_stove")
    options = parser.parse_args(arguments)
    try:
        settings = {
            "tasks": recording.known_tasks(options.task),
            "episodes": options.episodes,
            "seed": options.seed,
            "image_size": options.image_size,
            "noise": options.noise,
            "video": options.video,
        }
        recording.record(settings, options.root, options.repo_id, options.workers)
    except recording.RecordingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
