"""Probability of every value of every number of an answer, for reports; decoders do not use it.

A decoder follows one path through the digits. This module asks for all others too: for each number of a given answer,
the probability of every integer in ``[0, n_bins]`` after the numbers before it (teacher-forced), under the grammar.
The digits of a number form a tree. Its branches are fed beside the answer in one pass, and each attends to the answer
before its number and to its own digits. An unlikely branch is not followed; its probability is spread over its values.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lerobot_policy_vla0.backbone.grad_mode import without_gradients
from lerobot_policy_vla0.decoding.drafts import ROOT, Draft
from lerobot_policy_vla0.decoding.fast import penalise
from lerobot_policy_vla0.decoding.feed import Feed
from lerobot_policy_vla0.decoding.lean import LeanModel
from lerobot_policy_vla0.decoding.passes import PassRunner
from lerobot_policy_vla0.decoding.report import RowTrace
from lerobot_policy_vla0.text.grammar import SEPARATOR, check_finite

if TYPE_CHECKING:
    from lerobot_policy_vla0.backbone.vlm import VLM
    from lerobot_policy_vla0.decoding.request import DecodeRequest
    from lerobot_policy_vla0.text.grammar import AnswerGrammar


@dataclass(frozen=True)
class _Prefix:
    """The first digits of a number, their probability, and the grammar state after them."""

    number: int
    digits: tuple[int, ...]
    probability: float
    state: int

    @property
    def value(self) -> int:
        return int("".join(map(str, self.digits)))


class _Answer:
    """One row: its answer, the probabilities found so far, and the prefixes that are still to be asked for.

    Args:
        symbols: the answer, its end included.
        written: ``(12,)`` bool, the symbols in the prompt.
        grammar: of the answer.
    """

    def __init__(self, symbols: list[int], written: NDArray[Any], grammar: AnswerGrammar) -> None:
        self.symbols = symbols
        self.written = written
        self.starts = [0]  # where each number begins
        for place, symbol in enumerate(symbols[:-1], start=1):
            if symbol == SEPARATOR:
                self.starts.append(place)
        if len(self.starts) != grammar.n_numbers:
            raise ValueError(f"the answer has {len(self.starts)} numbers, expected {grammar.n_numbers}")
        self.probabilities = np.zeros((grammar.n_numbers, grammar.n_bins + 1))
        self.pending: deque[_Prefix] = deque()

    def place_of(self, prefix: _Prefix) -> int | None:
        """Return the answer's length after a prefix, None if the answer's number begins otherwise."""
        start = self.starts[prefix.number]
        end = start + len(prefix.digits)
        return end if tuple(self.symbols[start:end]) == prefix.digits else None

    def trunk(self) -> Draft:
        """Return the answer without its end as a draft, which branches are added to."""
        draft = Draft()
        draft.extend(self.symbols[:-1], ROOT, len(self.symbols))
        return draft

    def add_branch(self, draft: Draft, prefix: _Prefix) -> int:
        """Add a prefix to a draft that holds the trunk; return the index of its last digit."""
        node = self.starts[prefix.number] - 1  # the trunk's tokens have the answer's indices; -1 is ROOT
        for digit in prefix.digits:
            node = draft.add(digit, node)
        return node


class NumberDistributions:
    """Asks a backbone for the probability of every number.

    Args:
        vlm: the backbone.
        grammar: the legal answers; its tables live on the backbone's device.
        temperature: scores are divided by it if it is above 0.
        repetition_penalty: transformers' penalty, as in the decoders.
        min_mass: prefixes of at most this probability are not followed; theirs is spread evenly over the numbers they
            can begin. 0 follows all: exact, ``n_bins / 9`` tokens per number.
        max_width: most branch tokens fed in one pass.
        model: runs the backbone; None builds one. A decoder's saves a second copy of cast weights.
    """

    def __init__(
        self,
        vlm: VLM,
        grammar: AnswerGrammar,
        *,
        temperature: float = 0.0,
        repetition_penalty: float = 1.0,
        min_mass: float = 1e-3,
        max_width: int = 512,
        model: LeanModel | None = None,
    ) -> None:
        self.grammar = grammar
        self.tables = grammar.host
        self.temperature = temperature
        self.repetition_penalty = repetition_penalty
        self.min_mass = min_mass
        self.max_width = max_width
        self._runner = PassRunner(vlm, grammar, max_width=max_width, model=model)
        self._runner.static = False  # every pass has a width of its own, so none is captured

    @without_gradients
    def measure(self, request: DecodeRequest, answers: list[list[int]]) -> list[NDArray[Any]]:
        """Return, for each row, ``(T*D, n_bins + 1)`` float64: the probability of every value of every number.

        Args:
            request: the prompts; its ``committed`` steps are not used.
            answers: each row's answer as grammar symbols, its end included (`RowTrace.symbols`).

        Raises:
            DecodeError: if the model returns NaN/Inf logits.
        """
        # 1. The prefill scores every place of the answers.
        written = self.grammar.occurring(request.ids)
        rows = [_Answer(*each, self.grammar) for each in zip(answers, written, strict=True)]
        empty = [b""] * len(rows)
        starts = np.zeros(len(rows), dtype=np.int64)
        drafts = [row.trunk() for row in rows]
        scores = self._runner.prefill(request, Feed.lay_out(empty, drafts, starts))  # (B, 1 + W, 12)
        _check(scores, [1 + len(draft) for draft in drafts])
        for index, row in enumerate(rows):
            for number in range(self.tables.n_numbers):
                root = _Prefix(number, (), 1.0, number * self.tables.n_local)
                self._expand(row, root, scores[index], row.starts[number])
        # 2. Each pass scores the answers again and as many prefixes as fit, until none is left to be asked for.
        while any(row.pending for row in rows):
            asked: list[list[tuple[_Prefix, int]]] = []
            drafts = [row.trunk() for row in rows]
            for row, draft in zip(rows, drafts, strict=True):
                limit = len(draft) + self.max_width
                asked.append([])
                while row.pending and len(draft) + len(row.pending[0].digits) <= limit:
                    prefix = row.pending.popleft()
                    asked[-1].append((prefix, row.add_branch(draft, prefix)))
            scores = self._runner.score(Feed.lay_out(empty, drafts, starts))  # (B, W, 12)
            _check(scores, [len(draft) for draft in drafts])
            for index, (row, prefixes) in enumerate(zip(rows, asked, strict=True)):
                for prefix, node in prefixes:
                    self._expand(row, prefix, scores[index], node)
        return [row.probabilities for row in rows]

    def _expand(self, row: _Answer, prefix: _Prefix, scores: NDArray[Any], at: int) -> None:
        """Divide a prefix's probability among the symbols that may follow it.

        Args:
            row: of the answer.
            prefix: the prefix; ``scores[at]`` ``(12,)`` are those of the symbol after it.
            scores: of the prefill (indexed by the answer's length) or of a later pass (by token).
            at: see above.
        """
        following = self._probabilities_after(row, prefix, scores[at])
        for symbol in np.flatnonzero(following).tolist():
            probability = prefix.probability * float(following[symbol])
            if symbol >= SEPARATOR:
                row.probabilities[prefix.number, prefix.value] += probability
                continue
            state = self.tables.advance(prefix.state, symbol)
            child = _Prefix(prefix.number, (*prefix.digits, symbol), probability, state)
            if self.tables.forced(state) >= 0:  # only the end of the number can follow
                row.probabilities[child.number, child.value] += probability
            elif (place := row.place_of(child)) is not None:  # only in the prefill, which scored the answer
                self._expand(row, child, scores, place)
            elif probability > self.min_mass:
                row.pending.append(child)
            else:
                values = beginning_with(child.value, self.grammar.n_bins)
                row.probabilities[child.number, values] += probability / len(values)

    def _probabilities_after(self, row: _Answer, prefix: _Prefix, scores: NDArray[Any]) -> NDArray[Any]:
        """Return ``(12,)`` float64, the probability of each symbol after a prefix; 0 where it is illegal."""
        scores = scores.astype(np.float64)
        if self.repetition_penalty != 1.0:
            written = row.written.copy()
            written[[*row.symbols[: row.starts[prefix.number]], *prefix.digits]] = True
            scores = penalise(scores, written, self.repetition_penalty)
        if self.temperature > 0:
            scores = scores / self.temperature
        legal = self.tables.legal_rows[self.tables.legal_row(prefix.state)]
        weights = np.where(legal, np.exp(scores - scores[legal].max()), 0.0)
        probabilities: NDArray[Any] = weights / weights.sum()
        return probabilities


def along_answer(trace: RowTrace, n_bins: int) -> NDArray[Any]:
    """Return ``(T*D, n_bins + 1)`` float64: the probability of every value, as far as the answer's own scores tell.

    That of an alternative to a written symbol is spread evenly over the numbers that it can begin. A number is NaN
    throughout if the scores of one of its choices are not known.
    """
    numbers: list[NDArray[Any]] = []
    digits, left = "", 1.0
    probabilities = np.zeros(n_bins + 1)
    for symbol, scores in zip(trace.symbols, trace.scores, strict=True):
        if scores is not None:
            if np.isnan(scores).any():
                probabilities[:] = np.nan
                left = np.nan
                scores = np.where(np.arange(len(scores)) == symbol, 0.0, -np.inf)
            weights = np.exp(scores.astype(np.float64) - scores.max())
            for other in np.flatnonzero(weights).tolist():
                share = left * float(weights[other] / weights.sum())
                if other == symbol:
                    following = share
                elif other >= SEPARATOR:
                    probabilities[int(digits)] += share
                else:
                    values = beginning_with(int(f"{digits}{other}"), n_bins)
                    probabilities[values] += share / len(values)
            left = following
        if symbol < SEPARATOR:
            digits += str(symbol)
        else:
            probabilities[int(digits)] += left
            numbers.append(probabilities)
            digits, left, probabilities = "", 1.0, np.zeros(n_bins + 1)
    return np.stack(numbers)


def beginning_with(first: int, n_bins: int) -> list[int]:
    """Return the integers in ``[0, n_bins]`` whose text begins with the digits of ``first``.

    >>> beginning_with(2, 30), beginning_with(0, 250)
    ([2, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29], [0])
    """
    values: list[int] = []
    low = high = first
    while low <= n_bins:
        values += range(low, min(high, n_bins) + 1)
        if first == 0:
            break
        low, high = low * 10, high * 10 + 9
    return values


def _check(scores: NDArray[Any], lengths: list[int]) -> None:
    """Raise `DecodeError` unless the first scores of each row, as many as its length says, are finite."""
    unused = np.arange(scores.shape[1]) >= np.array(lengths)[:, None]
    check_finite((np.isfinite(scores).all(-1) | unused).all(1))


def expected_value(probabilities: NDArray[Any]) -> NDArray[Any]:
    """Return the mean of distributions ``(..., n_bins + 1)``.

    >>> float(expected_value(np.array([0.5, 0.0, 0.5])))
    1.0
    """
    mean: NDArray[Any] = probabilities @ np.arange(probabilities.shape[-1])
    return mean


def central_band(probabilities: NDArray[Any], share: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the lowest and highest value of the band that leaves out ``(1 - share) / 2`` on each side.

    The lowest is the first value at which the cumulated probability reaches ``(1 - share) / 2``, the highest the first
    one at which it reaches ``(1 + share) / 2``.

    Args:
        probabilities: ``(..., n_bins + 1)``.
        share: of the probability inside the band, in ``(0, 1)``.

    >>> low, high = central_band(np.array([0.04, 0.02, 0.9, 0.02, 0.02]), 0.9)
    >>> int(low), int(high)
    (1, 2)
    """
    tail = (1.0 - share) / 2.0
    cumulated = probabilities.cumsum(-1) / probabilities.sum(-1, keepdims=True)
    slack = 1e-9  # for rounding in sums of many small numbers
    low: NDArray[Any] = (cumulated >= tail - slack).argmax(-1)
    high: NDArray[Any] = (cumulated >= 1.0 - tail - slack).argmax(-1)
    return low, high
