"""Record scripted Meta-World experts into one LeRobotDataset.

    python examples/metaworld/record.py --task button-press-topdown-v3 --episodes 100 \
        --root outputs/demo/button-press-topdown-v3/dataset --repo-id local/button-press-topdown-v3

`--task` may be repeated, or name one of LeRobot's groups (easy, medium, hard, very_hard): each task gets as many
episodes, with its own instruction.

It can be killed at any time and goes on where it stopped. An existing data set is reused if it was recorded with the
same settings, and never overwritten.
"""

from __future__ import annotations

import argparse
import atexit
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rendering

rendering.set_rendering_defaults()  # before experts imports MuJoCo, here and in every spawned worker

import experts  # noqa: E402
from lerobot.envs.metaworld import DIFFICULTY_TO_TASKS, TASK_DESCRIPTIONS  # noqa: E402

from lerobot_policy_vla0.tools import recorder  # noqa: E402
from lerobot_policy_vla0.tools.demonstrations import (  # noqa: E402
    RecordingError,
    add_recording_arguments,
    exit_status,
    recording_settings,
)
from lerobot_policy_vla0.tools.recorder import Result  # noqa: E402
from lerobot_policy_vla0.tools.workers import in_processes  # noqa: E402

_env: experts.RawEnv | None = (
    None  # a process's own, kept from episode to episode: building one takes a second
)


def features(image_size: int) -> dict[str, dict[str, Any]]:
    """Return the LeRobotDataset features, named as `lerobot-eval --env.type=metaworld` names them."""
    return {
        # Video, in LeRobot's default encoding, and not PNG: training draws frames at random with a chunk of
        # actions each, and one such sample takes 3.8 ms of CPU from video but 16 ms from PNG, because LeRobot
        # 0.6.1 then decodes the images of all the chunk's rows to get at their actions. It is also 15 times
        # smaller (28 MB instead of 436 MB for 110 episodes), at a mean error of 2.7 of 255 per pixel.
        "observation.image": {
            "dtype": "video",
            "shape": (image_size, image_size, 3),
            "names": ["height", "width", "channels"],
        },
        "observation.state": {
            "dtype": "float32",
            "shape": (4,),
            "names": ["gripper_x", "gripper_y", "gripper_z", "gripper_opening"],
        },
        "action": {"dtype": "float32", "shape": (4,), "names": ["dx", "dy", "dz", "gripper"]},
    }


def play(task: str, seed: int, image_size: int, noise: float, path: Path) -> Result:
    """Play one episode and write it."""
    global _env
    is_new = _env is None or _env.task != task
    if is_new:
        if _env is not None:
            _env.close()
        _env = experts.RawEnv(task)
    episode = experts.run_expert(_env, seed, image_size, noise)
    if is_new:
        atexit.register(_env.close)  # after the first frame: MuJoCo registers the end of EGL with it
    recorder.write_episode(path, episode)
    return episode.result


def record(settings: dict[str, Any], root: Path, repo_id: str, workers: int) -> Path:
    """Record, or reuse, the data set described by `settings` at `root`; see `recorder.record`.

    Args:
        settings: `tasks`, `episodes` (per task), `seed`, `image_size` (pixels), `noise` (action units).
        root: Folder of the data set.
        repo_id: Name stored with the data set; nothing is uploaded.
        workers: Number of rendering processes.
    """

    def play_all(todo: list[tuple[recorder.Key, Path]]) -> Iterator[Result]:
        calls = [(*key, settings["image_size"], settings["noise"], path) for key, path in todo]
        return (result for _, result in in_processes(play, calls, workers))

    return recorder.record(
        settings,
        root,
        repo_id,
        kind=Result,
        play=play_all,
        fps=experts.FPS,
        features=features(settings["image_size"]),
        use_videos=True,
        streaming_encoding=True,
        # LeRobot's encoder DROPS frames when its queue is full; one that holds an episode never is.
        encoder_queue_maxsize=experts.MAX_EPISODE_STEPS + 1,
    )


def check_instructions(tasks: list[str]) -> None:
    """Raise RecordingError naming the tasks that share an instruction: a policy could not tell them apart."""
    by_instruction: dict[str, list[str]] = {}
    for task in tasks:
        by_instruction.setdefault(TASK_DESCRIPTIONS[task], []).append(task)
    for instruction, same in by_instruction.items():
        if len(same) > 1:
            raise RecordingError(
                f"{' and '.join(same)} have the same instruction, {instruction!r}: one policy could not know which is "
                "meant. Record them into data sets of their own."
            )


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--task",
        action="append",
        required=True,
        help="task name, e.g. reach-v3, or a group of LeRobot's (easy, medium, hard, very_hard); may be repeated",
    )
    add_recording_arguments(
        parser, episodes=100, image_size=240, image_help="edge of the stored frames, pixels (of 480)"
    )
    options = parser.parse_args(arguments)
    named = [task for name in options.task for task in DIFFICULTY_TO_TASKS.get(name, [name])]
    options.task = list(dict.fromkeys(experts.plain_task(task) for task in named))
    unknown = [task for task in options.task if task not in TASK_DESCRIPTIONS]
    if unknown:
        parser.error(f"unknown --task {', '.join(unknown)}; known: {', '.join(sorted(TASK_DESCRIPTIONS))}")
    if not 1 <= options.image_size <= 480:
        parser.error(f"--image-size {options.image_size} is outside 1 to 480 (LeRobot renders 480x480)")
    options.settings = recording_settings(parser, options)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse_arguments(arguments)

    def work() -> None:
        check_instructions(options.task)
        record(options.settings, options.root, options.repo_id, options.workers)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
