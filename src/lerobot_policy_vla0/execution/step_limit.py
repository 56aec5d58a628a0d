"""Limits how far an action may be from the one executed before it: the option ``max_action_step``; see `floor` too.

Actions are normalised; only `step_limits` knows the robot's units.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lerobot_policy_vla0.errors import ActionError, ConfigError, StatsError

if TYPE_CHECKING:
    from lerobot_policy_vla0.execution.floor import Floor

logger = logging.getLogger(__name__)

#: Width of the normalised range [-1, 1].
_WIDTH = 2.0
#: The rounding error of a difference of float32 actions is below this, in normalised units.
_ROUNDING = 1e-6


def step_limits(limits: Sequence[float | None], unit: str, span: Tensor | None) -> Tensor:
    """Return the largest change of each normalised dimension per control step; infinite means no limit.

    Args:
        limits: per dimension, in ``unit``; None means no limit.
        unit: ``range`` (fractions of the range) or ``robot``.
        span: ``(D,)`` width of the normalised range [-1, 1] in the robot's units; needed for ``robot``.

    Returns:
        ``(D,)`` float32, positive.

    Raises:
        StatsError: if the unit is ``robot`` and ``span`` is None.
        ConfigError: if every limit is wider than the range.

    >>> step_limits([0.05, None], "range", None).tolist()
    [0.10000000149011612, inf]
    >>> step_limits([5.0, 5.0], "robot", torch.tensor([100.0, 4.0])).tolist()  # of 4 degrees, 5 is no limit
    [0.10000000149011612, inf]
    """
    # The device is explicit, because a skeleton of the policy is built on the meta device.
    wanted = torch.tensor(
        [math.inf if limit is None else limit for limit in limits], dtype=torch.float64, device="cpu"
    )
    if unit == "robot":
        if span is None:
            raise StatsError(
                "max_action_step_unit='robot' needs the action statistics to convert the limits, and this policy was "
                "built without any. Load a checkpoint with its processors (VLA0Policy.from_pretrained), pass "
                "dataset_stats, or give the limits as fractions with max_action_step_unit='range'."
            )
        wanted = wanted / span.double().cpu()  # x / 0 = inf: a dimension that never moves has no limit
    # No action can change by more than the whole range, so a limit of 1.0 or more is none.
    wanted = torch.where(wanted >= 1.0, math.inf, wanted * _WIDTH)
    if bool(torch.isinf(wanted).all()):
        spans = None if span is None else [round(float(width), 4) for width in span]
        raise ConfigError(
            f"max_action_step={list(limits)} ({unit}) would never limit anything: the actions of the training data "
            f"span {spans} in the robot's units. Lower it, or set it to None."
        )
    return wanted.float()


def limit_steps(
    actions: Tensor, limits: Tensor, previous: Tensor | None, floor: Floor | None = None
) -> Tensor:
    """Return actions whose dimensions change by at most their limit from one step to the next.

    Each step goes as far toward the wanted one as it may, so a limited motion arrives later and does not overshoot.

    Args:
        actions: ``(B, T, D)`` float, in order of execution.
        limits: ``(D,)`` positive; infinite means no limit.
        previous: ``(B, D)`` the action before the first step; None does not limit the first step.
        floor: under which no step leads.

    Returns:
        ``(B, T, D)``, a new tensor.

    >>> limit_steps(
    ...     torch.tensor([[[0.0], [1.0], [1.0], [0.4]]]), torch.tensor([0.5]), None
    ... ).flatten().tolist()
    [0.0, 0.5, 1.0, 0.5]
    """
    limited = actions.clone()
    for step in range(actions.shape[1]):
        wanted = actions[:, step]
        if previous is not None:
            change = wanted - previous  # (B, D)
            # An allowed action stays bit-identical.
            limited[:, step] = torch.where(
                change.abs() <= limits + _ROUNDING, wanted, previous + change.clamp(-limits, limits)
            )
        if floor is not None:
            limited[:, step] = floor.keep_above(limited[:, step], previous, limits)
        previous = limited[:, step]
    return limited


class ActionLimiter:
    """Applies `limit_steps` to one chunk after another, and logs what it changes.

    Args:
        limits: ``(D,)`` as `step_limits` returns them.

    Attributes:
        steps: steps seen since the last `reset`, over all rows of the batch.
        limited: how many of them were changed.
    """

    def __init__(self, limits: Tensor) -> None:
        self.limits = limits
        self.steps = 0
        self.limited = 0
        self.floor: Floor | None = None
        self._previous: Tensor | None = None  # (B, D)

    def reset(self) -> None:
        """Log how many actions were limited and forget the last one, so that the next starts a new motion."""
        if self.limited:
            logger.warning(
                "max_action_step limited %d of the %d actions since the last reset", self.limited, self.steps
            )
        self.steps = self.limited = 0
        self._previous = None

    def continue_from(self, action: Tensor | None) -> None:
        """Limit the next step from this action ``(B, D)``; None leaves that step free."""
        self._previous = action

    def apply(self, actions: Tensor, *, executed: Tensor | None = None, continues: bool = True) -> Tensor:
        """Return the actions to execute, ``(B, T, D)``.

        Args:
            actions: ``(B, T, D)`` float in ``[-1, 1]``, in order of execution.
            executed: ``(B, n, D)`` the first ``n <= T`` of them, if the robot executes these in any case; they are
                returned unchanged, and the rest is limited from the last of them.
            continues: whether the actions follow the last ones returned; False means that the action before is unknown.

        Raises:
            ActionError: if the batch size changes between resets.
        """
        given = 0 if executed is None else executed.shape[1]
        previous = self._previous if continues else None
        if executed is not None and given:
            previous = executed[:, -1]
        if previous is not None and len(previous) != len(actions):
            raise ActionError(
                f"a chunk of {len(actions)} rows follows one of {len(previous)}. Call policy.reset() when the number "
                "of environments changes."
            )
        free = actions[:, given:]
        limited = limit_steps(free, self.limits.to(actions.device), previous, self.floor)
        self._note(free, limited)
        if executed is not None:
            limited = torch.cat([executed.to(limited), limited], dim=1)
        self._previous = limited[:, -1]
        return limited

    def _note(self, wanted: Tensor, limited: Tensor) -> None:
        """Count limited steps, and log the first."""
        held_back = (wanted - limited).abs()  # (B, T, D)
        bites = int((held_back > 0).any(-1).sum())
        if bites and not self.limited:
            worst = int(held_back.amax((0, 1)).argmax())
            logger.warning(
                "max_action_step bites: dimension %d was to change by more than %.4g of its range in one step%s; it "
                "arrives up to %.4g of the range late. This is said once, reset() counts.",
                worst,
                float(self.limits[worst]) / _WIDTH,
                "" if self.floor is None else ", or to lead too low",
                float(held_back[..., worst].max()) / _WIDTH,
            )
        self.limited += bites
        self.steps += wanted.shape[0] * wanted.shape[1]
