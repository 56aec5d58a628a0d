"""Where the wrapper that moves LIBERO's camera is put, without a simulator: `test_libero.py` looks through it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from lerobot.envs.utils import _LazyAsyncVectorEnv

from lerobot_policy_vla0.errors import EvaluationError
from lerobot_policy_vla0.tools.evaluation.perturbation import camera_direction
from lerobot_policy_vla0.tools.libero.camera import MovedCamera, move_cameras


class Libero(gym.Env[Any, Any]):
    """What the wrapper reads of LeRobot's environment before the first reset."""

    observation_space = gym.spaces.Discrete(2)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, camera_name: tuple[str, ...] = ("agentview_image",)) -> None:
        self.camera_name = list(camera_name)
        self.task_description = "open it"


def test_every_environment_of_a_batch_is_wrapped() -> None:
    plain = gym.vector.SyncVectorEnv([Libero, Libero])
    moved = move_cameras(plain, 0.01, camera_direction)
    assert [type(env) for env in moved.envs] == [MovedCamera, MovedCamera]
    assert moved.call("task_description") == ("open it", "open it")


def test_environments_in_processes_of_their_own_are_wrapped_there() -> None:
    metadata = {"render_fps": 20}
    plain = _LazyAsyncVectorEnv([Libero, Libero], Libero.observation_space, Libero.action_space, metadata)
    moved = move_cameras(plain, 0.01, camera_direction)
    assert type(moved) is _LazyAsyncVectorEnv and moved.num_envs == 2 and moved.metadata == metadata
    built = [function() for function in moved._env_fns]
    assert [type(env) for env in built] == [MovedCamera, MovedCamera]
    assert [type(env.unwrapped) for env in built] == [Libero, Libero]


def test_what_cannot_be_moved_is_refused() -> None:
    with pytest.raises(
        EvaluationError, match=r"--env.camera_name=robot0_eye_in_hand_image has no agentview_image"
    ):
        MovedCamera(Libero(("robot0_eye_in_hand_image",)), 0.01, lambda seed: np.ones(3))
    with pytest.raises(
        EvaluationError, match=r"the simulators of a object is not known: give --eval.batch_size=1"
    ):
        move_cameras(object(), 0.01, camera_direction)
