"""The decoder's key/value cache: it is allocated once, and every row is written at columns of its own.

transformers' own static cache appends to all rows at one position. Here the rows of a batch advance at different
speeds, and a rejected draft is overwritten. transformers' attention layers call `AnswerCache.update` only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class AnswerCache:
    """Keys and values of a batch, ``(B, heads, length, head_dim)`` per layer.

    `place` sets which columns the next pass writes and how many it attends to, once for all layers. Columns that were
    never written hold zeros; the caller's attention mask hides them.

    Args:
        batch: rows.
        length: columns.
    """

    def __init__(self, batch: int, length: int) -> None:
        self.batch = batch
        self.length = length
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._columns: Tensor | None = None
        self._start: int | None = 0
        self._attended = length

    def place(self, columns: Tensor, *, start: int | None, attended: int) -> None:
        """Say where the next pass writes.

        Args:
            columns: ``(B, W)`` int64, the columns of the pass's tokens.
            start: the first column if all rows write the same consecutive ones (a slice is faster than
                an index), else None.
            attended: columns the pass may attend to, from the first on.
        """
        self._columns = columns
        self._start = start
        self._attended = attended

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values ``(B, heads, W, head_dim)``; return all it may attend to."""
        if layer_idx == len(self.keys):
            for new, store in ((keys, self.keys), (values, self.values)):
                shape = (self.batch, new.shape[1], self.length, new.shape[3])
                store.append(torch.zeros(shape, dtype=new.dtype, device=new.device))
        for new, store in ((keys, self.keys), (values, self.values)):
            target = store[layer_idx]
            if self._start is not None:
                target[:, :, self._start : self._start + new.shape[2]] = new
            else:
                assert self._columns is not None
                rows = torch.arange(self.batch, device=new.device).unsqueeze(1)
                target[rows, :, self._columns] = new.transpose(1, 2).to(target.dtype)
        return (
            self.keys[layer_idx][:, :, : self._attended],
            self.values[layer_idx][:, :, : self._attended],
        )

    def move(self, row: int, source: Tensor, target: Tensor) -> None:
        """Copy columns ``source`` of a row to ``target`` (each ``(n,)``), in all layers."""
        for store in (*self.keys, *self.values):
            store[row, :, target] = store[row, :, source]  # the right side is a copy: overlap is safe

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: transformers asks for a length, and does not use it where positions are passed explicitly."""
        del layer_idx
        return 0
