"""The answer tokens of a pass: each row's at their own place of the answer, and what each of them attends to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lerobot_policy_vla0.decoding.drafts import Chain, Draft, side_by_side


@dataclass(frozen=True)
class Feed:
    """Answer tokens of a pass. Each row's begin at their own place of the answer.

    Attributes:
        symbols: ``(B, W)`` integers.
        starts: ``(B,)`` int64, tokens of each row's answer that are in the cache already.
        depths: ``(B, W)`` int64, how many tokens of the pass come before each on its path; tokens on different
            branches of a draft can have the same.
        visible: ``(B, W, W)`` bool, which tokens of the pass each one attends to (itself, and those before it on its
            path).
    """

    symbols: NDArray[Any]
    starts: NDArray[Any]
    depths: NDArray[Any]
    visible: NDArray[Any]

    @classmethod
    def chain(cls, symbols: NDArray[Any], starts: NDArray[Any]) -> Feed:
        """Return a pass without branches."""
        batch, width = symbols.shape
        depths = np.empty((batch, width), dtype=np.int64)
        depths[:] = np.arange(width)
        visible = np.empty((batch, width, width), dtype=bool)
        visible[:] = np.tri(width, dtype=bool)
        return cls(symbols, starts, depths, visible)

    @classmethod
    def lay_out(cls, settled: Sequence[bytes], drafts: Sequence[Chain | Draft], starts: NDArray[Any]) -> Feed:
        """Return a pass of each row's settled symbols and its draft; shorter rows are filled up with zeros."""
        texts = [text + bytes(draft.symbols) for text, draft in zip(settled, drafts, strict=True)]
        feed = cls.chain(side_by_side(texts, max(map(len, texts))), starts)
        for row, (text, draft) in enumerate(zip(settled, drafts, strict=True)):
            if isinstance(draft, Draft):
                first, end = len(text), len(text) + len(draft)
                feed.depths[row, first:end] = first + np.array(draft.depths())
                feed.visible[row, first:end, first:end] = draft.visibility()
        return feed

    def widened(self, width: int) -> Feed:
        """Return a pass of ``width`` tokens per row; the added ones attend to themselves, and no other to them."""
        batch, fed = self.symbols.shape
        wider = Feed.chain(np.zeros((batch, width), dtype=np.int64), self.starts)
        wider.symbols[:, :fed] = self.symbols
        wider.depths[:, :fed] = self.depths
        wider.visible[:] = np.eye(width, dtype=bool)
        wider.visible[:, :fed, :fed] = self.visible
        return wider
