"""Moves LIBERO's third-person camera in the simulator, by a distance and in a direction that follows from the seed.

A wrapper around LeRobot's ``LiberoEnv`` sets the camera's position in MuJoCo's model after each reset. Nothing else of
the model changes, and physics does not read it: states, rewards and the wrist camera stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from lerobot_policy_vla0.errors import EvaluationError

CAMERA = "agentview"
_PICTURE = f"{CAMERA}_image"  # robosuite's name of what it sees

#: From the seed of an episode to a direction ``(3,)`` of length 1.
Direction = Callable[[int], NDArray[np.float64]]


class MovedCamera(gym.Wrapper[Any, Any, Any, Any]):
    """LeRobot's ``LiberoEnv`` with the camera elsewhere.

    Args:
        env: the environment, which may be wrapped.
        metres: distance from the camera's own place.
        direction: of the move.
    """

    def __init__(self, env: gym.Env[Any, Any], metres: float, direction: Direction) -> None:
        super().__init__(env)
        self._metres, self._direction = metres, direction
        self._home: NDArray[np.float64] | None = None  # where the camera was before it was moved
        libero: Any = env.unwrapped
        self._libero = libero
        if _PICTURE not in libero.camera_name:
            raise EvaluationError(
                f"--perturb camera: --env.camera_name={','.join(libero.camera_name)} has no {_PICTURE}, which is the "
                "camera that is moved"
            )

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; one without a seed is none of an evaluation, and the camera stays where it is."""
        if self._home is not None and self._libero._env is not None:
            # A reset that keeps the model keeps the camera, too.
            self._place_camera(self._home)
        observation, info = self.env.reset(seed=seed, options=options)
        self._home = None
        if seed is not None:
            model = self._libero._env.sim.model
            self._home = np.array(model.cam_pos[model.camera_name2id(CAMERA)])
            self._place_camera(self._home + self._metres * self._direction(seed))
            # It was drawn before the camera moved. Every later one is drawn after.
            key = self._libero.camera_name_mapping[_PICTURE]
            observation["pixels"] = {**observation["pixels"], key: self._draw()}
        return observation, info

    def _place_camera(self, position: NDArray[np.float64]) -> None:
        """Move the camera to a place ``(3,)`` in metres, and nothing else: no physics is computed."""
        import mujoco

        simulation = self._libero._env.sim
        simulation.model.cam_pos[simulation.model.camera_name2id(CAMERA)] = position
        mujoco.mj_camlight(simulation.model._model, simulation.data._data)

    def _draw(self) -> NDArray[np.uint8]:
        """Return what the camera sees now, as robosuite hands it out."""
        from robosuite import macros
        from robosuite.utils.mjcf_utils import IMAGE_CONVENTION_MAPPING

        size = {"width": self._libero.observation_width, "height": self._libero.observation_height}
        picture = self._libero._env.sim.render(camera_name=CAMERA, **size)
        return np.ascontiguousarray(picture[:: IMAGE_CONVENTION_MAPPING[macros.IMAGE_CONVENTION]])


def move_cameras(env: Any, metres: float, direction: Direction) -> Any:
    """Return a vector environment of LeRobot's whose environments have their camera elsewhere.

    Raises:
        EvaluationError: it is of a kind that this version of the package does not know.
    """
    if isinstance(env, gym.vector.SyncVectorEnv):
        env.envs = [MovedCamera(one, metres, direction) for one in env.envs]
        return env
    # LeRobot's own, which builds an `AsyncVectorEnv` from these functions when it is first used.
    functions = getattr(env, "_env_fns", None)
    if functions is None:
        raise EvaluationError(
            f"--perturb camera: how to reach the simulators of a {type(env).__name__} is not known: give "
            "--eval.batch_size=1"
        )
    moved = [partial(_build, function, metres, direction) for function in functions]
    return type(env)(moved, env.observation_space, env.action_space, env.metadata)


def _build(function: Callable[[], gym.Env[Any, Any]], metres: float, direction: Direction) -> MovedCamera:
    return MovedCamera(function(), metres, direction)
