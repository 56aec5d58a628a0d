"""Masked action augmentation: hide characters of the answer so that it cannot be auto-completed.

While training, the model reads the demonstrated integers as its own earlier output. Hiding a random
share of them forces it to look at the image instead of continuing the digits (arXiv 2510.13054,
section III-C): with probability ``skip_prob`` a sample is left alone, otherwise a ratio drawn from
``U(0, max_ratio)`` of its characters is replaced by ``?`` in the input and dropped from the loss.

The end token, the newline and padding are never hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lerobot_policy_vla0.text.codec import IGNORE_INDEX, EncodedChunk


def draw_mask(
    chunk: EncodedChunk,
    *,
    max_ratio: float,
    skip_prob: float,
    unit: str,
    generator: torch.Generator,
) -> Tensor:
    """Draw which characters to hide.

    Args:
        chunk: the encoded answers, ``(B, L)``.
        max_ratio: upper end of the ratio's uniform distribution, in ``[0, 1]``.
        skip_prob: probability that a sample is left alone, in ``[0, 1]``.
        unit: ``"char"`` hides single digits and spaces, as in the paper; ``"number"`` hides all digits
            of whole numbers and leaves the spaces.
        generator: source of randomness; its device may differ from the chunk's.

    Returns:
        ``(B, L)`` bool. In each row exactly ``floor(ratio * n)`` of the ``n`` characters (or numbers)
        are true.
    """
    device = chunk.ids.device
    batch = chunk.ids.shape[0]

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=generator.device).to(device)

    ratio = uniform(batch) * max_ratio
    ratio = torch.where(uniform(batch) < skip_prob, torch.zeros_like(ratio), ratio)
    if unit == "number":
        n_numbers = int(chunk.number[0].max())  # the end token carries the index "one past the last"
        chosen = _lowest_ranks(uniform(batch, n_numbers), (ratio * n_numbers).long())
        padded = torch.cat([chosen, chosen.new_zeros(batch, 1)], dim=1)  # end and padding: never
        return padded.gather(1, chunk.number) & (chunk.place >= 0)
    scores = uniform(*chunk.ids.shape).masked_fill(~chunk.is_text, 2.0)  # non-text ranks last
    return _lowest_ranks(scores, (ratio * chunk.is_text.sum(1)).long())


def apply_mask(ids: Tensor, labels: Tensor, hidden: Tensor, mask_id: int) -> tuple[Tensor, Tensor]:
    """Replace hidden characters by ``?`` in the input and drop them from the loss.

    Args:
        ids: ``(B, L)`` int64 input ids.
        labels: ``(B, L)`` int64 labels aligned with ``ids``.
        hidden: ``(B, L)`` bool from `draw_mask`, or given for a test.
        mask_id: id of ``?``.

    Returns:
        New ``(ids, labels)``; the arguments are not modified.
    """
    return ids.masked_fill(hidden, mask_id), labels.masked_fill(hidden, IGNORE_INDEX)


def _lowest_ranks(scores: Tensor, count: Tensor) -> Tensor:
    """Mark the ``count[b]`` smallest entries of each row: ``(B, L), (B,) -> (B, L)`` bool."""
    order = scores.argsort(dim=1, stable=True)  # ties alike on every device
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(scores.shape[1], device=scores.device).expand_as(order))
    return rank < count.unsqueeze(1)
