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
    """A batch as one sequence: the common prefix of ``P`` tokens, then the ``S`` columns after it of all ``B`` rows.

    A row that is padded on the left has tokens of the prefix among its columns; no other token looks at them.

    Attributes:
        prefix: P, at least 1.
        rows: B.
        ids: ``(1, P + B*S)`` int64.
        positions: ``(3, 1, P + B*S)`` int64.
        visible: ``(B or 1, 1, S, P + S)`` bool, which tokens each one of a row looks at: of the prefix and its row.
    """

    prefix: int
    rows: int
    ids: Tensor
    positions: Tensor
    visible: Tensor

    @property
    def columns(self) -> int:
        """S."""
        return self.visible.shape[2]


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
    if len(ids) == 1:
        return None
    begins = mask.long().argmax(1)  # (B,)
    facts = torch.stack(
        [common_prefix(ids, mask, stop=stop), begins.min(), begins.argmin(), mask.all().long()]
    )
    prefix, start, longest, whole = facts.tolist()  # one transfer
    if prefix == 0:
        return None
    end = start + prefix
    if whole:
        own = mask[:1, end:]
    else:
        columns = torch.arange(end, ids.shape[1], device=ids.device)
        own = mask[:, end:] & (columns >= begins.unsqueeze(1) + prefix)  # (B, S), not of the prefix
    size = ids.shape[1] - end
    causal = torch.ones(size, size, dtype=torch.bool, device=ids.device).tril()
    visible = torch.cat([causal.new_ones(len(own), size, prefix), own.unsqueeze(1) & causal], dim=2)
    return PackedBatch(
        prefix=prefix,
        rows=len(ids),
        ids=torch.cat([ids[longest, start:end], ids[:, end:].flatten()]).unsqueeze(0),
        positions=torch.cat(
            [positions[:, longest, start:end], positions[:, :, end:].flatten(1)], dim=1
        ).unsqueeze(1),
        visible=visible.unsqueeze(1),
    )
