"""The decoder's key/value cache: one tensor, allocated once, in which every row is written at columns of its own.

The rows of a batch advance at different speeds, and a rejected draft is overwritten.
"""

from __future__ import annotations

import torch
from torch import Tensor


class AnswerCache:
    """Keys and values of a batch: ``(layers, 2, heads, B, length, head_dim)``.

    Columns that were never written hold zeros; the caller's attention mask hides them.

    Args:
        layers: of the language model.
        heads: of keys and values.
        head_dim: numbers per head.
        batch: rows.
        length: columns.
        dtype: of the numbers.
        device: where they are.
    """

    def __init__(
        self,
        *,
        layers: int,
        heads: int,
        head_dim: int,
        batch: int,
        length: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.batch = batch
        self.length = length
        self.dtype = dtype
        shape = (layers, 2, heads, batch, length, head_dim)
        self.store = torch.zeros(shape, dtype=dtype, device=device)
        by_row = self.store.transpose(2, 3).unbind(0)  # (2, B, heads, length, head_dim) per layer
        #: Per layer, ``(B, heads, length, head_dim)``.
        self.keys, self.values = [x[0] for x in by_row], [x[1] for x in by_row]
        flat = self.store.flatten(3, 4).unbind(0)  # (2, heads, B * length, head_dim) per layer
        self._flat_keys, self._flat_values = [x[0] for x in flat], [x[1] for x in flat]
        self._places = torch.empty(0)
        self._start: int | None = 0
        self._rows = batch

    def place(self, columns: Tensor, *, start: int | None) -> None:
        """Say where the next pass writes, once for all layers.

        Args:
            columns: ``(B, W)`` int64, the columns of the pass's tokens, of all rows or of the first ones.
            start: the first column if all rows write the same consecutive ones (a slice is faster than an index),
                else None.
        """
        self._start, self._rows = start, len(columns)
        if start is None:
            rows = torch.arange(len(columns), device=columns.device).unsqueeze(1)
            self._places = (rows * self.length + columns).flatten()

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store a layer's new keys and values, each ``(B * W, heads, head_dim)``."""
        if self._start is None:
            self._flat_keys[layer].index_copy_(1, self._places, keys.transpose(0, 1).to(self.dtype))
            self._flat_values[layer].index_copy_(1, self._places, values.transpose(0, 1).to(self.dtype))
            return
        width, shape = len(keys) // self._rows, (self._rows, -1, *keys.shape[1:])
        columns = slice(self._start, self._start + width)
        self.keys[layer][: self._rows, :, columns].copy_(keys.view(shape).transpose(1, 2))
        self.values[layer][: self._rows, :, columns].copy_(values.view(shape).transpose(1, 2))

    def move(self, rows: Tensor, sources: Tensor, targets: Tensor) -> None:
        """Copy columns to others of the same rows, in all layers; each ``(n,)`` int64."""
        # The right side is a copy: overlap is safe.
        self.store[:, :, :, rows, targets] = self.store[:, :, :, rows, sources]

    def exchange(self, rows: Tensor, others: Tensor) -> None:
        """Exchange rows with others, in all layers; each ``(n,)`` int64, and no row twice."""
        places, contents = torch.cat([rows, others]), torch.cat([others, rows])
        self.store[:, :, :, places] = self.store[:, :, :, contents]
