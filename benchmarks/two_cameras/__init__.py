"""``--env.type=two_cameras``: three steps of noise in LIBERO's shape, for `lerobot-eval` without a simulator.

A package, because ``--env.discover_packages_path=two_cameras`` loads packages only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

CAMERAS, SIDE, STATE_DIM, ACTION_DIM, STEPS = ("image", "image2"), 224, 8, 7, 3


class TwoCameras(gym.Env[Any, Any]):
    """Shows noise, takes any action, ends after `STEPS`."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self) -> None:
        self.task = self.task_description = "put the bowl on the plate"
        self.render_mode = "rgb_array"
        self._max_episode_steps = STEPS
        picture = gym.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
        self.observation_space = gym.spaces.Dict(
            {
                "pixels": gym.spaces.Dict(dict.fromkeys(CAMERAS, picture)),
                "agent_pos": gym.spaces.Box(-10, 10, (STATE_DIM,), np.float64),
            }
        )
        self.action_space = gym.spaces.Box(-10, 10, (ACTION_DIM,), np.float32)
        self._steps = 0

    def render(self) -> Any:
        """Return noise."""
        return self.np_random.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)

    def _observe(self) -> dict[str, Any]:
        return {"pixels": {name: self.render() for name in CAMERAS}, "agent_pos": np.zeros(STATE_DIM)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Start anew."""
        super().reset(seed=seed)
        self._steps = 0
        return self._observe(), {"is_success": False}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Count; refuse what no robot could do."""
        if np.shape(action) != (ACTION_DIM,) or not np.isfinite(action).all():
            raise ValueError(f"action {action}, expected {ACTION_DIM} finite numbers")
        self._steps += 1
        over = self._steps >= STEPS
        return self._observe(), 0.0, over, False, {"is_success": False, "final_info": {"is_success": False}}


@EnvConfig.register_subclass("two_cameras")
@dataclass
class TwoCamerasConfig(EnvConfig):
    """``--env.type=two_cameras``."""

    task: str | None = "noise"
    fps: int = 10
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        pictures = {f"pixels/{name}": f"{OBS_IMAGES}.{name}" for name in CAMERAS}
        self.features = {
            ACTION: PolicyFeature(FeatureType.ACTION, (ACTION_DIM,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (STATE_DIM,)),
            **dict.fromkeys(pictures, PolicyFeature(FeatureType.VISUAL, (SIDE, SIDE, 3))),
        }
        self.features_map = {ACTION: ACTION, "agent_pos": OBS_STATE, **pictures}

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Nothing to pass on."""
        return {}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> Any:
        """Build one synchronous vector environment."""
        return {"two_cameras": {0: gym.vector.SyncVectorEnv([TwoCameras for _ in range(n_envs)])}}
