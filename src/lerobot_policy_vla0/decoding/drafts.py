"""A draft, which holds guessed symbols that may follow an answer, and the protocol of what makes drafts.

A draft is a tree. Two guesses for the same place share the symbols before it and continue in a branch each. One pass
checks all branches, and the model's own choices select the path. Most drafts have no branches; they are handled as a
whole instead of symbol by symbol, because the device waits meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lerobot_policy_vla0.text.grammar import N_SYMBOLS

if TYPE_CHECKING:
    from lerobot_policy_vla0.decoding.fast import Row
    from lerobot_policy_vla0.decoding.passes import PassRunner
    from lerobot_policy_vla0.decoding.request import DecodeRequest
    from lerobot_policy_vla0.text.grammar import HostGrammar

#: The parent of symbols that directly follow the settled text.
ROOT = -1


#: Stands for no symbol.
NONE = b"\xff"


def side_by_side(rows: Sequence[bytes], width: int, filling: bytes = b"\0") -> NDArray[Any]:
    """Return ``(B, width)`` uint8 of rows that are as long or shorter.

    >>> side_by_side([bytes([1, 2, 3]), bytes([4])], 3).tolist()
    [[1, 2, 3], [4, 0, 0]]
    """
    joined = b"".join([row.ljust(width, filling) for row in rows])
    return np.frombuffer(joined, np.uint8).reshape(len(rows), width)


class Chain:
    """Guessed symbols that follow one another.

    Attributes:
        symbols: the guesses.
        legal: after each, which row of `HostGrammar.legal_rows` holds.
    """

    def __init__(self, symbols: bytes = b"", legal: bytes = b"") -> None:
        self.symbols = symbols
        self.legal = legal

    def __len__(self) -> int:
        return len(self.symbols)

    def legal_after(self, tables: HostGrammar, state: int) -> bytes:
        """Return `legal`."""
        return self.legal

    def seen(self) -> NDArray[Any]:
        """Return ``(n, 12)`` bool: the symbols on the path to each guess, itself included."""
        here = np.frombuffer(self.symbols, np.uint8)[:, None] == np.arange(N_SYMBOLS)
        seen: NDArray[Any] = np.logical_or.accumulate(here, axis=0)
        return seen


class Draft:
    """Guessed symbols, with branches, in an order in which parents come first.

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

    def path(self, best: bytes) -> list[int]:
        """Return the indices of the guesses that the model would have written itself, ascending.

        Args:
            best: what it would write after the settled text and after each guess.
        """
        path: list[int] = []
        node = self.child(ROOT, best[0])
        while node is not None:
            path.append(node)
            node = self.child(node, best[node + 1])
        return path

    def depths(self) -> list[int]:
        """Return how many guessed symbols come before each one on its path."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent == ROOT else depths[parent] + 1)
        return depths

    def legal_after(self, tables: HostGrammar, state: int) -> bytes:
        """Return which row of `HostGrammar.legal_rows` holds after each guess, if the grammar is in a state before."""
        states: list[int] = []
        for symbol, parent in zip(self.symbols, self.parents, strict=True):
            states.append(tables.advance(state if parent == ROOT else states[parent], symbol))
        return bytes(map(tables.legal_row, states))

    def seen(self) -> NDArray[Any]:
        """Return ``(n, 12)`` bool: the symbols on the path to each guess, itself included."""
        seen: NDArray[Any] = self.visibility() @ (np.array(self.symbols)[:, None] == np.arange(N_SYMBOLS))
        return seen

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

    def draft(self, runner: PassRunner) -> list[Chain | Draft]:
        """Return legal guesses for every row before a pass, none for finished rows.

        Args:
            runner: runs the passes; a drafter may time passes with it, except before the first one (the prefill).
        """
        ...

    def learn(self, index: int, draft: Chain | Draft, accepted: int, best: bytes) -> None:
        """Use what the model said about the draft of row ``index``, after the row was extended by it.

        Args:
            index: of the row.
            draft: its guesses, at least one.
            accepted: how many of them were right.
            best: what the model would write after the settled text and after each guess, ``1 + n`` symbols or more.
        """
        ...
