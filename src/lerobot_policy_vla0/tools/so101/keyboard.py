"""A keyboard that moves the simulated arm's fingers: ``--teleop.type=keyboard_hand``, a LeRobot teleoperator.

It reads the terminal, so it needs neither a screen nor rights on input devices.
"""

from __future__ import annotations

import os
import termios
import tty
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from lerobot.teleoperators import Teleoperator, TeleoperatorConfig
from so101_nexus import get_so101_mujoco_model_path
from so101_nexus.config import SO101_JOINT_NAMES

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.so101.reach import Reach

#: Metres ahead, to the left and up that a key moves the fingers.
STEP = 0.005
MOVES = {"w": (1, 0, 0), "s": (-1, 0, 0), "a": (0, 1, 0), "d": (0, -1, 0), "r": (0, 0, 1), "f": (0, 0, -1)}
GRIPPER = " "
#: Where the fingers go first, and where they stay between, metres.
HOME, LEAST, MOST = (0.2, 0.0, 0.08), (0.1, -0.25, 0.006), (0.35, 0.25, 0.25)
OPEN, CLOSED = 60.0, 0.0  # percent
HELP = "w/s ahead, back; a/d left, right; r/f up, down; space closes and opens the gripper; Ctrl-C ends"


@TeleoperatorConfig.register_subclass("keyboard_hand")
@dataclass(kw_only=True)
class KeyboardHandConfig(TeleoperatorConfig):
    """The terminal whose keys are read."""

    terminal: str = "/dev/tty"


class KeyboardHand(Teleoperator):
    """Goals for the six joints from keys: five millimetres a key, a held key repeats."""

    config_class = KeyboardHandConfig
    name = "keyboard_hand"

    def __init__(self, config: KeyboardHandConfig) -> None:
        super().__init__(config)
        self.config = config
        self._reach = Reach(mujoco.MjModel.from_xml_path(str(get_so101_mujoco_model_path())))
        self._place, self._gripper = np.array(HOME), OPEN
        self._terminal: int | None = None
        self._before: list[Any] = []

    @property
    def action_features(self) -> dict[str, type]:
        """Six joints, as an arm of LeRobot's has them."""
        return dict.fromkeys((f"{joint}.pos" for joint in SO101_JOINT_NAMES), float)

    @property
    def feedback_features(self) -> dict[str, type]:
        """None: a keyboard feels nothing."""
        return {}

    @property
    def is_connected(self) -> bool:
        """Whether the terminal is read."""
        return self._terminal is not None

    @property
    def is_calibrated(self) -> bool:
        """A keyboard needs no calibration."""
        return True

    def connect(self, calibrate: bool = True) -> None:
        """Read keys without waiting for a line.

        Raises:
            ConfigError: if there is no terminal.
        """
        try:
            self._terminal = os.open(self.config.terminal, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
            self._before = termios.tcgetattr(self._terminal)
            tty.setcbreak(self._terminal, termios.TCSANOW)
        except (OSError, termios.error) as error:
            if self._terminal is not None:  # opened, but no terminal
                os.close(self._terminal)
                self._terminal = None
            raise ConfigError(
                f"--teleop.type=keyboard_hand reads the terminal {self.config.terminal}: {error}. Run the command in a "
                "terminal, or give another one with --teleop.terminal."
            ) from error
        print(HELP, flush=True)

    def calibrate(self) -> None:
        """Nothing to do."""

    def configure(self) -> None:
        """Nothing to do."""

    def get_action(self) -> dict[str, float]:
        """Return the goal after the keys since the last call: degrees, and percent open for the gripper."""
        assert self._terminal is not None
        try:
            keys = os.read(self._terminal, 1024).decode(errors="ignore")
        except BlockingIOError:  # no key
            keys = ""
        for key in keys:
            self._place = np.clip(self._place + STEP * np.array(MOVES.get(key, (0, 0, 0))), LEAST, MOST)
            if key == GRIPPER:
                self._gripper = CLOSED if self._gripper == OPEN else OPEN
        goal = [*np.degrees(self._reach(self._place)), self._gripper]
        return dict(zip(self.action_features, map(float, goal), strict=True))

    def send_feedback(self, feedback: dict[str, Any]) -> None:
        """A keyboard feels nothing."""

    def disconnect(self) -> None:
        """Give the terminal back as it was."""
        if self._terminal is not None:
            termios.tcsetattr(self._terminal, termios.TCSANOW, self._before)
            os.close(self._terminal)
            self._terminal = None
