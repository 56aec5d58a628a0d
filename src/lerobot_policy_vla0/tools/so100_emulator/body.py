"""What can move an arm in place of the servos' own law of motion: a body with physics, which something else brings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lerobot_policy_vla0.tools.so100_emulator.calibration import Calibration


class Shaft(Protocol):
    """One joint of a body, in encoder steps of its servo, before the homing offset. The bus serialises the calls."""

    def aim(self, goal: float | None) -> None:
        """Go to ``goal`` from now on; None: no torque."""

    def position(self) -> float:
        """Return where the joint is now."""


class Body(Protocol):
    """An arm that something else simulates, in real time. Its methods may be called from any thread.

    Attributes:
        views: the names of what its cameras see.
    """

    views: tuple[str, ...]

    def shafts(self, calibration: Calibration) -> Sequence[Shaft]:
        """Return the six joints, for servos that are calibrated like this."""

    def render(self, view: str, width: int, height: int) -> NDArray[np.uint8]:
        """Return what a camera sees now: ``(height, width, 3)`` RGB."""

    def reset(self, seed: int) -> None:
        """Begin again, with everything where ``seed`` puts it."""
