"""The joints of an SO-100, their calibration, and the files LeRobot keeps it in.

It converts between LeRobot's units (degrees from the middle of the range; percent open for the gripper) and encoder
steps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lerobot_policy_vla0.errors import ConfigError

#: In the order of the servo ids 1 to 6.
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
_STEPS_PER_TURN = 4095  # LeRobot divides by the resolution minus one


@dataclass(frozen=True)
class JointCalibration:
    """One joint, as in LeRobot's calibration file. Positions are in encoder steps."""

    id: int  # the servo's address
    drive_mode: int  # always 0 for LeRobot's SO-100
    homing_offset: int  # the servo subtracts it from the shaft's position
    range_min: int  # lowest and highest present position
    range_max: int


Calibration = dict[str, JointCalibration]

#: Offset, lowest and highest position of each joint of a plausible arm.
_DEFAULT = (
    (-91, 740, 3350),
    (143, 850, 3240),
    (-212, 860, 3080),
    (57, 880, 3200),
    (-33, 0, 4095),
    (301, 2030, 3500),
)


def default_calibration() -> Calibration:
    """Return the calibration of a plausible arm."""
    return {
        joint: JointCalibration(id, 0, *numbers)
        for id, (joint, numbers) in enumerate(zip(JOINTS, _DEFAULT, strict=True), start=1)
    }


def load_or_write(path: Path) -> Calibration:
    """Return the calibration in a file of LeRobot's. Write the default one if there is no such file.

    Raises:
        ConfigError: if the file is no calibration of an SO-100. The file is not changed.
    """
    if not path.exists():
        calibration = default_calibration()
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({joint: asdict(numbers) for joint, numbers in calibration.items()}, indent=4)
        path.write_text(text, encoding="utf-8")
        return calibration
    try:
        found = {
            joint: JointCalibration(**numbers) for joint, numbers in json.loads(path.read_text()).items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is no calibration file ({error}): remove it to get a new one") from error
    if set(found) != set(JOINTS):
        raise ConfigError(f"{path} calibrates {sorted(found)}, an SO-100 has {sorted(JOINTS)}")
    return {joint: found[joint] for joint in JOINTS}


def to_steps(pose: Sequence[float], calibration: Calibration) -> list[float]:
    """Return a pose as present positions in encoder steps, clamped to each joint's range."""
    if len(pose) != len(JOINTS):
        raise ConfigError(f"a pose has {len(JOINTS)} numbers ({', '.join(JOINTS)}), got {len(pose)}")
    steps = []
    for joint, value in zip(JOINTS, pose, strict=True):
        numbers = calibration[joint]
        step = to_step(joint, value, numbers)
        steps.append(min(float(numbers.range_max), max(float(numbers.range_min), step)))
    return steps


def from_steps(steps: Sequence[float], calibration: Calibration) -> list[float]:
    """Return a pose; the inverse of `to_steps` within the joints' ranges."""
    return [from_step(joint, step, calibration[joint]) for joint, step in zip(JOINTS, steps, strict=True)]


def to_step(joint: str, value: float, numbers: JointCalibration) -> float:
    """Return one joint's position, degrees or percent, in encoder steps; not clamped."""
    low, high = numbers.range_min, numbers.range_max
    if joint == "gripper":
        return low + value / 100 * (high - low)
    return (low + high) / 2 + value * _STEPS_PER_TURN / 360


def from_step(joint: str, step: float, numbers: JointCalibration) -> float:
    """Return one joint's position in degrees or percent; the inverse of `to_step`."""
    low, high = numbers.range_min, numbers.range_max
    if joint == "gripper":
        return (step - low) / (high - low) * 100
    return (step - (low + high) / 2) * 360 / _STEPS_PER_TURN
