"""The scene as an environment of ``lerobot-eval``: ``--env.type=so101_pick_lift``.

States, pictures and actions are those of ``--robot.type=sim_so_follower``, so that a policy that was trained on
recordings of one arm is evaluated on the other, simulated or real.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.so101.arm import SimulatedArm
from lerobot_policy_vla0.tools.so101.scene import CAMERAS

Array = np.ndarray[Any, Any]


class PickLiftEnv(gymnasium.Env[dict[str, Any], Array]):
    """One arm that has to lift the cube.

    An observation is ``{"agent_pos": (6,) float32, "pixels": {"wrist", "side": (H, W, 3) uint8}}``; an action is
    the next goal, ``(6,)``, in the units of ``agent_pos``: degrees, and percent open for the gripper.

    Args:
        image_size: edge of both pictures, pixels.
        fps: control steps per second.
        max_steps: of an episode.
    """

    def __init__(self, image_size: int, fps: int, max_steps: int) -> None:
        if max_steps < 1:
            raise ConfigError(f"--env.episode_length={max_steps} leaves no step: give 1 or more")
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": fps}
        self.render_mode = "rgb_array"
        self._max_episode_steps = max_steps
        self.arm = SimulatedArm(image_size, fps)
        self._steps = 0
        self._frame: Array | None = None
        picture = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        joints = gymnasium.spaces.Box(-np.inf, np.inf, (len(self.arm.keys),), np.float32)
        pixels = gymnasium.spaces.Dict(dict.fromkeys(CAMERAS, picture))
        self.observation_space = gymnasium.spaces.Dict({"agent_pos": joints, "pixels": pixels})
        self.action_space = joints
        self.task_description = self.task = self.arm.scene.task_description

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode with the cube where ``seed`` puts it."""
        super().reset(seed=seed)
        self.arm.reset(seed)
        self._steps = 0
        self.task_description = self.task = self.arm.scene.task_description
        return self._observe(), {"is_success": False}

    def step(self, action: Array) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Give the arm its next goal; the episode ends when the cube is lifted."""
        self.arm.send(action)
        self._steps += 1
        lifted = bool(self.arm.info["success"])
        late = self._steps >= self._max_episode_steps
        return self._observe(), float(lifted), lifted, late and not lifted, {"is_success": lifted}

    def render(self) -> Array:
        """Return the two pictures of the last observation, side by side."""
        if self._frame is None:
            self._observe()
        assert self._frame is not None
        return self._frame

    def close(self) -> None:
        """Free the simulation."""
        self.arm.close()

    def _observe(self) -> dict[str, Any]:
        state, pictures = self.arm.observe()
        self._frame = np.concatenate([pictures[name] for name in CAMERAS], axis=1)
        return {"agent_pos": state, "pixels": pictures}


@EnvConfig.register_subclass("so101_pick_lift")
@dataclass
class PickLiftEnvConfig(EnvConfig):
    """The options ``--env....``.

    Attributes:
        fps: control steps per second, as recorded.
        image_size: edge of both pictures in pixels, as recorded.
        episode_length: steps after which an episode has failed.
    """

    task: str | None = "pick_lift"
    fps: int = 30
    image_size: int = 128
    episode_length: int = 150
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(
        default_factory=lambda: {
            ACTION: ACTION,
            "agent_pos": OBS_STATE,
            **{f"pixels/{name}": f"{OBS_IMAGES}.{name}" for name in CAMERAS},
        }
    )

    def __post_init__(self) -> None:
        picture = PolicyFeature(type=FeatureType.VISUAL, shape=(self.image_size, self.image_size, 3))
        self.features = {
            ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(6,)),
            "agent_pos": PolicyFeature(type=FeatureType.STATE, shape=(6,)),
            **{f"pixels/{name}": picture for name in CAMERAS},
        }

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """The environment's arguments."""
        return {"image_size": self.image_size, "fps": self.fps, "max_steps": self.episode_length}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, VectorEnv]]:
        """Return ``{type: {0: n_envs environments}}``."""

        def make() -> PickLiftEnv:
            return PickLiftEnv(**self.gym_kwargs)

        makers = [make] * n_envs
        if use_async_envs and n_envs > 1:  # spawned: an OpenGL context does not survive a fork
            vector: VectorEnv = AsyncVectorEnv(
                makers, context="forkserver", autoreset_mode=AutoresetMode.SAME_STEP
            )
        else:
            vector = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
        return {self.type: {0: vector}}
