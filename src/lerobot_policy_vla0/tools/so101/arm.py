"""The simulated arm as LeRobot sees it, with what only a simulation has: starts from a seed, and the truth."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from so101_nexus.lerobot_adapter import SimCameraConfig, SimSOFollower, SimSOFollowerConfig
from so101_nexus.lerobot_adapter.normalization import normalize_ticks, sim_rad_to_motor_ticks
from so101_nexus.lerobot_adapter.synthetic_calibration import build_synthetic_calibration

from lerobot_policy_vla0.tools.so101.scene import (
    CAMERAS,
    ENV_ID,
    PickLift,
    cameras,
    register,
)

Array = np.ndarray[Any, Any]


class SimulatedArm:
    """``--robot.type=sim_so_follower`` in the scene: the same goals, states and pictures, connected until `close`.

    Positions are LeRobot's: degrees for five joints, percent open for the gripper, float32 ``(6,)``.

    Args:
        image_size: edge of both cameras' pictures, pixels; None for an arm without cameras.
        fps: control steps per second.
    """

    def __init__(self, image_size: int | None = 128, fps: int = 30) -> None:
        register()
        described = {} if image_size is None else cameras(image_size, fps)
        with TemporaryDirectory() as folder:  # LeRobot reads a calibration file there; ours is in memory
            self._robot = SimSOFollower(
                SimSOFollowerConfig(
                    id="simulated",
                    calibration_dir=Path(folder),
                    env_id=ENV_ID,
                    env_kwargs={"image_size": image_size, "fps": fps, "made": self._keep},
                    cameras={
                        name: SimCameraConfig(**{key: camera[key] for key in camera if key != "type"})
                        for name, camera in described.items()
                    },
                )
            )
        self._robot.calibration = build_synthetic_calibration()
        self._robot.connect()
        self.keys = tuple(self._robot.action_features)

    def _keep(self, scene: PickLift) -> None:
        self.scene = scene  # the simulation itself

    @property
    def info(self) -> dict[str, Any]:
        """What the simulation said about the last step: ``success``, ``is_grasped``, ``lift_height`` (m) and more."""
        step = self._robot.last_step_info()
        return {} if step is None else step.info

    def reset(self, seed: int | None = None) -> None:
        """Go back to the rest pose, with the cube somewhere else."""
        self._robot.reset(seed=seed)

    def observe(self) -> tuple[Array, dict[str, Array]]:
        """Return the positions and each camera's picture, uint8 ``(H, W, 3)`` RGB."""
        seen = self._robot.get_observation()
        state = np.array([seen[key] for key in self.keys], dtype=np.float32)
        return state, {name: seen[name] for name in CAMERAS if name in seen}

    def send(self, goal: Array) -> Array:
        """Go towards ``goal`` for one control step; return it as the arm was given it, within the joints' limits."""
        sent = self._robot.send_action(dict(zip(self.keys, map(float, goal), strict=True)))
        return np.array([sent[key] for key in self.keys], dtype=np.float32)

    def positions(self, radians: Array) -> Array:
        """Return joint angles of the simulation in LeRobot's units, as its encoders of 4,096 steps read them."""
        calibration, motors = self._robot.calibration, self._robot.motors
        limits = (float(self.scene.action_space.low[5]), float(self.scene.action_space.high[5]))
        ticks = sim_rad_to_motor_ticks(radians, calibration=calibration, gripper_limits_rad=limits)
        values = normalize_ticks(ticks, motors=motors, calibration=calibration)
        return np.array([values[key.removesuffix(".pos")] for key in self.keys], dtype=np.float32)

    def close(self) -> None:
        """Free the simulation and its renderers."""
        self._robot.disconnect()
