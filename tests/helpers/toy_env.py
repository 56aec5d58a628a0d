"""A toy LeRobot environment: move a dot to a target, seen as a picture. Fast enough for every test run.

The dot starts left or right; the action is its velocity; success is to come near the middle.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

SIZE = 64
STEPS = 6


class ToyEnv(gym.Env[Any, Any]):
    """A dot in a 64 px picture; two actions (velocity), six steps at most."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, task: str = "lower the bar gently", camera: str = "top") -> None:
        self.task = task
        self.task_description = task
        self.camera = camera
        self.render_mode = "rgb_array"
        self._max_episode_steps = STEPS
        self._position = np.zeros(2)
        picture = gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.observation_space = gym.spaces.Dict(
            {
                "pixels": gym.spaces.Dict({camera: picture}),
                "agent_pos": gym.spaces.Box(-10, 10, (2,), np.float64),
            }
        )
        self.action_space = gym.spaces.Box(-10, 10, (2,), np.float32)
        self.actions: list[np.ndarray] = []

    def render(self) -> np.ndarray:
        """Draw the dot."""
        picture = np.zeros((SIZE, SIZE, 3), np.uint8)
        x, y = (np.clip(self._position, -1, 1) * 0.4 + 0.5) * SIZE
        picture[int(y) - 3 : int(y) + 4, int(x) - 3 : int(x) + 4] = 255
        return picture

    def _observe(self) -> dict[str, Any]:
        return {"pixels": {self.camera: self.render()}, "agent_pos": self._position.copy()}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Start at a place that depends on the seed."""
        super().reset(seed=seed)
        self._position = self.np_random.uniform(-1, 1, 2)
        self._steps = 0
        return self._observe(), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Move; the episode ends in the middle."""
        self._steps += 1
        self._position = np.clip(self._position + 0.1 * np.asarray(action, float), -1, 1)
        success = bool(np.abs(self._position).max() < 0.05)
        info: dict[str, Any] = {"is_success": success}
        if success:
            info["final_info"] = {"is_success": True}
        return self._observe(), float(success), success, False, info


@EnvConfig.register_subclass("toy")
@dataclass
class ToyEnvConfig(EnvConfig):
    """``--env.type=toy``; ``--env.task=a,b`` makes one task per name."""

    task: str | None = "lower the bar gently"
    camera: str = "top"
    fps: int = 10
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.features = {
            ACTION: PolicyFeature(FeatureType.ACTION, (2,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (2,)),
            f"pixels/{self.camera}": PolicyFeature(FeatureType.VISUAL, (SIZE, SIZE, 3)),
        }
        self.features_map = {
            ACTION: ACTION,
            "agent_pos": OBS_STATE,
            f"pixels/{self.camera}": f"{OBS_IMAGES}.{self.camera}",
        }

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Nothing to pass on."""
        return {}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> Any:
        """Build one synchronous vector environment per task."""
        tasks = (self.task or "").split(",")
        return {
            "toy": {
                i: gym.vector.SyncVectorEnv([lambda t=task: ToyEnv(t, self.camera) for _ in range(n_envs)])
                for i, task in enumerate(tasks)
            }
        }
