"""Who decides in an episode: a trained policy, or something that cannot see.

Knows LeRobot's policies and processors; nothing about the arm.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from numpy.typing import NDArray

from lerobot_policy_vla0 import VLA0Config, VLA0Policy
from reach.task import CAMERA, INSTRUCTION, Case, expert


class PolicyController:
    """A trained policy, asked as LeRobot asks it: pre-processor, ``select_action``, post-processor.

    Args:
        path: checkpoint.
        n_action_steps: steps executed per query; None for the checkpoint's.
    """

    looks = True

    def __init__(self, path: Path, n_action_steps: int | None = None) -> None:
        config = PreTrainedConfig.from_pretrained(path)
        assert isinstance(config, VLA0Config)
        config.device, config.dtype = "cpu", "float32"  # decodes faster than bfloat16 on a CPU at this size
        if n_action_steps is not None:
            config.n_action_steps = n_action_steps
        self.policy = VLA0Policy.from_pretrained(path, config=config)
        self.policy.eval()
        self._before, self._after = make_pre_post_processors(
            config, str(path), preprocessor_overrides={"device_processor": {"device": "cpu"}}
        )

    def reset(self) -> None:
        """Begin new episodes."""
        self.policy.reset()

    def __call__(self, pictures: NDArray[np.uint8], poses: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return goals ``(B, 6)``."""
        batch: dict[str, Any] = {
            f"observation.images.{CAMERA.name}": torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255,
            "observation.state": torch.from_numpy(poses).float(),
            "task": [INSTRUCTION] * len(pictures),
        }
        with torch.inference_mode():
            goals: NDArray[np.float64] = (
                self._after(self.policy.select_action(self._before(batch))).double().numpy()
            )
        return goals


class Expert:
    """The demonstrator, who knows where the balls are."""

    looks = False

    def __init__(self, cases: Sequence[Case]) -> None:
        self._balls = [case.ball for case in cases]

    def __call__(self, pictures: NDArray[np.uint8], poses: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return goals ``(B, 6)``."""
        return np.array([expert(ball) for ball in self._balls])


class Replay:
    """Goals decided beforehand, the last one for as long as it takes: sees nothing.

    Args:
        goals: ``(T, 6)``; one row is a constant action.
    """

    looks = False

    def __init__(self, goals: NDArray[np.float32]) -> None:
        self._goals, self._step = goals, 0

    def __call__(self, pictures: NDArray[np.uint8], poses: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return goals ``(B, 6)``, the same for all."""
        goal = self._goals[min(self._step, len(self._goals) - 1)]
        self._step += 1
        return np.tile(goal.astype(np.float64), (len(pictures), 1))
