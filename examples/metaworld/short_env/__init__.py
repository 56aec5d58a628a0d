"""Meta-World for many episodes: LeRobot's environment with a limit on the steps, and no frame drawn twice.

    PYTHONPATH=. lerobot-eval --env.discover_packages_path=examples.metaworld.short_env --env.type=metaworld_short \
      --env.task=button-press-topdown-v3 --env.max_steps=150 ...

LeRobot gives an episode 500 steps, which is what failures cost, and draws a frame for the video that the observation
holds already. Everything else is LeRobot's, starts and pixels included. A result is about the limit it was played
with.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from lerobot.envs.configs import EnvConfig
from lerobot.envs.configs import MetaworldEnv as MetaworldConfig
from lerobot.envs.metaworld import MetaworldEnv


class ShortMetaworldEnv(MetaworldEnv):
    """LeRobot's environment for one task.

    Args:
        task: such as ``button-press-topdown-v3``.
        max_steps: of an episode, at most LeRobot's 500.
        obs_type: as LeRobot's, which has another default.
        **options: LeRobot's.
    """

    def __init__(self, task: str, max_steps: int, obs_type: str = "pixels_agent_pos", **options: Any) -> None:
        super().__init__(task=task, obs_type=obs_type, **options)
        if not 1 <= max_steps <= self._max_episode_steps:
            raise ValueError(f"--env.max_steps={max_steps} is outside 1 to {self._max_episode_steps}.")
        self._max_episode_steps = max_steps
        self._frame: np.ndarray | None = None

    def _format_raw_obs(self, raw_obs: np.ndarray) -> dict[str, Any]:
        observation = super()._format_raw_obs(raw_obs)
        self._frame = observation["pixels"]
        return observation

    def render(self) -> np.ndarray:
        """Return the frame of the last observation, uint8 (480, 480, 3) RGB; LeRobot would draw it again."""
        return super().render() if self._frame is None else self._frame


@EnvConfig.register_subclass("metaworld_short")
@dataclass
class ShortMetaworldConfig(MetaworldConfig):
    """LeRobot's options for Meta-World, and a limit.

    Attributes:
        max_steps: of an episode.
    """

    max_steps: int = 150

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, VectorEnv]]:
        """Return ``{task: {0: n_envs environments}}``."""
        task = self.task.removeprefix("metaworld-")
        vector = AsyncVectorEnv if use_async_envs and n_envs > 1 else SyncVectorEnv
        make = partial(ShortMetaworldEnv, task, self.max_steps, **self.gym_kwargs)
        return {task: {0: vector([make] * n_envs)}}
