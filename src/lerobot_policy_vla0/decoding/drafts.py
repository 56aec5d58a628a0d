"""A draft, which holds guessed symbols that may follow an answer, and the protocol of what makes drafts.

A draft is a tree. Two guesses for the same place share the symbols before it and continue in a branch each. One pass
checks all branches, and the model's own choices select the path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from lerobot_policy_vla0.decoding.fast import Row
    from lerobot_policy_vla0.decoding.passes import PassRunner
    from lerobot_policy_vla0.decoding.request import DecodeRequest

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
        """Add a chain of symbols after ``parent`` until the draft holds ``room``; return the index of the last one."""
        for symbol in symbols:
            if len(self.symbols) >= room and (parent, symbol) not in self._children:
                break
            parent = self.add(symbol, parent)
        return parent

    def child(self, parent: int, symbol: int) -> int | None:
        """Return the index of a guessed symbol after ``parent``, None if it was not guessed."""
        return self._children.get((parent, symbol))

    @property
    def is_chain(self) -> bool:
        """Whether there are no branches: each symbol follows the one before it."""
        return self.parents == list(range(ROOT, len(self.parents) - 1))

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


class Drafter(Protocol):
    """Guesses symbols that `FastDecoder` then checks; a guess changes the number of passes and never the answer."""

    #: Tokens of the widest pass it may ask for, settled ones included.
    max_width: int

    def reset(self) -> None:
        """Forget earlier answers, because a new episode starts."""
        ...

    def begin(self, request: DecodeRequest, rows: list[Row]) -> None:
        """Prepare for the answers to a request.

        Args:
            request: the prompts.
            rows: the answers, which the decoder continues to write after this call.
        """
        ...

    def draft(self, runner: PassRunner) -> list[Draft]:
        """Return legal guesses for every row before a pass, none for finished rows.

        Args:
            runner: runs the passes; a drafter may time passes with it, except before the first one (the prefill).
        """
        ...

    def learn(self, index: int, draft: Draft, path: list[int], best: NDArray[Any]) -> None:
        """Use what the model said about the draft of row ``index``, after the row was extended by it.

        Args:
            index: of the row.
            draft: its guesses, at least one.
            path: the accepted ones.
            best: ``(1 + n,)`` what the model would write after the settled text and after each guess.
        """
        ...
