"""Demonstrations as a LeRobotDataset with the features `lerobot-record` gives one of the emulated arm.

In simulated time, and with PNG pictures (``--dataset.video=false``). Knows the task; nothing about policies.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from datasets import disable_progress_bars
from lerobot.datasets import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_STR
from lerobot.utils.feature_utils import hw_to_dataset_features

from lerobot_policy_vla0.tools.so100_emulator import JOINTS, SteppedArm
from reach.episodes import see
from reach.task import BRAKE, CAMERA, FPS, HOLD, INSTRUCTION, STEPS, arrived, draw_case, expert, make_scene

REPO_ID = "local/so100_reach"
ROBOT_TYPE = "so_follower"


def features() -> dict[str, dict[str, Any]]:
    """Return the dataset's features: joints in degrees (gripper: percent open) and the camera."""
    joints: dict[str, Any] = {f"{joint}.pos": float for joint in JOINTS}
    camera = {CAMERA.name: (CAMERA.height, CAMERA.width, 3)}
    return {
        **hw_to_dataset_features(joints, ACTION, use_video=False),
        **hw_to_dataset_features({**joints, **camera}, OBS_STR, use_video=False),
    }


def demonstrate(seed: int) -> list[dict[str, Any]]:
    """Return the frames of one demonstration: until the expert has arrived, and a moment longer."""
    case = draw_case(seed)
    arm, scene = SteppedArm(case.start, max_relative_target=BRAKE), make_scene(case.ball)
    frames: list[dict[str, Any]] = []
    left = HOLD
    while left and len(frames) < STEPS:
        pose = arm.pose()
        goal = expert(case.ball)
        frames.append(
            {
                f"observation.images.{CAMERA.name}": see(scene, arm),
                "observation.state": np.array(pose, np.float32),
                "action": np.array(goal, np.float32),
                "task": INSTRUCTION,
            }
        )
        arm.send(goal)
        arm.advance(1 / FPS)
        left -= arrived(pose, case.ball)
    return frames


def record(root: Path, episodes: int, first_seed: int) -> int:
    """Write demonstrations to a new dataset and return the number of frames; an existing dataset is left alone.

    Args:
        root: the dataset's folder; a half-written one lies beside it until it is whole.
        episodes: demonstrations, one per seed.
        first_seed: the seed of the first.
    """
    if root.exists():
        return LeRobotDataset(REPO_ID, root=root).num_frames
    unfinished = root.with_name(f"{root.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    disable_progress_bars()  # one per episode
    dataset = LeRobotDataset.create(
        REPO_ID, FPS, features(), root=unfinished, robot_type=ROBOT_TYPE, use_videos=False
    )
    for seed in range(first_seed, first_seed + episodes):
        for frame in demonstrate(seed):
            dataset.add_frame(frame)
        dataset.save_episode()
    dataset.finalize()
    frames = int(dataset.num_frames)
    unfinished.rename(root)
    return frames
