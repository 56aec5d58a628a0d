"""Record the scripted experts into one LeRobotDataset, in the layout of `HuggingFaceVLA/libero`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from episodes import Placed
from simulation import IMAGES
from tasks import TASKS
from workers import Job, play_all

from lerobot_policy_vla0.tools import recorder
from lerobot_policy_vla0.tools.demonstrations import PER_EPISODE, RecordingError

#: What `HuggingFaceVLA/libero` has, although LIBERO acts at 20 Hz. LeRobot merges only data sets with equal numbers,
#: and uses them for time stamps alone: row t + 1 is the next action either way.
FPS = 10


def features(image_size: int, video: bool) -> dict[str, dict[str, Any]]:
    """Return the features of the data set, named as `lerobot-eval --env.type=libero` names them."""
    image = {
        "dtype": "video" if video else "image",
        "shape": (image_size, image_size, 3),
        "names": ["height", "width", "channel"],
    }
    state = ["x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "finger_1", "finger_2"]
    action = ["x", "y", "z", "turn_x", "turn_y", "turn_z", "gripper"]
    return {
        **dict.fromkeys(IMAGES, image),
        "observation.state": {"dtype": "float32", "shape": (8,), "names": state},
        "action": {"dtype": "float32", "shape": (7,), "names": action},
    }


def record(settings: dict[str, Any], root: Path, repo_id: str, workers: int) -> Path:
    """Record, or reuse, the data set described by `settings` at `root`.

    Args:
        settings: `tasks` (names in `TASKS`), `episodes` (successful ones per task), `seed` (the first one of every
            task), `image_size` (pixels), `noise` (action units), `video` (whether pictures are stored as video).
        root: Folder of the data set.
        repo_id: Name stored with the data set; nothing is uploaded.
        workers: Number of rendering processes.

    Returns:
        `root`.

    Raises:
        RecordingError: `root` or its staging folder holds something else; names both values of each difference.
    """
    per_episode = {name: settings[name] for name in PER_EPISODE}
    return recorder.record(
        settings,
        root,
        repo_id,
        kind=Placed,
        play=lambda todo: play_all([Job(*key, **per_episode, path=path) for key, path in todo], workers),
        fps=FPS,
        features=features(settings["image_size"], settings["video"]),
        robot_type="panda",
        use_videos=settings["video"],
    )


def known_tasks(names: list[str]) -> list[str]:
    """Return the names without repetition; raise RecordingError naming those without an expert."""
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        raise RecordingError(f"no expert for {', '.join(unknown)}; there are: {', '.join(TASKS)}")
    return list(dict.fromkeys(names))
