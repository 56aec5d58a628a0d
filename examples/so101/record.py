"""Record the scripted expert as a LeRobot data set, in the layout of `lerobot-record --robot.type=sim_so_follower`.

    python examples/so101/record.py --episodes 600 --noise 1.5 --root outputs/so101/lift/dataset --repo-id local/so101

It can be killed at any time and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import atexit
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from episodes import TASK, run_expert
from so101_nexus.config import SO101_JOINT_NAMES

from lerobot_policy_vla0.tools import recorder
from lerobot_policy_vla0.tools.demonstrations import (
    add_recording_arguments,
    exit_status,
    recording_settings,
)
from lerobot_policy_vla0.tools.recorder import Result
from lerobot_policy_vla0.tools.so101.arm import SimulatedArm
from lerobot_policy_vla0.tools.so101.scene import CAMERAS
from lerobot_policy_vla0.tools.workers import in_processes

FPS = 30

_arm: SimulatedArm | None = None  # a process's own, kept from episode to episode


def features(image_size: int, video: bool) -> dict[str, dict[str, Any]]:
    """Return the features of the data set, as `lerobot-record` names them."""
    joints = {"dtype": "float32", "shape": (6,), "names": [f"{joint}.pos" for joint in SO101_JOINT_NAMES]}
    picture = {
        "dtype": "video" if video else "image",
        "shape": (image_size, image_size, 3),
        "names": ["height", "width", "channels"],
    }
    pictures = dict.fromkeys((f"observation.images.{name}" for name in CAMERAS), picture)
    return {**pictures, "observation.state": joints, "action": joints}


def play(seed: int, image_size: int | None, noise: float, path: Path | None) -> Result:
    """Play one episode, without cameras if their size is None, and write it, if it has a path."""
    global _arm
    if _arm is None:
        _arm = SimulatedArm(image_size, FPS)
        _arm.observe()
        atexit.register(_arm.close)  # after the first picture: MuJoCo registers the end of EGL with it
    episode = run_expert(_arm, seed, noise)
    if path is not None:
        recorder.write_episode(path, episode)
    return episode.result


def play_all(
    todo: list[tuple[int, Path | None]], image_size: int | None, noise: float, workers: int
) -> Iterator[Result]:
    """Play the episodes in processes and yield each result as soon as it is there."""
    calls = [(seed, image_size, noise, path) for seed, path in todo]
    return (result for _, result in in_processes(play, calls, workers))


def record(settings: dict[str, Any], root: Path, repo_id: str, workers: int) -> Path:
    """Record, or reuse, the data set described by `settings` at `root`; see `recorder.record`."""

    def play_missing(todo: list[tuple[recorder.Key, Path]]) -> Iterator[Result]:
        jobs: list[tuple[int, Path | None]] = [(key[1], path) for key, path in todo]
        return play_all(jobs, settings["image_size"], settings["noise"], workers)

    return recorder.record(
        settings,
        root,
        repo_id,
        kind=Result,
        play=play_missing,
        fps=FPS,
        features=features(settings["image_size"], settings["video"]),
        robot_type="sim_so_follower",
        use_videos=settings["video"],
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add_recording_arguments(
        parser,
        episodes=600,
        image_size=128,
        image_help="edge of both pictures, pixels, as in evaluation",
        noise_help="std of the disturbance of the joints' goals, degrees",
    )
    parser.add_argument(
        "--video", action="store_true", help="store video: smaller, faster to read, not exact"
    )
    parser.set_defaults(task=[TASK])
    options = parser.parse_args(arguments)
    settings = {**recording_settings(parser, options), "video": options.video}
    return exit_status(lambda: record(settings, options.root, options.repo_id, options.workers))


if __name__ == "__main__":
    sys.exit(main())
