"""Write staged episodes as one LeRobotDataset."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import av
import datasets
import experts

from lerobot_policy_vla0.tools.demonstrations import SETTINGS_FILE


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


class Assembler:
    """Writes staged episodes, in the order they are added, as a LeRobotDataset beside `root`.

    Used while the workers still play: an episode costs about a second of one core (LeRobot's video encoding
    and image statistics), and the workers do not always keep all cores busy.
    """

    def __init__(self, root: Path, repo_id: str, settings: dict[str, Any]) -> None:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        # Otherwise each prints something for every episode.
        datasets.disable_progress_bars()
        os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder: errors only
        av.logging.set_libav_level(av.logging.ERROR)
        self._root = root
        self._settings = settings
        self._partial = root.with_name(root.name + ".partial")
        if self._partial.exists():  # left by a killed recording; everything in it comes from the staged files
            shutil.rmtree(self._partial)
        self._dataset = LeRobotDataset.create(
            repo_id,
            fps=experts.FPS,
            features=features(settings["image_size"]),
            root=self._partial,
            use_videos=True,
            streaming_encoding=True,
            # LeRobot's encoder DROPS frames when its queue is full; one that holds an episode never is.
            encoder_queue_maxsize=experts.MAX_EPISODE_STEPS + 1,
        )
        self.added: list[tuple[str, int]] = []

    def add(self, path: Path) -> None:
        """Append one staged episode."""
        episode = experts.read_episode(path)
        for png, state, action in zip(episode.images, episode.states, episode.actions, strict=True):
            self._dataset.add_frame(
                {
                    "observation.image": experts.decode_frame(png),
                    "observation.state": state,
                    "action": action,
                    "task": episode.description,
                }
            )
        self._dataset.save_episode()
        self.added.append((episode.task, episode.seed))

    def finish(self) -> None:
        """Close the dataset, note the settings and move it into place."""
        self._dataset.finalize()
        recording = {"settings": self._settings, "episodes": self.added}
        (self._partial / SETTINGS_FILE).write_text(json.dumps(recording, indent=1) + "\n")
        self._partial.rename(self._root)
