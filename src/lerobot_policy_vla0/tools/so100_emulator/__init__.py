"""Emulates an SO-100: servo buses on pseudo-terminals, a rendered camera, and faults on demand.

LeRobot's own ``so100_follower``, ``so100_leader`` and ``zmq`` camera connect to it unchanged, through the real
``feetech-servo-sdk`` and ``pyserial``. It serves tests, demonstrations and development without hardware; see
``docs/so100.md``.

>>> import tempfile
>>> from pathlib import Path
>>> with SO100Emulator(Path(tempfile.mkdtemp())) as emulator:
...     list(emulator.arms)
['follower', 'leader']
"""

from __future__ import annotations

from lerobot_policy_vla0.tools.so100_emulator.arm import Arm, SteppedArm
from lerobot_policy_vla0.tools.so100_emulator.bus import BusFaults, ServoBus
from lerobot_policy_vla0.tools.so100_emulator.bus_log import BusLog, Goal
from lerobot_policy_vla0.tools.so100_emulator.calibration import JOINTS
from lerobot_policy_vla0.tools.so100_emulator.camera import CameraSettings, SceneCamera
from lerobot_policy_vla0.tools.so100_emulator.emulator import SO100Emulator
from lerobot_policy_vla0.tools.so100_emulator.kinematics import gripper_tip, joint_points, reach
from lerobot_policy_vla0.tools.so100_emulator.port import SerialPort
from lerobot_policy_vla0.tools.so100_emulator.scene import Scene
from lerobot_policy_vla0.tools.so100_emulator.servo import Servo
from lerobot_policy_vla0.tools.so100_emulator.trajectory import REST, Trajectory, through, wave

__all__ = [
    "JOINTS",
    "REST",
    "Arm",
    "BusFaults",
    "BusLog",
    "CameraSettings",
    "Goal",
    "SO100Emulator",
    "Scene",
    "SceneCamera",
    "SerialPort",
    "Servo",
    "ServoBus",
    "SteppedArm",
    "Trajectory",
    "gripper_tip",
    "joint_points",
    "reach",
    "through",
    "wave",
]
