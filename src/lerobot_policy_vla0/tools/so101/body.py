"""The simulated arm as a body of the emulated one: servos and wire are the emulator's, motion and pictures MuJoCo's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import mujoco
import numpy as np
from so101_nexus.config import SO101_JOINT_NAMES

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.so100_emulator.calibration import (
    Calibration,
    JointCalibration,
    from_step,
    to_step,
)
from lerobot_policy_vla0.tools.so101.scene import (
    CAMERAS,
    CUBE,
    TIMESTEP,
    blind_scene,
    side_camera,
    within_speed,
)

HOLD = 7  # steps of the physics between two looks at how far a joint may be told to go
#: Seconds that are made up for at once. What is later is lost: a host waits 50 ms for an answer.
_LONGEST = 0.5


class PhysicalArm:
    """An SO-101 and a cube that moves as time passes, from construction on.

    The motors are MuJoCo's: a servo's gains and speeds, which its registers hold, change nothing.

    Args:
        seed: of the cube's place.
        clock: returns seconds that never decrease.
    """

    views: tuple[str, ...] = tuple(CAMERAS)

    def __init__(self, seed: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._scene = blind_scene()
        self._model, self._data = self._scene.model, self._scene.data
        self._clock = clock
        self._lock = threading.RLock()
        self._own = threading.local()  # a renderer belongs to the thread that made it
        self._joints = [self._model.joint(name) for name in SO101_JOINT_NAMES]
        self._positions = [joint.qposadr[0] for joint in self._joints]
        self._motors = [self._model.actuator(name).id for name in SO101_JOINT_NAMES]
        self._gains = self._model.actuator_gainprm[self._motors, 0].copy()
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Put the arm into its rest pose, and the cube where ``seed`` puts it."""
        with self._lock:
            self._scene.reset(seed=seed)
            self._height = self._cube_height()
            self._goals = self._angles()
            self._step = 0
            self._time = self._clock()

    @property
    def lift_height(self) -> float:
        """How far above its first place the cube is, metres."""
        with self._lock:
            self._advance()
            return self._cube_height() - self._height

    def shafts(self, calibration: Calibration) -> Sequence[JointShaft]:
        """Return the six joints, for servos that are calibrated like this."""
        return [JointShaft(self, index, calibration[name]) for index, name in enumerate(SO101_JOINT_NAMES)]

    def angle(self, index: int) -> float:
        """Return where a joint is now, radians."""
        with self._lock:
            self._advance()
            return float(self._angles()[index])

    def aim(self, index: int, goal: float | None) -> None:
        """Send a joint to ``goal``, radians; None lets it hang."""
        with self._lock:
            self._advance()
            motor = self._motors[index]
            gain = self._gains[index] if goal is not None else 0.0
            self._model.actuator_gainprm[motor, 0] = gain
            self._model.actuator_biasprm[motor, 1] = -gain
            if goal is not None:
                self._goals[index] = np.clip(goal, *self._joints[index].range)

    def limits(self, index: int) -> tuple[float, float]:
        """Return a joint's range, radians."""
        low, high = self._joints[index].range
        return float(low), float(high)

    def render(self, view: str, width: int, height: int) -> np.ndarray[Any, Any]:
        """Return what a camera sees now: ``(height, width, 3)`` uint8 RGB."""
        if view not in self.views:
            raise ConfigError(f"the simulated arm has the cameras {', '.join(self.views)}, not {view!r}")
        drawers = self._own.__dict__.setdefault("drawers", {})
        if (key := (view, width, height)) not in drawers:
            renderer = mujoco.Renderer(self._model, height, width)
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
            drawers[key] = (
                renderer,
                mujoco.MjData(self._model),
                side_camera() if view == "side" else "wrist_cam",
            )
        renderer, data, camera = drawers[key]
        with self._lock:
            self._advance()
            data.qpos[:] = self._data.qpos
        mujoco.mj_forward(self._model, data)
        renderer.update_scene(data, camera=camera)
        picture: np.ndarray[Any, Any] = renderer.render()
        return picture

    def _advance(self) -> None:
        now = self._clock()
        self._time = max(self._time, now - _LONGEST)
        steps = int((now - self._time) / TIMESTEP)
        self._time += steps * TIMESTEP
        for _ in range(steps):
            if self._step % HOLD == 0:
                self._data.ctrl[self._motors] = within_speed(self._angles(), self._goals, HOLD * TIMESTEP)
            mujoco.mj_step(self._model, self._data)
            self._step += 1

    def _angles(self) -> np.ndarray[Any, Any]:
        angles: np.ndarray[Any, Any] = self._data.qpos[self._positions]
        return angles

    def _cube_height(self) -> float:
        return float(self._data.body(CUBE).xpos[2])


class JointShaft:
    """One joint in encoder steps of a servo, before its homing offset."""

    def __init__(self, arm: PhysicalArm, index: int, calibration: JointCalibration) -> None:
        self._arm, self._index, self._calibration = arm, index, calibration
        self._low, self._high = arm.limits(index)
        self._name = SO101_JOINT_NAMES[index]

    def aim(self, goal: float | None) -> None:
        """Go to ``goal`` from now on; None: no torque."""
        self._arm.aim(self._index, None if goal is None else self._radians(goal))

    def position(self) -> float:
        """Return where the joint is now."""
        angle = self._arm.angle(self._index)
        share = (angle - self._low) / (self._high - self._low)
        value = 100 * share if self._name == "gripper" else np.degrees(angle)
        return to_step(self._name, value, self._calibration) + self._calibration.homing_offset

    def _radians(self, shaft: float) -> float:
        value = from_step(self._name, shaft - self._calibration.homing_offset, self._calibration)
        if self._name == "gripper":
            return self._low + value / 100 * (self._high - self._low)
        return float(np.radians(value))
