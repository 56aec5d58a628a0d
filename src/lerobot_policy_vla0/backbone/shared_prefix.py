"""Packs a batch of sequences that begin alike, so that a causal model computes the common beginning once.

Up to its first image every prompt of a policy is the same text, and what causal attention computes for a token depends
on nothing after it. Knows ids, masks and positions; knows nothing about what they mean, nor about models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedBatch:
    """A batch as one sequence: the common prefix of ``P`` tokens, then ``S`` tokens of each of the ``B`` rows.

    Rows begin right after the prefix: what was padding on the left is filler at the end, which no token looks at.

    Attributes:
        prefix: P, at least 1.
        begins: ``(B,)`` int64, the first column of each row that is not padding.
        last_begin: the largest of them.
        ids: ``(1, P + B*S)`` int64.
        positions: ``(3, 1, P + B*S)`` int64.
    """

    prefix: int
    begins: Tensor
    last_begin: int
    ids: Tensor
    positions: Tensor

    def has_columns(self, first: int) -> bool:
        """Tell whether no column of the batch from ``first`` on is part of the prefix."""
        return first >= self.last_begin + self.prefix

    def columns(self, states: Tensor, first: int, length: int) -> Tensor:
        """Return the states of the batch's columns ``first`` to ``length``: ``(B, length - first, hidden)``.

        Args:
            states: ``(P + B*S, hidden)``.
            first: see `has_columns`.
            length: the batch's L.
        """
        rows = len(self.begins)
        own = states[self.prefix :].view(rows, -1, states.shape[1])  # (B, S, hidden)
        at = torch.arange(first, length, device=states.device) - self.begins.unsqueeze(1) - self.prefix
        return own[torch.arange(rows, device=states.device).unsqueeze(1), at]


def common_prefix(ids: Tensor, mask: Tensor, *, stop: int) -> Tensor:
    """Return how many tokens all rows begin with alike, padding on the left apart, before the first ``stop``: ``()``.

    Args:
        ids: ``(B, L)`` int64.
        mask: ``(B, L)`` bool, false on padding.
        stop: the prefix ends before this id.

    >>> pad, image = 0, 9
    >>> ids = torch.tensor([[pad, 5, 6, image, 7], [5, 6, image, 7, 8]])
    >>> int(common_prefix(ids, ids != pad, stop=image))
    2
    """
    begins = mask.long().argmax(1, keepdim=True)  # (B, 1)
    columns = (begins + torch.arange(ids.shape[1], device=ids.device)) % ids.shape[
        1
    ]  # (B, L), each row's own first
    aligned, real = ids.gather(1, columns), mask.gather(1, columns)
    alike = (aligned == aligned[:1]) & (aligned != stop) & real
    return alike.all(0).long().cumprod(0).sum()


def pack(ids: Tensor, mask: Tensor, positions: Tensor, *, stop: int) -> PackedBatch | None:
    """Pack a batch; None if nothing would be saved: a single row, or nothing in common before ``stop``.

    Args:
        ids: ``(B, L)`` int64.
        mask: ``(B, L)`` bool, false on padding, which is left or right of a row's tokens.
        positions: ``(3, B, L)`` int64.
        stop: no token from this id on is shared.
    """
    rows, length = ids.shape
    if rows == 1:
        return None
    begins = mask.long().argmax(1)  # (B,)
    facts = torch.stack([common_prefix(ids, mask, stop=stop), begins.min(), begins.max()])
    prefix, start, last_begin = facts.tolist()  # one transfer
    if prefix == 0:
        return None
    step = torch.arange(length - start - prefix, device=ids.device)
    columns = begins.unsqueeze(1) + prefix + step  # (B, S)
    past = columns >= length
    columns = columns.clamp(max=length - 1)
    common = begins[0] + torch.arange(prefix, device=ids.device)
    rest = ids.gather(1, columns)
    rest = torch.where(past, ids[0, common[0]], rest)
    places = positions.gather(2, columns.expand(3, -1, -1))
    return PackedBatch(
        prefix=prefix,
        begins=begins,
        last_begin=last_begin,
        ids=torch.cat([ids[0, common], rest.flatten()]).unsqueeze(0),
        positions=torch.cat([positions[:, 0, common], places.flatten(1)], dim=1).unsqueeze(1),
    )
