"""The scene: an SO-101 before a table with a cube to lift, in MuJoCo.

Arm, physics, cameras and the judgement of success are ``so101-nexus``'s ``PickLift``; this file chooses its settings
and registers it with gymnasium as `ENV_ID`, so that ``--robot.type=sim_so_follower --robot.env_id=...`` finds it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
from so101_nexus.config import ControlMode, PhysicsConfig, PickConfig, RenderConfig
from so101_nexus.mujoco.pick_env import PickLiftEnv
from so101_nexus.observations import JointPositions, OverheadCamera, WristCamera
from so101_nexus.rendering import RenderingQuality

from lerobot_policy_vla0.errors import ConfigError

#: gymnasium's name of the scene.
ENV_ID = "vla0/SO101PickLift-v0"
#: Where the cube lies: within this distance of this place, metres ahead and to the left of the arm's base.
CENTER, RADIUS = (0.22, 0.0), 0.08
#: The cameras' names, and so101-nexus's names of their pictures.
CAMERAS = {"wrist": "wrist_camera", "side": "overhead_camera"}
#: so101-nexus's names of the cube's body, and of the point between the fingers.
CUBE, FINGERS = "pick_slot_0", "gripperframe"
#: How fast a joint turns towards its goal, degrees a second; an STS3215 without load does 270. MuJoCo's motors alone
#: would be there at once.
SPEED = 180.0
#: The side camera: it looks at this place from this far, degrees around the vertical and below the horizontal, so that
#: the arm hides neither the cube nor the fingers. so101-nexus's own looks straight down: the arm hides the cube while
#: it grasps.
LOOK_AT, DISTANCE, AZIMUTH, ELEVATION = (0.21, 0.0, 0.04), 0.34, 115.0, -50.0
#: The wrist camera on its mount: degrees of view and of pitch, metres. so101-nexus draws these anew for every episode,
#: in ranges around these; on an arm they are screwed down. The pitch is the lowest, at which the cube between the
#: fingers is in the middle of the picture.
FIELD_OF_VIEW, PITCH, MOUNT = 75.0, -34.4, (0.0, 0.04, -0.04)
#: Seconds of one step of the physics, at most.
TIMESTEP = 0.005
#: Colour of the arm where it is drawn by its collision shapes, some of which are red, as the cube is.
YELLOW = (1.0, 0.82, 0.12, 1.0)
HIDDEN, SHOWN = 5, 0  # groups of geometry: MuJoCo draws those up to 2


class PickLift(PickLiftEnv):
    """An SO-101 and a red cube of 25 mm: success is a cube held 5 cm above where it lay.

    Args:
        render_mode: gymnasium's; only ``rgb_array`` and None.
        control_mode: so101-nexus's name of joint positions; no other, because goals are limited to a servo's speed.
        image_size: edge of both cameras' pictures, pixels; None for an arm without cameras.
        fps: control steps per second.
        meshes: draw the arm as it was constructed (348,000 triangles), not by its collision shapes, which takes a CPU
            nine times as long.
        log: file to which every step adds a line of JSON: ``time`` (seconds of the machine's clock), ``lift_height``
            (metres), ``is_grasped`` and ``success``; and every reset a line with ``reset``.
        made: called with the new scene, for who has LeRobot make it.

    Raises:
        ConfigError: a size or rate below 1, or another control mode.
    """

    def __init__(
        self,
        render_mode: str | None = None,
        control_mode: ControlMode = "pd_joint_pos",
        image_size: int | None = 128,
        fps: int = 30,
        meshes: bool = False,
        log: str | None = None,
        made: Callable[[PickLift], None] | None = None,
    ) -> None:
        if (image_size is not None and image_size < 1) or fps < 1:
            raise ConfigError(f"image_size={image_size} and fps={fps} have to be 1 or more")
        if control_mode != "pd_joint_pos":
            raise ConfigError(f"control_mode={control_mode} is not for this scene: give pd_joint_pos")
        super().__init__(
            config=settings(fps, **observed(image_size)),
            render_mode=render_mode,
            control_mode=control_mode,
        )
        self._overhead_obs_cam = side_camera()
        if not meshes:
            draw_collision_shapes(self.model)
        self._log = None if log is None else Path(log)
        if self._log is not None:
            self._log.parent.mkdir(parents=True, exist_ok=True)
        if made is not None:
            made(self)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Go back to the rest pose, with the cube somewhere else."""
        self._write({"reset": seed})
        observation, info = super().reset(seed=seed, options=options)
        return observation, info

    def step(self, action: np.ndarray[Any, Any]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Move towards the goal ``action``, (6,) radians, for one control step."""
        goal = within_speed(self._get_current_qpos(), np.asarray(action), self.control_dt)
        observation, reward, terminated, truncated, info = super().step(goal)
        told = {"lift_height": info["lift_height"], "is_grasped": bool(info["is_grasped"] > 0.5)}
        self._write({"time": time.monotonic(), **told, "success": bool(info["success"])})
        return observation, reward, terminated, truncated, info

    def _write(self, line: dict[str, Any]) -> None:
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def within_speed(
    here: np.ndarray[Any, Any], goal: np.ndarray[Any, Any], seconds: float
) -> np.ndarray[Any, Any]:
    """Return how far towards ``goal`` joints get in so many seconds, radians."""
    reach = np.radians(SPEED) * seconds
    nearer: np.ndarray[Any, Any] = here + np.clip(goal - here, -reach, reach)
    return nearer


def observed(image_size: int | None) -> dict[str, Any]:
    """Return so101-nexus's options of what is observed: joints, and two cameras unless the size is None."""
    if image_size is None:
        return {"observations": [JointPositions()]}
    overhead = OverheadCamera(width=image_size, height=image_size)
    wrist = WristCamera(
        width=image_size,
        height=image_size,
        fov_deg_range=(FIELD_OF_VIEW, FIELD_OF_VIEW),
        pitch_deg_range=(PITCH, PITCH),
        pos_x_noise=0.0,
        pos_y_center=MOUNT[1],
        pos_y_noise=0.0,
        pos_z_center=MOUNT[2],
        pos_z_noise=0.0,
    )
    return {"obs_mode": "visual", "observations": [JointPositions(), wrist, overhead]}


def settings(fps: int, **options: Any) -> PickConfig:
    """Return the settings of the scene, and ``options`` of so101-nexus's."""
    return PickConfig(
        # Without shadows and with half of the samples per pixel: a picture costs a third, and hides nothing.
        render=RenderConfig(quality=RenderingQuality(msaa_samples=4, shadows=False)),
        spawn_center=CENTER,
        spawn_min_radius=0.0,
        spawn_max_radius=RADIUS,
        spawn_angle_half_range_deg=180.0,
        physics=physics(fps),
        **options,
    )


def side_camera() -> mujoco.MjvCamera:
    """Return the camera at the right of the table, ahead of the arm."""
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = LOOK_AT
    camera.distance, camera.elevation, camera.azimuth = DISTANCE, ELEVATION, AZIMUTH
    return camera


def blind_scene() -> PickLiftEnv:
    """Return the scene without renderers, in steps of `TIMESTEP`, and as `PickLift` draws it."""
    scene = PickLiftEnv(config=settings(round(1 / TIMESTEP), **observed(None)))
    draw_collision_shapes(scene.model)
    wrist = scene.model.camera("wrist_cam")
    wrist.fovy, wrist.pos = FIELD_OF_VIEW, MOUNT
    mujoco.mju_euler2Quat(wrist.quat, np.radians([PITCH, 0.0, 0.0]), "XYZ")
    return scene


def draw_collision_shapes(model: Any) -> None:
    """Have MuJoCo draw the arm by its collision shapes, not by its meshes."""
    arm = model.geom_bodyid != 0
    solid = model.geom_contype != 0
    cube = np.array([model.geom(i).name.startswith(CUBE) for i in range(model.ngeom)])
    model.geom_group[arm & ~solid] = HIDDEN
    model.geom_group[arm & solid] = SHOWN
    model.geom_rgba[arm & solid & ~cube] = YELLOW
    model.geom_matid[arm & solid & ~cube] = -1


def physics(fps: int) -> PhysicsConfig:
    """Return so101-nexus's own settings of the solver, with a whole number of steps per control step.

    >>> physics(30).substeps
    7
    """
    substeps = -(-1 // (fps * TIMESTEP))  # rounded up
    return PhysicsConfig(
        timestep_s=1 / fps / substeps,
        control_period_s=1 / fps,
        integrator="implicitfast",
        noslip_iterations=3,
    )


def register() -> None:
    """Make `ENV_ID` known to gymnasium."""
    if ENV_ID not in gymnasium.registry:
        gymnasium.register(ENV_ID, entry_point=f"{__name__}:{PickLift.__name__}")


def cameras(image_size: int, fps: int) -> dict[str, dict[str, Any]]:
    """Return the arm's cameras as LeRobot's ``--robot.cameras`` describes them."""
    return {
        name: {
            "type": "sim",
            "source": source,
            "width": image_size,
            "height": image_size,
            "fps": fps,
        }
        for name, source in CAMERAS.items()
    }
