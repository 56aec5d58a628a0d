"""Record the scripted experts into one LeRobotDataset, in the layout of `HuggingFaceVLA/libero`.

Worker processes play and render; every finished episode is one file in `<root>.staging`, so a killed recording goes on
where it stopped. The data set is then written in order of task and seed and moved into place in one step: neither the
number of workers nor an interruption can be seen in it.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import av
import datasets
import numpy as np
from episodes import read_episode, read_result
from simulation import IMAGES
from tasks import TASKS
from tqdm import tqdm
from workers import Job, play_all

from lerobot_policy_vla0.tools.demonstrations import (
    PER_EPISODE,
    SETTINGS_FILE,
    RecordingError,
    open_recording,
)

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
        root: Folder of the data set; `<root>.staging` and `<root>.partial` are used on the way.
        repo_id: Name stored with the data set; nothing is uploaded.
        workers: Number of rendering processes.

    Returns:
        `root`.

    Raises:
        RecordingError: `root` or its staging folder holds something else; names both values of each difference.
    """
    began = time.perf_counter()
    staging = open_recording(root, settings)
    if staging is None:
        return root
    per_episode = {name: settings[name] for name in PER_EPISODE}

    # 1. Play until every task has its successes; a failure is replaced by the task's next seed.
    successes = {
        (path.parent.name, int(path.stem)): read_result(path).success for path in staging.glob("*/*.npz")
    }
    with tqdm(total=len(settings["tasks"]) * settings["episodes"], unit="episode", desc="recording") as bar:
        while missing := [key for key in wanted(settings, successes) if key not in successes]:
            bar.update(sum(successes.get(key, False) for key in wanted(settings, successes)) - bar.n)
            jobs = [Job(*key, **per_episode, path=episode_path(staging, *key)) for key in missing]
            for result in play_all(jobs, workers):
                successes[result.task, result.seed] = result.success
                bar.update(result.success)
                if not result.success:
                    reason = (
                        "an object was thrown away at the start" if result.thrown else "the expert failed"
                    )
                    bar.write(f"{reason}: {result.task}, seed {result.seed}; taking the next seed")

    # 2. Write them in order.
    kept = [key for key in wanted(settings, successes) if successes[key]]
    partial = root.with_name(root.name + ".partial")
    if partial.exists():  # left by a killed recording; everything in it comes from the staged files
        shutil.rmtree(partial)
    write_dataset([episode_path(staging, *key) for key in kept], partial, repo_id, settings)
    (partial / SETTINGS_FILE).write_text(
        json.dumps({"settings": settings, "episodes": kept}, indent=1) + "\n"
    )
    partial.rename(root)
    shutil.rmtree(staging)
    failures = len(wanted(settings, successes)) - len(kept)
    print(
        f"recorded {len(kept)} episodes in {root} in {time.perf_counter() - began:.0f} s; "
        f"failed ones left out: {failures}"
    )
    return root


def wanted(settings: dict[str, Any], successes: dict[tuple[str, int], bool]) -> list[tuple[str, int]]:
    """Return task and seed of the episodes to play, in order: each failure makes a task's range of seeds one longer.

    >>> wanted({"tasks": ["a"], "episodes": 2, "seed": 7}, {("a", 7): False})
    [('a', 7), ('a', 8), ('a', 9)]
    """
    keys = []
    for task in settings["tasks"]:
        seed, left = settings["seed"], settings["episodes"]
        while left:
            keys.append((task, seed))
            left -= successes.get((task, seed), True)
            seed += 1
    return keys


def episode_path(staging: Path, task: str, seed: int) -> Path:
    """Return the file of one staged episode."""
    return staging / task / f"{seed}.npz"


def write_dataset(paths: list[Path], root: Path, repo_id: str, settings: dict[str, Any]) -> None:
    """Write the staged episodes, in this order, as a LeRobotDataset."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    # Otherwise each prints something for every episode.
    datasets.disable_progress_bars()
    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder: errors only
    av.logging.set_libav_level(av.logging.ERROR)
    dataset = LeRobotDataset.create(
        repo_id,
        fps=FPS,
        features=features(settings["image_size"], settings["video"]),
        root=root,
        robot_type="panda",
        use_videos=settings["video"],
    )
    for path in tqdm(paths, unit="episode", desc="writing"):
        episode = read_episode(path)
        for row in range(len(episode.frames["action"])):
            frame = {key: values[row] for key, values in episode.frames.items()}
            dataset.add_frame({**frame, "task": episode.result.instruction})
        dataset.save_episode()
    dataset.finalize()


def recorded_episodes(root: Path) -> list[tuple[str, int]]:
    """Return task and seed of every episode of a data set that was recorded here, in its order."""
    return [(task, seed) for task, seed in json.loads((root / SETTINGS_FILE).read_text())["episodes"]]


def episode_actions(root: Path) -> list[np.ndarray]:
    """Return the actions of every episode of a data set: float32 (T, 7) each."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset(f"local/{root.name}", root=root).hf_dataset
    rows = dataset.with_format("numpy", columns=["episode_index", "action"])
    episodes, actions = np.asarray(rows["episode_index"][:]), np.stack(rows["action"][:])
    return [actions[episodes == episode] for episode in np.unique(episodes)]


def known_tasks(names: list[str]) -> list[str]:
    """Return the names without repetition; raise RecordingError naming those without an expert."""
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        raise RecordingError(f"no expert for {', '.join(unknown)}; there are: {', '.join(TASKS)}")
    return list(dict.fromkeys(names))
