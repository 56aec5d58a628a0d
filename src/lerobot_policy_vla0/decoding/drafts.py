"""A draft: guessed symbols that may follow an answer, as a tree.

A chain is a tree without branches. Where two guesses are worth making, the symbols before them are shared
and each goes on in its own branch; one pass checks all branches, and the model's own choices pick the path.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: The parent of symbols that directly follow the settled text.
ROOT = -1


class Draft:
    """Guessed symbols in an order in which parents come first.

    Attributes:
        symbols: the guesses.
        parents: for each, the index of the symbol before it, or `ROOT`.
    """

    def __init__(self) -> None:
        self.symbols: list[int] = []
        self.parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.symbols)

    def add(self, symbol: int, parent: int) -> int:
        """Add a symbol after ``parent`` unless it is there; return its index."""
        index = self._children.setdefault((parent, symbol), len(self.symbols))
        if index == len(self.symbols):
            self.symbols.append(symbol)
            self.parents.append(parent)
        return index

    def extend(self, symbols: list[int], parent: int, room: int) -> int:
        """Add a chain after ``parent`` as long as the draft holds at most ``room`` symbols; return its end."""
        for symbol in symbols:
            if len(self) >= room and (parent, symbol) not in self._children:
                break
            parent = self.add(symbol, parent)
        return parent

    def child(self, parent: int, symbol: int) -> int | None:
        """Return the index of a guessed symbol after ``parent``, None if it was not guessed."""
        return self._children.get((parent, symbol))

    def depths(self) -> list[int]:
        """Return how many guessed symbols come before each one on its path."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent == ROOT else depths[parent] + 1)
        return depths

    def visibility(self) -> NDArray[Any]:
        """Return ``(n, n)`` bool: row ``i`` is true at ``i`` and at every symbol before it on its path."""
        seen = np.eye(len(self), dtype=bool)
        for index, parent in enumerate(self.parents):
            if parent != ROOT:
                seen[index] |= seen[parent]
        return seen
