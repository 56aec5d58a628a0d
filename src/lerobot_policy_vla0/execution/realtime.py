"""Real-Time Chunking: the next chunk begins with the steps of the previous one that are executed meanwhile.

While a chunk is computed, the robot executes the previous one. Those steps can no longer change, so the policy writes
them as the beginning of its answer and the model continues the text. This needs no retraining and no guidance, and
there is no jump between the chunks.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from lerobot_policy_vla0.errors import ActionError, ConfigError

logger = logging.getLogger(__name__)

#: One late chunk is only logged; this many in a row mean that the policy is too slow, which is an error.
MOST_LATE_CHUNKS = 3


class LateChunks:
    """Tells a single late chunk from a policy that is too slow.

    LeRobot passes the longest delay so far, so one slow call (a busy disk) must not end the run. If every chunk arrives
    after its own end, however, the robot never moves, and the run must end.
    """

    def __init__(self, chunk_size: int) -> None:
        self.chunk_size = chunk_size
        self._late = 0

    def reset(self) -> None:
        """Start a new episode."""
        self._late = 0

    def check(self, left_over: Tensor | None, inference_delay: int | None) -> None:
        """Count late chunks; called with `committed_steps`' arguments at every ``predict_action_chunk``.

        Raises:
            ConfigError: at the third call in a row with no step left to execute and a delay longer than a chunk.
        """
        too_long = isinstance(inference_delay, int) and inference_delay > self.chunk_size
        if not too_long or left_over is None or bool(left_over.any()):
            self._late = 0
            return
        self._late += 1
        if self._late >= MOST_LATE_CHUNKS:
            raise ConfigError(
                f"{self._late} chunks in a row took longer to compute (up to {inference_delay} control steps) than to "
                f"execute (chunk_size={self.chunk_size}): the robot never moves. Use a larger chunk_size, a lower fps, "
                "or a faster decoder."
            )
        logger.warning(
            "a chunk took %s control steps to compute, more than its chunk_size=%d: the robot waited for the next one",
            inference_delay,
            self.chunk_size,
        )


def committed_steps(
    left_over: Tensor | None, inference_delay: int | None, batch: int, *, chunk_size: int, action_dim: int
) -> Tensor | None:
    """Return the steps that will have been executed when the new chunk arrives.

    Args:
        left_over: ``(T', D)`` or ``(B, T', D)`` normalised actions not executed yet, ``T' >= 0``. Rows of zeros at its
            end are LeRobot's padding and are ignored.
        inference_delay: control steps executed while the model computes: that many first rows of ``left_over`` are
            committed. It may be longer than ``left_over`` or the chunk.
        batch: rows of the observation.
        chunk_size: steps of a chunk.
        action_dim: D.

    Returns:
        ``(B, n, D)`` in ``[-1, 1]`` with ``0 < n <= chunk_size``, or None if nothing is committed.

    Raises:
        ConfigError: if ``inference_delay`` is no whole number or negative.
        ActionError: for a wrong shape, or NaN/Inf among the committed steps.
    """
    if inference_delay is not None and (not isinstance(inference_delay, int) or inference_delay < 0):
        raise ConfigError(
            f"inference_delay={inference_delay!r} must be a whole number of control steps, >= 0."
        )
    if left_over is None or not inference_delay:
        return None
    rows = left_over.unsqueeze(0) if left_over.ndim == 2 else left_over
    if rows.ndim != 3 or rows.shape[2] != action_dim or rows.shape[0] not in (1, batch):
        raise ActionError(
            f"prev_chunk_left_over has shape {tuple(left_over.shape)}, expected (steps, {action_dim}) or "
            f"({batch}, steps, {action_dim}): normalised actions of the chunk being executed."
        )
    real = (rows != 0).any(2).any(0)  # (T',)
    length = int(real.nonzero().amax()) + 1 if bool(real.any()) else 0
    rows = rows[:, : min(inference_delay, length, chunk_size)].expand(batch, -1, -1)
    if not bool(torch.isfinite(rows).all()):
        raise ActionError(
            f"prev_chunk_left_over has NaN or infinite values in its first {rows.shape[1]} steps, which the robot is "
            "about to execute. The previous chunk was damaged: reset the policy."
        )
    return rows.clamp(-1.0, 1.0) if rows.shape[1] else None
