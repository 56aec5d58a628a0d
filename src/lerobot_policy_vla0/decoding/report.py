"""What a decode did: passes, tokens, time, and how sure the model was of each number.

Decoders only keep references to arrays that exist anyway. Probabilities are computed when they are read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lerobot_policy_vla0.text.grammar import SEPARATOR


@dataclass
class RowTrace:
    """One row's answer and the masked scores behind every symbol that was a choice.

    Attributes:
        symbols: the answer, its end included.
        scores: the scores ``(12,)`` a symbol was chosen from, minus infinity where illegal; None where the
            grammar or a commitment left no choice; NaN where an engine did not tell them.
    """

    symbols: list[int] = field(default_factory=list)
    scores: list[NDArray[Any] | None] = field(default_factory=list)


@dataclass
class DecodeReport:
    """One call of a decoder.

    Attributes:
        decoder: ``reference``, ``fast``, ``speculative``, or ``engine`` and which server it is.
        passes: runs of the language model, the prompt's included.
        committed: tokens that were given (real-time chunking's committed actions).
        milliseconds: wall time from the request to the ids.
        prefill_milliseconds: of it, until the first symbol was settled; 0 if an engine decoded, which does not tell.
        shape: ``(chunk_size, action_dim)``.
        traces: one per row.
        stops: per row and pass, how many integers the row had finished after it.
        forced: tokens that were the only legal ones and took no pass of their own.
        drafted: draft tokens fed.
        accepted: draft tokens that were right.
        reused: prompt tokens whose keys and values were still in the cache.
    """

    decoder: str
    passes: int
    committed: int
    milliseconds: float
    prefill_milliseconds: float
    shape: tuple[int, int]
    traces: list[RowTrace] = field(repr=False)
    stops: list[list[int]] = field(repr=False)
    forced: int = 0
    drafted: int = 0
    accepted: int = 0
    reused: int = 0

    @property
    def tokens(self) -> int:
        """Answer tokens over all rows, ends included."""
        return sum(len(trace.symbols) for trace in self.traces)

    @property
    def passes_per_number(self) -> float:
        """Passes per integer of one row's answer; token by token it is 3.5 to 4."""
        return self.passes / (self.shape[0] * self.shape[1])

    def bins(self, row: int) -> list[int]:
        """Return the ``T * D`` integers of a row's answer, step by step."""
        text = "".join("0123456789  "[symbol] for symbol in self.traces[row].symbols)
        return [int(word) for word in text.split()]

    @cached_property
    def number_probability(self) -> NDArray[Any]:
        """``(B, T, D)`` float64: the model's probability of each number it wrote, under the grammar.

        The product over its digits and the separator that ends it; 1.0 for committed numbers, NaN if an engine did
        not tell.
        """
        return self._per_number()[0]

    @cached_property
    def leading_digit_entropy(self) -> NDArray[Any]:
        """``(B, T, D)`` float64, nats: entropy of each number's first digit, 0 for committed numbers."""
        return self._per_number()[1]

    def _per_number(self) -> tuple[NDArray[Any], NDArray[Any]]:
        steps, dims = self.shape
        log_probability = np.zeros((len(self.traces), steps * dims))
        entropy = np.zeros_like(log_probability)
        for row, trace in enumerate(self.traces):
            number, leading = 0, True
            for symbol, scores in zip(trace.symbols, trace.scores, strict=True):
                if scores is not None:
                    logs = scores.astype(np.float64) - scores.max()  # minus infinity at illegal symbols
                    logs -= np.log(np.exp(logs).sum())
                    log_probability[row, number] += logs[symbol]
                    if leading:
                        legal = logs[~np.isneginf(logs)]
                        entropy[row, number] = -(np.exp(legal) * legal).sum()
                leading = symbol >= SEPARATOR
                number += symbol >= SEPARATOR
        shape = (-1, steps, dims)
        return np.exp(log_probability).reshape(shape), entropy.reshape(shape)
