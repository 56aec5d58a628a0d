"""``--env.type=scored``: the toy environment with outcomes that differ by seed and action, and accidents on demand.

A package, because ``--env.discover_packages_path=helpers.scored_env`` loads packages only. Accidents are asked for with
the environment variable ``SCORED_ENV_ACCIDENT=<kind>:<seed>:<file>``, and happen once: the file says that it did.
Kinds: ``kill``, ``hang``, and ``freeze``: hang in native code that holds Python's lock, so that no thread runs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from lerobot.envs.configs import EnvConfig

from helpers.toy_env import ToyEnv, ToyEnvConfig


class ScoredEnv(ToyEnv):
    """Rewards every place by where it is; solved if the dot is ever right of a line."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Start; or have the accident that was asked for."""
        kind, _, rest = os.environ.get("SCORED_ENV_ACCIDENT", "").partition(":")
        at, _, file = rest.partition(":")
        if kind and seed == int(at) and not Path(file).exists():
            Path(file).write_text(str(os.getpid()))
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "freeze":
                ctypes.PyDLL(None).sleep(3600)
            time.sleep(3600)
        return super().reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Move; the reward tells every two positions apart."""
        observation, _, _, truncated, info = super().step(action)
        success = bool(self._position[0] > 0.3)
        info = {"is_success": success} | ({"final_info": {"is_success": True}} if success else {})
        return observation, float(self._position @ [1.0, 0.1]), success, truncated, info


@EnvConfig.register_subclass("scored")
@dataclass
class ScoredEnvConfig(ToyEnvConfig):
    """``--env.task=a,b`` makes one task per name."""

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> Any:
        """Build one synchronous vector environment per task."""
        tasks = (self.task or "").split(",")
        return {
            "scored": {
                i: gym.vector.SyncVectorEnv([lambda t=task: ScoredEnv(t, self.camera) for _ in range(n_envs)])
                for i, task in enumerate(tasks)
            }
        }
