"""The fast decoder: one prefill, then passes that each settle as many tokens as they can.

Returns the reference decoder's tokens. A pass feeds the tokens settled but not yet seen by the model (the
last choice and whatever the grammar forces after it) and, in a subclass, a draft of what may follow; every
draft token that the model would have written itself is accepted. See `speculative` for the drafts.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lerobot_policy_vla0.decoding import DecodeRequest
from lerobot_policy_vla0.decoding.grammar import (
    N_SYMBOLS,
    SEPARATOR,
    AnswerGrammar,
    HostGrammar,
    raise_non_finite_logits,
)
from lerobot_policy_vla0.decoding.passes import PassRunner
from lerobot_policy_vla0.decoding.report import DecodeReport, RowTrace

if TYPE_CHECKING:
    from lerobot_policy_vla0.vlm import VLM


class Row:
    """One answer being written.

    Attributes:
        state: the grammar state after all settled symbols.
        fed: settled symbols whose keys and values are in the cache.
        numbers: finished integers.
        partial: digits of the integer being written.
        trace: the settled symbols and the scores they were chosen from.
    """

    def __init__(self, tables: HostGrammar) -> None:
        self.tables = tables
        self.state = 0
        self.fed = 0
        self.numbers: list[int] = []
        self.partial = ""
        self.trace = RowTrace()
        self.forced = 0

    @property
    def done(self) -> bool:
        """Whether the end has been written."""
        return self.state >= self.tables.finished

    @property
    def pending(self) -> list[int]:
        """Settled symbols the model has not seen yet."""
        return self.trace.symbols[self.fed :]

    def settle(self, symbol: int, scores: NDArray[Any] | None) -> None:
        """Append a symbol that is right for good."""
        self.trace.symbols.append(symbol)
        self.trace.scores.append(scores)
        self.state = self.tables.advance(self.state, symbol)
        if symbol < SEPARATOR:
            self.partial += str(symbol)
        else:
            self.numbers.append(int(self.partial))
            self.partial = ""

    def settle_forced(self) -> None:
        """Append what the grammar leaves no choice about."""
        while not self.done and (symbol := self.tables.forced(self.state)) >= 0:
            self.settle(symbol, None)
            self.forced += 1


class FastDecoder:
    """Decodes over a static cache, feeding forced tokens along with the next pass.

    Args:
        vlm: the backbone.
        grammar: the legal answers; its tables live on the backbone's device.
        shape: ``(chunk_size, action_dim)``.
        max_answer: tokens of the longest legal answer.
        max_width: tokens of the widest pass.
        temperature: 0 for greedy decoding, otherwise the sampling temperature.
        repetition_penalty: transformers' penalty on tokens already in prompt or answer; 1.0 is none.
    """

    name = "fast"

    def __init__(
        self,
        vlm: VLM,
        grammar: AnswerGrammar,
        *,
        shape: tuple[int, int],
        max_answer: int,
        max_width: int = 8,
        temperature: float = 0.0,
        repetition_penalty: float = 1.0,
    ) -> None:
        self.vlm = vlm
        self.grammar = grammar
        self.shape = shape
        self.temperature = temperature
        self.repetition_penalty = repetition_penalty
        self.width = max_width
        self.tables = grammar.host
        self.runner = PassRunner(vlm, grammar, max_answer=max_answer, max_width=max(max_width, 8))
        self.last: DecodeReport | None = None
        ids = grammar.token_ids.cpu()
        # Of equally good tokens the reference takes the smallest id.
        self._order = torch.argsort(ids).numpy()
        self._ids = ids

    # ------------------------------------------------------------------ what a subclass adds

    def reset(self) -> None:
        """Forget what was learnt from earlier answers; a new episode starts."""

    def _begin(self, request: DecodeRequest) -> None:
        """Look at a request before its prefill."""

    def _plan(self, rows: list[Row]) -> None:
        """Prepare for the passes after the prefill."""
        del rows

    def _learn(self, accepted: int, drafted: int) -> None:
        """Look at how much of one row's draft was right."""
        del accepted, drafted

    def _draft(self, index: int, row: Row, room: int) -> list[int]:
        """Return up to ``room`` legal symbols that may follow row ``index``; none by default."""
        del index, row, room
        return []

    def _finish(self, rows: list[Row]) -> None:
        """Look at the finished answers."""

    # ------------------------------------------------------------------ decoding

    @torch.no_grad()
    def decode(self, request: DecodeRequest) -> Tensor:
        """Answer a batch; see `lerobot_policy_vla0.decoding.Decoder`."""
        began = time.perf_counter()
        rows = [Row(self.tables) for _ in range(len(request.ids))]
        for row, text in zip(rows, request.committed_symbols(self.tables.n_numbers), strict=True):
            for symbol in text:
                row.settle(symbol, None)
        committed = sum(len(row.trace.symbols) for row in rows)
        passes = drafted = accepted = 0
        self._begin(request)
        if not all(row.done for row in rows):
            seen = self._seen_in_prompt(request)
            scores = self.runner.prefill(request, [row.pending for row in rows])
            passes = 1
            given = [len(row.trace.symbols) for row in rows]
            for row, length in zip(rows, given, strict=True):
                row.fed = length
            self._accept(rows, scores[:, None], [[] for _ in rows], seen)
            if not all(row.done for row in rows):
                self._plan(rows)
            while not all(row.done for row in rows):
                feeds, drafts = self._next_feeds(rows)
                symbols = np.zeros((len(rows), max(map(len, feeds))), dtype=np.int64)
                for index, feed in enumerate(feeds):
                    symbols[index, : len(feed)] = feed
                starts = np.array([row.fed for row in rows])
                scores = self.runner.score(symbols, starts)
                passes += 1
                drafted += sum(map(len, drafts))
                for row, feed, draft in zip(rows, feeds, drafts, strict=True):
                    row.fed += len(feed) - len(draft)
                ends = [max(len(feed) - len(draft) - 1, 0) for feed, draft in zip(feeds, drafts, strict=True)]
                width = 1 + max(map(len, drafts))
                at = np.minimum(np.array(ends)[:, None] + np.arange(width), scores.shape[1] - 1)
                chosen = np.take_along_axis(scores, at[..., None], axis=1)
                accepted += self._accept(rows, chosen, drafts, seen)
        self._finish(rows)
        answer = self._answer(rows, request.ids.device)
        self.last = DecodeReport(
            decoder=self.name,
            passes=passes,
            tokens=sum(len(row.trace.symbols) for row in rows),
            committed=committed,
            forced=sum(row.forced for row in rows),
            drafted=drafted,
            accepted=accepted,
            milliseconds=(time.perf_counter() - began) * 1e3,
            reused=self.runner.reused_columns,
            shape=self.shape,
            traces=[row.trace for row in rows],
        )
        return answer

    def _next_feeds(self, rows: list[Row]) -> tuple[list[list[int]], list[list[int]]]:
        """Return what each row feeds next, and the part of it that is a draft."""
        feeds: list[list[int]] = []
        drafts: list[list[int]] = []
        for index, row in enumerate(rows):
            draft: list[int] = []
            pending = [] if row.done else row.pending
            if not row.done:
                draft = self._draft(index, row, max(self.width - len(pending), 0))
            feeds.append(pending + draft)
            drafts.append(draft)
        return feeds, drafts

    def _accept(
        self, rows: list[Row], scores: NDArray[Any], drafts: list[list[int]], seen: NDArray[Any] | None
    ) -> int:
        """Settle one symbol per row, and more as long as the draft agrees; return the accepted draft tokens.

        Args:
            rows: the answers.
            scores: ``(B, W, 12)``: at 0 what follows a row's settled symbols, at ``k`` what follows its
                ``k``-th draft symbol.
            drafts: the draft symbols.
            seen: ``(B, 12)`` symbols in prompt or settled answer, for the repetition penalty.
        """
        batch, width = scores.shape[:2]
        legal = np.full((batch, width), 2 * self.tables.n_local)
        used = np.zeros((batch, width), dtype=bool)
        for index, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
            if row.done:
                continue
            state = row.state
            legal[index, 0] = self.tables.legal_row(state)
            for place, symbol in enumerate(draft, start=1):
                state = self.tables.advance(state, symbol)
                legal[index, place] = self.tables.legal_row(state)
            used[index, : len(draft) + 1] = True
        if not np.isfinite(scores[used]).all():
            bad = (~np.isfinite(scores).all(-1) & used).any(1)
            raise_non_finite_logits(bad.nonzero()[0].tolist())
        if seen is not None:
            scores = self._penalise(scores, drafts, seen)
        if self.temperature > 0:
            scores = scores / np.float32(self.temperature)
        scores = np.where(self.tables.legal_rows[legal], scores, -np.inf)
        best = self._choose(scores)

        accepted = 0
        for index, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
            if row.done:
                continue
            begin = len(row.trace.symbols)
            place = 0
            while True:
                symbol = int(best[index, place])
                row.settle(symbol, scores[index, place])
                if row.done or place == len(draft) or draft[place] != symbol:
                    break
                place += 1
            row.fed += place
            accepted += place
            if draft:
                self._learn(place, len(draft))
            row.settle_forced()
            if seen is not None:
                seen[index, row.trace.symbols[begin:]] = True
        return accepted

    def _choose(self, scores: NDArray[Any]) -> NDArray[Any]:
        """Return a symbol ``(B, W)`` for each row of masked scores: the best, or a draw."""
        if self.temperature > 0:
            probabilities = torch.from_numpy(scores).double().softmax(-1)
            drawn = torch.multinomial(probabilities.flatten(0, 1), 1)
            sampled: NDArray[Any] = drawn.view(scores.shape[:2]).numpy()
            return sampled
        best: NDArray[Any] = self._order[scores[..., self._order].argmax(-1)]
        return best

    # ------------------------------------------------------------------ repetition penalty

    def _seen_in_prompt(self, request: DecodeRequest) -> NDArray[Any] | None:
        if self.repetition_penalty == 1.0:
            return None
        ids = self.grammar.token_ids
        seen: NDArray[Any] = (request.ids.unsqueeze(-1) == ids).any(1).cpu().numpy()
        for index, text in enumerate(request.committed_symbols(self.tables.n_numbers)):
            seen[index, text] = True
        return seen

    def _penalise(self, scores: NDArray[Any], drafts: list[list[int]], seen: NDArray[Any]) -> NDArray[Any]:
        """Divide positive and multiply negative scores of symbols written before, draft included."""
        written = np.zeros((*scores.shape[:2], N_SYMBOLS), dtype=bool)
        written[:, 0] = seen
        for index, draft in enumerate(drafts):
            written[index, np.arange(1, len(draft) + 1), draft] = True
        written = np.logical_or.accumulate(written, axis=1)
        penalty = np.float32(self.repetition_penalty)
        penalised: NDArray[Any] = np.where(
            written, np.where(scores < 0, scores * penalty, scores / penalty), scores
        )
        return penalised

    # ------------------------------------------------------------------ result

    def _answer(self, rows: list[Row], device: torch.device) -> Tensor:
        """Return the token ids ``(B, L)``, padded on the right."""
        length = max(len(row.trace.symbols) for row in rows)
        answer = torch.full((len(rows), length), self.vlm.tokens.pad, dtype=torch.long)
        for index, row in enumerate(rows):
            answer[index, : len(row.trace.symbols)] = self._ids[row.trace.symbols]
        return answer.to(device)
