"""Masked action augmentation: hides random characters of the answer in training (arXiv 2510.13054, section III-C).

In training the model reads the demonstrated integers as its own earlier output. Hidden characters force it to look at
the image instead of continuing the digits. With probability ``skip_prob`` a sample does not change; otherwise a share
of its characters, drawn from ``U(0, max_ratio)``, becomes ``?`` in the input and leaves the loss. The end token, the
newline and padding are never hidden.
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
        max_ratio: largest share to hide, in ``[0, 1]``.
        skip_prob: probability that a sample does not change, in ``[0, 1]``.
        unit: ``"char"`` hides single digits and spaces, as in the paper; ``"number"`` hides all digits of a number.
        generator: the random generator, on any device.

    Returns:
        ``(B, L)`` bool, true for ``floor(ratio * n)`` of the ``n`` characters (or numbers) of each row.
    """
    device = chunk.ids.device
    batch = chunk.ids.shape[0]

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=generator.device).to(device)

    ratio = uniform(batch) * max_ratio
    ratio = torch.where(uniform(batch) < skip_prob, torch.zeros_like(ratio), ratio)
    if unit == "number":
        chosen = _lowest_ranks(uniform(batch, chunk.n_numbers), (ratio * chunk.n_numbers).long())
        padded = torch.cat([chosen, chosen.new_zeros(batch, 1)], dim=1)  # never end token and padding
        return padded.gather(1, chunk.number) & (chunk.place >= 0)
    scores = uniform(*chunk.ids.shape).masked_fill(~chunk.is_text, 2.0)  # other tokens rank last
    return _lowest_ranks(scores, (ratio * chunk.is_text.sum(1)).long())


def apply_mask(ids: Tensor, labels: Tensor, hidden: Tensor, mask_id: int) -> tuple[Tensor, Tensor]:
    """Replace ``hidden`` characters by ``?`` in the input and drop them from the loss; all are ``(B, L)``.

    Returns:
        New ids and labels; the arguments do not change.
    """
    return ids.masked_fill(hidden, mask_id), labels.masked_fill(hidden, IGNORE_INDEX)


def _lowest_ranks(scores: Tensor, count: Tensor) -> Tensor:
    """Mark the ``count[b]`` smallest entries of each row: ``(B, L), (B,) -> (B, L)`` bool."""
    order = scores.argsort(dim=1, stable=True)  # stable: ties rank the same on every device
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(scores.shape[1], device=scores.device).expand_as(order))
    return rank < count.unsqueeze(1)
