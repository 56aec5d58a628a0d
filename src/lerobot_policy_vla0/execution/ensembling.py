"""Temporal ensembling: average the overlapping predictions of the last chunks.

With ``k`` steps executed per query, the chunk predicted ``i`` queries ago also holds a prediction for step ``j`` of the
newest chunk, at index ``j + i*k``. The executed action is the weighted mean over the last ``n`` chunks that cover the
step. The paper weights them equally (arXiv 2510.13054, section III-D); its code gives older chunks weight 0.5.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from lerobot_policy_vla0.errors import ActionError


class TemporalEnsembler:
    """Keeps the last chunks and returns the steps to execute next.

    Args:
        n_chunks: how many chunks to average, the newest included; 1 turns ensembling off.
        n_action_steps: ``k``, the steps executed per query.
        old_weight: weight of every chunk but the newest, whose weight is 1.
    """

    def __init__(self, *, n_chunks: int, n_action_steps: int, old_weight: float = 1.0) -> None:
        self.n_chunks = n_chunks
        self.n_action_steps = n_action_steps
        self.old_weight = old_weight
        self._chunks: deque[Tensor] = deque(maxlen=n_chunks)  # newest first

    def reset(self) -> None:
        """Clear all chunks for a new episode."""
        self._chunks.clear()

    def update(self, chunk: Tensor) -> Tensor:
        """Add the newest chunk and return the averaged actions to execute.

        Args:
            chunk: ``(B, T, D)`` float in ``[-1, 1]``; ``T`` and ``B`` must not change between resets.

        Returns:
            ``(B, k, D)`` float: steps ``0..k-1`` of the newest chunk, averaged with earlier chunks.

        Raises:
            ActionError: if the shape differs from the chunks since the last reset.
        """
        if self._chunks and self._chunks[0].shape != chunk.shape:
            raise ActionError(
                f"a chunk of shape {tuple(chunk.shape)} follows chunks of shape {tuple(self._chunks[0].shape)} in one "
                "episode. Call policy.reset() when the number of environments changes."
            )
        self._chunks.appendleft(chunk)
        steps = self.n_action_steps
        total = chunk[:, :steps].clone()
        weight = torch.ones(steps, device=chunk.device, dtype=chunk.dtype)  # (k,)
        for age, old in enumerate(list(self._chunks)[1:], start=1):
            overlap = old[:, age * steps : (age + 1) * steps]  # (B, <=k, D)
            covered = overlap.shape[1]
            total[:, :covered] += self.old_weight * overlap
            weight[:covered] += self.old_weight
        return total / weight.view(1, -1, 1)


def snap_binary(actions: Tensor, indices: tuple[int, ...] | list[int]) -> Tensor:
    """Snap some dimensions to -1 or +1 by their sign (0 becomes +1), e.g. LIBERO's gripper.

    Args:
        actions: ``(..., D)`` float in ``[-1, 1]``; not modified.
        indices: dimensions to snap, each in ``[0, D)``.

    Returns:
        ``(..., D)``: a new tensor, or ``actions`` itself if there are no indices.

    >>> snap_binary(torch.tensor([[0.3, -0.2]]), [1]).tolist()
    [[0.30000001192092896, -1.0]]
    """
    if not len(indices):
        return actions
    snapped = actions.clone()
    columns = actions[..., list(indices)]
    snapped[..., list(indices)] = torch.where(columns >= 0, 1.0, -1.0).to(actions.dtype)
    return snapped
