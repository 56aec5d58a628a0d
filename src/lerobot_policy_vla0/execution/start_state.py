"""Compares the state from which a policy begins with the states of its training data.

Statistics of another robot with as many joints, another calibration, or other units (degrees instead of -100 to 100)
raise no error anywhere: every action is valid, and the arm moves to a wrong place or hardly at all. A state that is far
from everything in the training data shows it before the first action.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from lerobot.configs.types import NormalizationMode
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from lerobot_policy_vla0.dataset_stats import ENDS_OF_MODE, Stats
from lerobot_policy_vla0.errors import StateError

logger = logging.getLogger(__name__)

#: A dimension is far if it lies outside the training data by more than this share of its range there. A robot at rest
#: may well be where no demonstration was.
FAR = 0.5
#: If every dimension lies outside by more than its whole range, this is no pose of the robot that was recorded.
ELSEWHERE = 1.0
#: If one lies outside by more than this many times the widest range, it is in other units: 1 rad is 57 degrees.
OTHER_UNITS = 10.0
#: Values in radians have a magnitude below this.
HALF_TURN = math.pi + 0.1
#: Ranges are measured as at least this share of the widest one: a joint that was hardly moved may stand elsewhere.
NARROWEST = 0.1


@dataclass(frozen=True)
class TrainingStates:
    """The range of the state in the training data, in the robot's units.

    Attributes:
        low: ``(S,)`` float32, the lowest value of each dimension.
        high: ``(S,)`` float32, the highest value.
        scale: ``(S,)`` float32; a state of the pre-processor times ``scale`` plus ``offset`` is in the robot's units.
        offset: ``(S,)`` float32.
        names: of the dimensions, for messages.
    """

    low: Tensor
    high: Tensor
    scale: Tensor
    offset: Tensor
    names: Sequence[str]

    @classmethod
    def from_stats(
        cls,
        stats: Stats | None,
        mode: NormalizationMode,
        action_names: Sequence[str] | None,
    ) -> Self | None:
        """Return the range that statistics hold; None if they do not hold it.

        Args:
            stats: of the training data, by feature and name.
            mode: how the pre-processor normalises the state.
            action_names: of the action's dimensions. LeRobot's robots name state and action alike, ``<joint>.pos``.
        """
        given = {
            name: torch.as_tensor(value, dtype=torch.float32).flatten().cpu()
            for name, value in (stats or {}).get(OBS_STATE, {}).items()
        }
        ends = (
            ("mean", "std") if mode is NormalizationMode.MEAN_STD else ENDS_OF_MODE.get(mode, ("min", "max"))
        )
        if not {"min", "max", *ends} <= given.keys():
            return None
        low, high = given["min"], given["max"]
        if len({len(given[name]) for name in ("min", "max", *ends)}) > 1 or not bool(
            torch.isfinite(high - low).all()
        ):
            return None
        if mode is NormalizationMode.IDENTITY:
            scale, offset = torch.ones_like(low), torch.zeros_like(low)
        elif mode is NormalizationMode.MEAN_STD:
            scale, offset = given["std"], given["mean"]
        else:
            scale = (given[ends[1]] - given[ends[0]]) / 2
            offset = given[ends[0]] + scale
        robot = action_names is not None and len(action_names) == len(low)
        if robot and all(name.endswith((".pos", ".vel")) for name in action_names or ()):
            names: Sequence[str] = list(action_names or ())
        else:
            names = [f"dimension {i}" for i in range(len(low))]
        return cls(low, high, scale, offset, names)

    def check(self, batch: Mapping[str, Any]) -> bool:
        """Compare the states of a batch with the range; log a warning if a dimension is far outside.

        Args:
            batch: the output of the pre-processor; ``observation.state`` is ``(B, S)``.

        Returns:
            Whether the batch has a state of this size.

        Raises:
            StateError: if a row cannot be of the robot in the training data (`ELSEWHERE`, `OTHER_UNITS`).
        """
        state = batch.get(OBS_STATE)
        if not isinstance(state, Tensor) or state.ndim != 2 or state.shape[1] != len(self.low):
            return False
        values = state.detach().float().cpu() * self.scale + self.offset  # (B, S)
        width = self.high - self.low
        widest = float(width.max())
        if widest == 0:
            return True
        beyond = self._beyond(values)
        ranges = beyond / width.clamp_min(NARROWEST * widest)
        moved = width > 0
        wrong = (beyond > OTHER_UNITS * widest).any(1)  # (B,)
        if int(moved.sum()) > 1:
            wrong |= (ranges[:, moved] > ELSEWHERE).all(1)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise StateError(
                f"{OBS_STATE} cannot be of the robot of the training data: {self._compare(values[row], ranges[row])}. "
                "The statistics are of another robot or in other units, and so would the actions be; none was sent. "
                f"{_CHECK}"
            )
        far = (ranges > FAR).any(0)
        if bool(far.any()):
            row = int(ranges.amax(1).argmax())
            logger.warning(
                "%s begins far from everything in the training data in %d of %d dimensions: %s. The policy knows "
                "nothing of this place, and its first actions may move the robot far and fast. %s Or begin nearer to "
                "the demonstrations, and limit steps (SO-100: --robot.max_relative_target).",
                OBS_STATE,
                int((ranges[row] > FAR).sum()),
                len(width),
                self._compare(values[row], ranges[row]),
                _CHECK,
            )
        return True

    def _beyond(self, values: Tensor) -> Tensor:
        """Return how far values ``(B, S)`` lie outside of the training data; negative inside."""
        beyond = torch.maximum(self.low - values, values - self.high)
        # Half a turn can be written with either sign: a rotation vector of LIBERO is near -pi or near pi.
        radians = torch.maximum(self.low.abs(), self.high.abs()).maximum(values.abs()) < HALF_TURN
        for turned in (values - math.tau, values + math.tau):
            again = torch.maximum(self.low - turned, turned - self.high)
            beyond = torch.where(radians, beyond.minimum(again), beyond)
        return beyond

    def _compare(self, values: Tensor, ranges: Tensor) -> str:
        """Return the values that are far, ``ranges`` outside, beside the training data's."""
        return ", ".join(
            f"{self.names[i]} is {float(values[i]):.4g} (training data: {float(self.low[i]):.4g} to "
            f"{float(self.high[i]):.4g})"
            for i in (ranges > FAR).nonzero()[:, 0].tolist()
        )


_CHECK = (
    "Check that this is the policy of this robot, the robot's calibration, and its units (SO-100: degrees, or -100 to "
    "100 with --robot.use_degrees=false)."
)
