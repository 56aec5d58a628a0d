"""Keys of a terminal move the fingers."""

from __future__ import annotations

import os
import pty
import termios
from collections.abc import Iterator

import mujoco
import numpy as np
import pytest

pytest.importorskip("so101_nexus", reason="pip install 'lerobot_policy_vla0[so101]'")

from lerobot.teleoperators import make_teleoperator_from_config
from so101_nexus import get_so101_mujoco_model_path
from so101_nexus.config import SO101_JOINT_NAMES

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.so101.keyboard import HOME, KeyboardHand, KeyboardHandConfig
from lerobot_policy_vla0.tools.so101.scene import FINGERS


@pytest.fixture
def keys() -> Iterator[tuple[int, KeyboardHand]]:
    """The end of a terminal that a user types at, and the teleoperator as LeRobot makes it."""
    user, terminal = pty.openpty()
    hand = make_teleoperator_from_config(KeyboardHandConfig(terminal=os.ttyname(terminal)))
    assert isinstance(hand, KeyboardHand)
    before = termios.tcgetattr(terminal)
    hand.connect()
    yield user, hand
    hand.disconnect()
    assert termios.tcgetattr(terminal) == before
    os.close(user)
    os.close(terminal)


def fingers(goal: dict[str, float]) -> np.ndarray:
    """Return where a goal brings the point between the fingertips, metres."""
    model = mujoco.MjModel.from_xml_path(str(get_so101_mujoco_model_path()))
    data = mujoco.MjData(model)
    for joint in SO101_JOINT_NAMES[:5]:
        data.qpos[model.joint(joint).qposadr[0]] = np.radians(goal[f"{joint}.pos"])
    mujoco.mj_kinematics(model, data)
    return data.site(FINGERS).xpos


def test_keys_move_the_fingers_and_the_gripper(keys: tuple[int, KeyboardHand]) -> None:
    user, hand = keys
    first = hand.get_action()
    assert first.keys() == hand.action_features.keys()
    assert fingers(first) == pytest.approx(HOME, abs=1e-3)
    assert hand.get_action() == first  # no key, no motion
    os.write(user, b"wwa f?")
    goal = hand.get_action()
    assert fingers(goal) == pytest.approx(np.add(HOME, [0.01, 0.005, -0.005]), abs=1e-3)
    assert (first["gripper.pos"], goal["gripper.pos"]) == (60, 0)
    os.write(user, b"f" * 100)
    assert 0 < fingers(hand.get_action())[2] < 0.01  # never into the table


def test_without_a_terminal_it_says_so() -> None:
    with pytest.raises(ConfigError, match=r"reads the terminal /dev/null: .*Run the command in a terminal"):
        KeyboardHand(KeyboardHandConfig(terminal="/dev/null")).connect()
