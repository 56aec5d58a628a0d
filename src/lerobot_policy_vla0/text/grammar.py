"""The grammar of an answer: exactly ``N`` integers in ``[0, n_bins]``, then the end of the turn.

Numbers have no leading zeros and one space between them. The grammar works on symbols: 0 to 9 for the digits,
`SEPARATOR` and `END`. A transition table over the digits of one number and a counter of finished numbers advance a
batch without a Python loop. Every state has at least one legal symbol, so malformed output is impossible.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lerobot_policy_vla0.errors import ConfigError, DecodeError
from lerobot_policy_vla0.text.codec import ActionTokens

SEPARATOR = 10  # the space between two numbers
END = 11  # the end-of-turn token
N_SYMBOLS = 12
MAX_BINS = 99_999


def number_automaton(n_bins: int) -> tuple[Tensor, Tensor]:
    """Build the automaton of one integer in ``[0, n_bins]`` without leading zeros.

    State 0 is the start. Every other state holds the number of digits so far and how they compare with the leading
    digits of ``n_bins``. A number shorter than ``n_bins`` is always in range; a number of the same length is in range
    if it does not compare greater.

    Returns:
        transitions ``(S, 10)`` int64, the next state for each digit, or -1 if it is illegal; and
        ``(S,)`` bool, true where the number may end.

    Raises:
        ConfigError: if ``n_bins`` is not in ``[1, 99999]``.
    """
    if not 1 <= n_bins <= MAX_BINS:
        raise ConfigError(f"n_bins={n_bins} must lie in [1, {MAX_BINS}].")
    bound = [int(c) for c in str(n_bins)]
    zero = (1, None)  # no digit may follow a leading 0
    start: tuple[int, int | None] = (0, 0)
    index = {start: 0}
    rows: list[list[int]] = []
    queue = [start]
    for state in queue:  # the queue grows during the loop
        length, comparison = state  # comparison: -1 less, 0 equal, 1 greater; None for the lone zero
        row = [-1] * 10
        if comparison is not None and length < len(bound):
            for digit in range(10):
                order = comparison or (digit > bound[length]) - (digit < bound[length])
                if length + 1 == len(bound) and order > 0:
                    continue
                following = zero if length == 0 and digit == 0 else (length + 1, order)
                if following not in index:
                    index[following] = len(index)
                    queue.append(following)
                row[digit] = index[following]
        rows.append(row)
    return torch.tensor(rows), torch.tensor([length > 0 for length, _ in queue])


class AnswerGrammar:
    """Tells which symbols may come next, for a batch of rows.

    The state of a row is ``(number, local)``: the count of finished numbers, and the current number's state in
    `number_automaton`. After `END`, a row may only repeat `END`.
    """

    def __init__(
        self, *, n_bins: int, n_numbers: int, tokens: ActionTokens, device: torch.device | str = "cpu"
    ) -> None:
        transitions, may_end = number_automaton(n_bins)
        self.n_bins = n_bins
        self.n_numbers = n_numbers
        self.token_ids = torch.tensor([*tokens.digits, tokens.space, tokens.end], device=device)  # (12,)
        self._host_ids = [*tokens.digits, tokens.space, tokens.end]
        self._transitions = transitions.to(device)  # (S, 10)
        self._may_end = may_end.to(device)  # (S,)

    @property
    def longest_answer(self) -> int:
        """Symbols of the longest answer, with its end."""
        return self.n_numbers * (len(str(self.n_bins)) + 1)

    def start(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return the state before the first symbol: number and local, each ``(B,)`` int64."""
        zeros = torch.zeros(batch, dtype=torch.long, device=self._transitions.device)
        return zeros, zeros.clone()

    def legal(self, number: Tensor, local: Tensor) -> Tensor:
        """Return which symbols may come next: ``(B, 12)`` bool, at least one true in each row."""
        finished = number >= self.n_numbers
        last = number == self.n_numbers - 1
        may_end = self._may_end[local]
        out = torch.zeros(*number.shape, N_SYMBOLS, dtype=torch.bool, device=number.device)
        out[..., :10] = (self._transitions[local] >= 0) & ~finished.unsqueeze(-1)
        out[..., SEPARATOR] = may_end & ~last & ~finished
        out[..., END] = (may_end & last) | finished
        return out

    def forced(self, number: Tensor, local: Tensor) -> Tensor:
        """Return which rows have exactly one legal symbol: ``(B,)`` bool."""
        return self.legal(number, local).sum(-1) == 1

    def advance(self, number: Tensor, local: Tensor, symbol: Tensor) -> tuple[Tensor, Tensor]:
        """Return the state after each row writes ``symbol`` ``(B,)``, which must be legal."""
        digit = symbol.clamp(max=9)
        is_digit = symbol < SEPARATOR
        following = self._transitions[local, digit].clamp(min=0)
        closes = (symbol >= SEPARATOR) & (number < self.n_numbers)
        return number + closes.long(), torch.where(is_digit, following, torch.zeros_like(local))

    def symbol_of(self, token: Tensor) -> Tensor:
        """Map token ids ``(B,)`` to symbols; ids outside the grammar (padding) map to `END`."""
        match = token.unsqueeze(-1) == self.token_ids
        return torch.where(match.any(-1), match.long().argmax(-1), END)

    def occurring(self, ids: Tensor) -> NDArray[Any]:
        """Return which symbols occur in each row of ``(B, P)`` ids: ``(B, 12)`` bool, on the host."""
        found: NDArray[Any] = (ids.unsqueeze(-1) == self.token_ids).any(1).cpu().numpy()
        return found

    def write(self, answers: list[list[int]], pad: int) -> Tensor:
        """Return the token ids ``(B, L)`` of answers in symbols, padded on the right, on the host."""
        ids, length = self._host_ids, max(map(len, answers))
        return torch.tensor([[ids[s] for s in text] + [pad] * (length - len(text)) for text in answers])

    @cached_property
    def host(self) -> HostGrammar:
        """The same tables on the host, for decoders that advance one symbol at a time."""
        return HostGrammar(self._transitions.cpu().numpy(), self._may_end.cpu().numpy(), self.n_numbers)


class HostGrammar:
    """`AnswerGrammar` for one row, in plain Python: a few symbols take microseconds.

    A state is one integer, ``number * n_local + local``.

    Attributes:
        legal_rows: ``(K, 12)`` bool, the distinct rows of legal symbols; see `legal_row`.
        finished: the state after `END`, ``n_numbers * n_local``.
    """

    def __init__(self, transitions: NDArray[Any], may_end: NDArray[Any], n_numbers: int) -> None:
        self.n_local = len(transitions)
        self.n_numbers = n_numbers
        self.finished = n_numbers * self.n_local
        self._next = [[int(v) for v in row] for row in transitions]
        inner = np.zeros((self.n_local, N_SYMBOLS), dtype=bool)  # for all numbers but the last
        inner[:, :10] = transitions >= 0
        last = inner.copy()
        inner[:, SEPARATOR] = may_end
        last[:, END] = may_end
        end = np.zeros((1, N_SYMBOLS), dtype=bool)
        end[0, END] = True
        self.legal_rows = np.concatenate([inner, last, end])
        self._forced = [int(row.argmax()) if row.sum() == 1 else -1 for row in self.legal_rows]

    def legal_row(self, state: int) -> int:
        """Return the row of `legal_rows` that holds after ``state``."""
        if state >= self.finished:
            return 2 * self.n_local
        number, local = divmod(state, self.n_local)
        return local + self.n_local if number == self.n_numbers - 1 else local

    def forced(self, state: int) -> int:
        """Return the only legal symbol, or -1 if there is a choice."""
        return self._forced[self.legal_row(state)]

    def advance(self, state: int, symbol: int) -> int:
        """Return the state after a legal ``symbol``."""
        number, local = divmod(state, self.n_local)
        if symbol < SEPARATOR:
            return number * self.n_local + self._next[local][symbol]
        return min((number + 1) * self.n_local, self.finished)


def check_finite(finite: NDArray[Any]) -> None:
    """Refuse NaN and infinite logits; ``finite`` ``(B,)`` bool says whether a row has none.

    Raises:
        DecodeError: naming the bad rows.
    """
    if not finite.all():
        raise DecodeError(
            f"the model's logits are NaN or infinite in batch rows {(~finite).nonzero()[0].tolist()}; no action can "
            "be derived from them. The weights are damaged or training diverged: check the training loss, and the "
            "dtype (float16 overflows where bfloat16 does not)."
        )


def spell(bins: list[int], n_numbers: int) -> list[int]:
    """Return the symbols of an answer's first integers, with the separator or end after the last one.

    >>> spell([7, 10], 3)
    [7, 10, 1, 0, 10]
    >>> spell([7, 10], 2)
    [7, 10, 1, 0, 11]
    """
    symbols: list[int] = []
    for index, value in enumerate(bins, start=1):
        symbols += [int(c) for c in str(value)]
        symbols.append(END if index == n_numbers else SEPARATOR)
    return symbols
