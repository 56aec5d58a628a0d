"""Real-Time Chunking: what is left of the chunk being executed, as the beginning of the next answer.

While a chunk is computed the robot goes on executing the one before. Those steps cannot be changed any more, so
for a policy that writes text they are a given beginning of the answer, and the model continues from them: no
retraining, no guidance, and no jump where the chunks meet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lerobot_policy_vla0.codec import quantise
from lerobot_policy_vla0.errors import ActionError, ConfigError

if TYPE_CHECKING:
    from lerobot_policy_vla0.codec import ActionCodec


def committed_bins(
    codec: ActionCodec, left_over: Tensor | None, inference_delay: int | None, batch: int
) -> Tensor | None:
    """Return the bins of the steps that will have been executed when the new chunk arrives.

    Args:
        codec: of the policy.
        left_over: ``(T', D)`` or ``(B, T', D)`` normalised actions not executed yet, ``T' >= 0``. LeRobot fills
            it up with rows of zeros; rows of zeros at its end are therefore no commitments.
        inference_delay: steps that will be executed while the model computes; the first so many rows of
            ``left_over`` are committed, fewer if it has fewer.
        batch: rows of the observation.

    Returns:
        ``(B, n, D)`` int64 with ``0 <= n <= chunk_size``, or None if nothing is committed.

    Raises:
        ConfigError: if ``inference_delay`` is negative or longer than the chunk.
        ActionError: for a wrong shape, or NaN/Inf among the committed steps.
    """
    if inference_delay is not None and (
        not isinstance(inference_delay, int) or not 0 <= inference_delay <= codec.chunk_size
    ):
        raise ConfigError(
            f"inference_delay={inference_delay!r} must be a whole number of steps in [0, chunk_size="
            f"{codec.chunk_size}]: a chunk that takes longer to compute than to execute never moves the robot. Use a "
            "larger chunk_size, a lower fps, or a faster decoder."
        )
    if left_over is None or not inference_delay:
        return None
    rows = left_over.unsqueeze(0) if left_over.ndim == 2 else left_over
    if rows.ndim != 3 or rows.shape[2] != codec.action_dim or rows.shape[0] not in (1, batch):
        raise ActionError(
            f"prev_chunk_left_over has shape {tuple(left_over.shape)}, expected (steps, {codec.action_dim}) or "
            f"({batch}, steps, {codec.action_dim}): normalised actions of the chunk being executed."
        )
    real = (rows != 0).any(2).any(0)  # (T',)
    length = int(real.nonzero().amax()) + 1 if bool(real.any()) else 0
    rows = rows[:, : min(inference_delay, length)].expand(batch, -1, -1)
    if not bool(torch.isfinite(rows).all()):
        raise ActionError(
            f"prev_chunk_left_over has NaN or infinite values in its first {rows.shape[1]} steps, which the robot is "
            "about to execute. The previous chunk was damaged: reset the policy."
        )
    return quantise(rows, codec.n_bins)[0] if rows.shape[1] else None
