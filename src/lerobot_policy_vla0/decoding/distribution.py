"""How a model spreads its belief over the numbers of an answer, for reports; no decoder needs it.

A decoder follows one path through the digits. Here every other number is asked for too: for each number of a
given answer, the probability of all integers in ``[0, n_bins]`` after the numbers before it (teacher-forced), under
the grammar. The digits of a number form a tree; branches are fed beside the answer in one pass, each seeing the
answer up to its number and its own digits. Unlikely branches are not followed, but nothing is dropped.

Knows symbols and passes; knows nothing about actions or units.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lerobot_policy_vla0.backbone.grad_mode import without_gradients
from lerobot_policy_vla0.decoding.drafts import ROOT, Draft
from lerobot_policy_vla0.decoding.passes import Feed, PassRunner
from lerobot_policy_vla0.text.grammar import SEPARATOR, raise_non_finite_logits

if TYPE_CHECKING:
    from lerobot_policy_vla0.backbone.vlm import VLM
    from lerobot_policy_vla0.decoding.request import DecodeRequest
    from lerobot_policy_vla0.text.grammar import AnswerGrammar


@dataclass(frozen=True)
class _Prefix:
    """The first digits of a number, its probability, and where the grammar stands after them."""

    number: int
    digits: tuple[int, ...]
    mass: float
    state: int

    @property
    def value(self) -> int:
        return int("".join(map(str, self.digits)))


class _Answer:
    """One row: its answer, the belief found so far, and the prefixes still to be asked for."""

    def __init__(self, symbols: list[int], n_numbers: int, n_bins: int) -> None:
        self.symbols = symbols
        self.starts = [0]  # where each number begins
        for place, symbol in enumerate(symbols[:-1], start=1):
            if symbol == SEPARATOR:
                self.starts.append(place)
        if len(self.starts) != n_numbers:
            raise ValueError(f"the answer has {len(self.starts)} numbers, expected {n_numbers}")
        self.belief = np.zeros((n_numbers, n_bins + 1))
        self.pending: deque[_Prefix] = deque()

    def place_of(self, prefix: _Prefix) -> int | None:
        """Return the answer's length after a prefix, None if the answer's number begins otherwise."""
        start = self.starts[prefix.number]
        end = start + len(prefix.digits)
        return end if tuple(self.symbols[start:end]) == prefix.digits else None

    def chain(self) -> Draft:
        """Return all of the answer but its end, as the trunk that branches grow from."""
        draft = Draft()
        draft.extend(self.symbols[:-1], ROOT, len(self.symbols))
        return draft

    def grow(self, draft: Draft, prefix: _Prefix) -> int:
        """Add a prefix to a draft that holds the chain; return the index of its last digit."""
        node = self.starts[prefix.number] - 1  # the chain's tokens are numbered as the answer's; -1 is ROOT
        for digit in prefix.digits:
            node = draft.add(digit, node)
        return node


class NumberDistributions:
    """Asks a backbone for the probability of every number.

    Args:
        vlm: the backbone.
        grammar: the legal answers; its tables live on the backbone's device.
        n_bins: the top integer.
        max_answer: tokens of the longest legal answer.
        temperature: scores are divided by it if it is above 0; 0 leaves them as they are.
        repetition_penalty: transformers' penalty, as in the decoders.
        min_mass: prefixes of at most this probability are not followed; theirs is spread evenly over the numbers they
            can begin. 0 follows all: exact, ``n_bins / 9`` tokens per number.
        max_width: most branch tokens fed in one pass.
    """

    def __init__(
        self,
        vlm: VLM,
        grammar: AnswerGrammar,
        *,
        n_bins: int,
        max_answer: int,
        temperature: float = 0.0,
        repetition_penalty: float = 1.0,
        min_mass: float = 1e-3,
        max_width: int = 512,
    ) -> None:
        self.grammar = grammar
        self.tables = grammar.host
        self.n_bins = n_bins
        self.temperature = temperature
        self.repetition_penalty = repetition_penalty
        self.min_mass = min_mass
        self.max_width = max_width
        self._runner = PassRunner(vlm, grammar, max_answer=max_answer, max_width=max_width)
        self._runner.static = False  # every pass has a width of its own: nothing to capture

    @without_gradients
    def measure(self, request: DecodeRequest, answers: list[list[int]]) -> list[NDArray[Any]]:
        """Return, for each row, ``(T*D, n_bins + 1)`` float64: the probability of every value of every number.

        Args:
            request: the prompts; its ``committed`` steps are not looked at.
            answers: each row's answer as grammar symbols, its end included (`RowTrace.symbols`).

        Raises:
            DecodeError: if the model returns NaN/Inf logits.
        """
        rows = [_Answer(symbols, self.tables.n_numbers, self.n_bins) for symbols in answers]
        seen = self._seen(request)
        trunks = [row.chain() for row in rows]
        scores = self._runner.prefill(request, self._feed(trunks))  # (B, 1 + W, 12)
        used = np.arange(scores.shape[1]) <= np.array([[len(trunk)] for trunk in trunks])
        self._check(scores, used)
        for index, row in enumerate(rows):
            for number in range(self.tables.n_numbers):
                root = _Prefix(number, (), 1.0, number * self.tables.n_local)
                self._expand(row, root, scores[index], row.starts[number], seen[index])
        while any(row.pending for row in rows):
            asked: list[list[tuple[_Prefix, int]]] = []
            drafts = [row.chain() for row in rows]
            for row, draft in zip(rows, drafts, strict=True):
                limit = len(draft) + self.max_width
                asked.append([])
                while row.pending and len(draft) + len(row.pending[0].digits) <= limit:
                    prefix = row.pending.popleft()
                    asked[-1].append((prefix, row.grow(draft, prefix)))
            scores = self._runner.score(self._feed(drafts))  # (B, W, 12)
            used = np.arange(scores.shape[1]) < np.array([[len(draft)] for draft in drafts])
            self._check(scores, used)
            for index, (row, prefixes) in enumerate(zip(rows, asked, strict=True)):
                for prefix, node in prefixes:
                    self._expand(row, prefix, scores[index], node, seen[index])
        return [row.belief for row in rows]

    def _expand(
        self, row: _Answer, prefix: _Prefix, scores: NDArray[Any], at: int, seen: NDArray[Any]
    ) -> None:
        """Divide a prefix's probability among what may follow it.

        Args:
            row: of the answer.
            prefix: whose following symbol ``scores[at]`` ``(12,)`` is about.
            scores: of the prefill (indexed by the answer's length) or of a later pass (by token).
            at: see above.
            seen: ``(12,)`` symbols in the prompt.
        """
        chances = self._chances(row, prefix, scores[at], seen)
        for symbol in np.flatnonzero(chances).tolist():
            mass = prefix.mass * float(chances[symbol])
            if symbol >= SEPARATOR:
                row.belief[prefix.number, prefix.value] += mass
                continue
            state = self.tables.advance(prefix.state, symbol)
            child = _Prefix(prefix.number, (*prefix.digits, symbol), mass, state)
            if self.tables.forced(state) >= 0:  # nothing but the end of the number can follow
                row.belief[child.number, child.value] += mass
            elif (
                place := row.place_of(child)
            ) is not None:  # only in the prefill, which scored the whole answer
                self._expand(row, child, scores, place, seen)
            elif mass > self.min_mass:
                row.pending.append(child)
            else:
                self._spread(row, child)

    def _spread(self, row: _Answer, prefix: _Prefix) -> None:
        """Share a prefix's probability evenly among the numbers it can begin."""
        low = high = prefix.value
        ranges = []
        while low <= self.n_bins:
            ranges.append(np.arange(low, min(high, self.n_bins) + 1))
            low, high = low * 10, high * 10 + 9
        values = np.concatenate(ranges)
        row.belief[prefix.number, values] += prefix.mass / len(values)

    def _chances(
        self, row: _Answer, prefix: _Prefix, scores: NDArray[Any], seen: NDArray[Any]
    ) -> NDArray[Any]:
        """Return ``(12,)`` float64, the probability of each symbol after a prefix; 0 where it is illegal."""
        scores = scores.astype(np.float64)
        if self.repetition_penalty != 1.0:
            written = seen.copy()
            written[[*row.symbols[: row.starts[prefix.number]], *prefix.digits]] = True
            penalised = np.where(
                scores < 0, scores * self.repetition_penalty, scores / self.repetition_penalty
            )
            scores = np.where(written, penalised, scores)
        if self.temperature > 0:
            scores = scores / self.temperature
        legal = self.tables.legal_rows[self.tables.legal_row(prefix.state)]
        weights = np.where(legal, np.exp(scores - scores[legal].max()), 0.0)
        chances: NDArray[Any] = weights / weights.sum()
        return chances

    def _feed(self, drafts: list[Draft]) -> Feed:
        """Lay out one tree per row from the answer's beginning on; shorter rows are filled up."""
        width = max(map(len, drafts))
        batch = len(drafts)
        feed = Feed(
            symbols=np.zeros((batch, width), dtype=np.int64),
            starts=np.zeros(batch, dtype=np.int64),
            depths=np.zeros((batch, width), dtype=np.int64),
            visible=np.broadcast_to(np.eye(width, dtype=bool), (batch, width, width)).copy(),
        )
        for index, draft in enumerate(drafts):
            size = len(draft)
            feed.symbols[index, :size] = draft.symbols
            feed.depths[index, :size] = draft.depths()
            feed.visible[index, :size, :size] = draft.visibility()
        return feed

    def _seen(self, request: DecodeRequest) -> NDArray[Any]:
        """Return which symbols stand in each prompt: ``(B, 12)`` bool."""
        seen: NDArray[Any] = (request.ids.unsqueeze(-1) == self.grammar.token_ids).any(1).cpu().numpy()
        return seen

    @staticmethod
    def _check(scores: NDArray[Any], used: NDArray[Any]) -> None:
        bad = (~np.isfinite(scores).all(-1) & used).any(1)
        if bad.any():
            raise_non_finite_logits(bad.nonzero()[0].tolist())


def expected_value(belief: NDArray[Any]) -> NDArray[Any]:
    """Return the mean of distributions ``(..., n_bins + 1)``.

    >>> float(expected_value(np.array([0.5, 0.0, 0.5])))
    1.0
    """
    mean: NDArray[Any] = belief @ np.arange(belief.shape[-1])
    return mean


def central_band(belief: NDArray[Any], share: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the lowest and highest value of the band that leaves out ``(1 - share) / 2`` at either side.

    The end of a band is the first value at which the cumulated probability reaches that much.

    Args:
        belief: ``(..., n_bins + 1)``.
        share: of the probability, in ``(0, 1)``.

    >>> low, high = central_band(np.array([0.04, 0.02, 0.9, 0.02, 0.02]), 0.9)
    >>> int(low), int(high)
    (1, 2)
    """
    tail = (1.0 - share) / 2.0
    cumulated = belief.cumsum(-1) / belief.sum(-1, keepdims=True)
    slack = 1e-9  # sums of many small numbers
    low: NDArray[Any] = (cumulated >= tail - slack).argmax(-1)
    high: NDArray[Any] = (cumulated >= 1.0 - tail - slack).argmax(-1)
    return low, high
