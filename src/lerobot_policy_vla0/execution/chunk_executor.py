"""Turns predicted chunks into the actions that are sent: ensembling, snapping, limiting and queueing, in this order.

All state that lasts from one query to the next is here, so that `reset` clears all of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from lerobot_policy_vla0.errors import ActionError, StatsError
from lerobot_policy_vla0.execution.ensembling import TemporalEnsembler, snap_binary
from lerobot_policy_vla0.execution.floor import Floor
from lerobot_policy_vla0.execution.realtime import LateChunks, committed_steps
from lerobot_policy_vla0.execution.step_limit import ActionLimiter, step_limits

if TYPE_CHECKING:
    from lerobot_policy_vla0.configuration_vla0 import VLA0Config
    from lerobot_policy_vla0.dataset_stats import ActionRange


@dataclass(frozen=True)
class Commitment:
    """What the robot will do while the next chunk is computed (Real-Time Chunking).

    Attributes:
        steps: ``(B, n, D)`` in ``[-1, 1]``, the first ``n`` steps of the next chunk; None if nothing is committed.
        ran_dry: whether the previous chunk has been executed to its end.
    """

    steps: Tensor | None
    ran_dry: bool


class ChunkExecutor:
    """The state of one rollout: queued actions, earlier chunks, the last action, late chunks.

    A chunk of relative actions comes in, and goes out, relative to the state of its own observation. Chunks of
    different queries can be compared only relative to one origin, so the caller passes the origin ``(B, D)`` of each
    observation (see `relative`), or None for absolute actions.

    Args:
        config: the policy's, with its features.
        actions: the range that is normalised to [-1, 1]; None if it is not known yet.
    """

    def __init__(self, config: VLA0Config, actions: ActionRange | None) -> None:
        self.config = config
        self.queue: deque[Tensor] = deque()  # (B, D) each, in order of execution
        self.limiter: ActionLimiter | None = None
        self._sent: Tensor | None = None  # (B, D), the last action of `next_action`
        self._ensembler = TemporalEnsembler(
            n_chunks=config.ensemble_n_chunks,
            n_action_steps=config.n_action_steps,
            old_weight=config.ensemble_old_weight,
        )
        self._late_chunks = LateChunks(config.chunk_size)
        # Limits in the robot's units can be converted only when the checkpoint's statistics are known.
        in_robots_units = config.max_action_step_unit == "robot" or config.min_gripper_height is not None
        if not in_robots_units or actions is not None:
            self.set_limits(actions)

    def set_limits(self, actions: ActionRange | None) -> None:
        """Convert ``max_action_step`` and ``min_gripper_height`` to normalised actions.

        Raises:
            StatsError: if one of them is in the robot's units and ``actions`` is None.
            ConfigError: see `Floor`.
        """
        config = self.config
        if config.step_limits is None:
            return
        span = None if actions is None else actions.span
        limiter = ActionLimiter(step_limits(config.step_limits, config.max_action_step_unit, span))
        if config.min_gripper_height is not None:
            if actions is None:
                raise StatsError(
                    f"min_gripper_height={config.min_gripper_height} needs the action statistics, and this policy was "
                    "built without any. Load a checkpoint with its processors (VLA0Policy.from_pretrained), or pass "
                    "dataset_stats."
                )
            limiter.floor = Floor(config.min_gripper_height, actions)
        self.limiter = limiter  # complete: after an error there is none, and the next action raises again

    @property
    def waits_for_statistics(self) -> bool:
        """Whether limits in the robot's units have not been converted yet."""
        return self.limiter is None and self.config.max_action_step is not None

    def reset(self) -> None:
        """Clear queued actions, earlier chunks and the last action."""
        self.queue.clear()
        self._ensembler.reset()
        self._late_chunks.reset()
        self._sent = None
        if self.limiter is not None:
            self.limiter.reset()

    def drop_queue(self) -> None:
        """Clear queued actions and earlier chunks; the next action is limited from the last one sent."""
        self.queue.clear()
        self._ensembler.reset()
        if self.limiter is not None:
            self.limiter.continue_from(self._sent)

    def next_action(self, predict: Callable[[], Tensor], rows: int, origin: Tensor | None) -> Tensor:
        """Return the next action ``(B, D)`` of each row; predict a chunk if the queue is empty.

        Args:
            predict: returns a chunk ``(B, T, D)`` for the current observation.
            rows: B of the current observation.
            origin: of the current observation.

        Raises:
            ActionError: if the batch size changes within an episode.
        """
        if self.queue and len(self.queue[0]) != rows:
            raise ActionError(
                f"the batch has {rows} rows, but the queued actions were predicted for {len(self.queue[0])}. "
                "Call policy.reset() when the number of environments changes."
            )
        if not self.queue:
            chunk = predict()
            if origin is not None:
                chunk = chunk - origin.unsqueeze(1)
            actions = snap_binary(self._ensembler.update(chunk), self.config.binary_action_indices)
            # The queue is executed in order, so actions limited here are limited when they are sent.
            self.queue.extend(self._limit(actions).unbind(1))
        action = self._sent = self.queue.popleft()
        return action if origin is None else action + origin

    def commit(self, left_over: Tensor | None, inference_delay: int | None, rows: int) -> Commitment:
        """Return which steps of the previous chunk will begin the next one; see `realtime`.

        Args:
            left_over: ``(T', D)`` or ``(B, T', D)`` normalised actions of the previous chunk not executed yet.
            inference_delay: control steps that pass while the next chunk is computed.
            rows: B of the current observation.

        Raises:
            ConfigError: if ``inference_delay`` is negative, or several chunks in a row came too late.
            ActionError: if ``left_over`` has a wrong shape or NaN/Inf.
        """
        self._late_chunks.check(left_over, inference_delay)
        config = self.config
        steps = committed_steps(
            left_over, inference_delay, rows, chunk_size=config.chunk_size, action_dim=config.action_dim
        )
        return Commitment(steps, ran_dry=left_over is not None and not bool(left_over.any()))

    def continue_chunk(self, chunk: Tensor, commitment: Commitment, origin: Tensor | None) -> Tensor:
        """Return a chunk ``(B, T, D)`` that begins with the committed steps, snapped and limited."""
        chunk = snap_binary(chunk, self.config.binary_action_indices)
        steps = commitment.steps
        if origin is None:
            return self._limit(chunk, executed=steps, continues=commitment.ran_dry)
        origin = origin.unsqueeze(1)
        executed = None if steps is None else steps - origin
        return self._limit(chunk - origin, executed=executed, continues=commitment.ran_dry) + origin

    def _limit(self, actions: Tensor, *, executed: Tensor | None = None, continues: bool = True) -> Tensor:
        """Return ``(B, T, D)`` with the limits applied; for arguments see `ActionLimiter.apply`."""
        if self.config.max_action_step is None:
            return actions
        if self.limiter is None:
            self.set_limits(None)  # raises StatsError: the statistics are still unknown
        assert self.limiter is not None
        return self.limiter.apply(actions, executed=executed, continues=continues)
