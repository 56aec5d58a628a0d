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

from lerobot_policy_vla0.backbone.grad_mode import without_gradients
from lerobot_policy_vla0.decoding.drafts import ROOT, Draft
from lerobot_policy_vla0.decoding.passes import Feed, PassRunner
from lerobot_policy_vla0.decoding.report import DecodeReport, RowTrace
from lerobot_policy_vla0.decoding.request import DecodeRequest
from lerobot_policy_vla0.text.grammar import (
    N_SYMBOLS,
    SEPARATOR,
    AnswerGrammar,
    HostGrammar,
    raise_non_finite_logits,
)

if TYPE_CHECKING:
    from lerobot_policy_vla0.backbone.vlm import VLM


class Row:
    """One answer being written.

    Attributes:
        state: the grammar state after all settled symbols.
        fed: settled symbols whose keys and values are in the cache.
        numbers: finished integers.
        partial: digits of the integer being written.
        trace: the settled symbols and the scores they were chosen from.
        forced: settled symbols that were no choice.
        stops: per pass, how many integers were finished after it.
    """

    def __init__(self, tables: HostGrammar) -> None:
        self.tables = tables
        self.state = 0
        self.fed = 0
        self.numbers: list[int] = []
        self.partial = ""
        self.trace = RowTrace()
        self.forced = 0
        self.stops: list[int] = []  # per pass, the number it got to

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
        # Of equally good tokens the reference takes the smallest id.
        self._order = torch.argsort(grammar.token_ids.cpu()).numpy()

    # ------------------------------------------------------------------ what a subclass adds

    def reset(self) -> None:
        """Forget what was learnt from earlier answers; a new episode starts."""

    def _begin(self, request: DecodeRequest) -> None:
        """Look at a request before its prefill."""

    def _plan(self, rows: list[Row]) -> None:
        """Prepare for the passes after the prefill."""
        del rows

    def _learn(self, index: int, row: Row, draft: Draft, path: list[int], best: NDArray[Any]) -> None:
        """Look at what became of row ``index``'s draft.

        Args:
            index: of the row.
            row: with all that is settled now.
            draft: the guesses.
            path: the accepted ones.
            best: ``(1 + n,)`` what the model would write after the settled text and after each guess.
        """
        del index, row, draft, path, best

    def _draft(self, index: int, row: Row, room: int) -> Draft:
        """Return up to ``room`` legal symbols that may follow row ``index``; none by default."""
        del index, row, room
        return Draft()

    def _finish(self, rows: list[Row]) -> None:
        """Look at the finished answers."""

    # ------------------------------------------------------------------ decoding

    @without_gradients
    def decode(self, request: DecodeRequest) -> Tensor:
        """Answer a batch; see `lerobot_policy_vla0.decoding.Decoder`."""
        began = time.perf_counter()
        rows = [Row(self.tables) for _ in range(len(request.ids))]
        for row, text in zip(rows, request.committed_symbols(self.tables.n_numbers), strict=True):
            for symbol in text:
                row.settle(symbol, None)
        committed = sum(len(row.trace.symbols) for row in rows)
        passes = drafted = accepted = 0
        prefilled = began
        self._begin(request)
        if not all(row.done for row in rows):
            seen = self._seen_so_far(request, rows)
            while not all(row.done for row in rows):
                pending = [[] if row.done else row.pending for row in rows]
                drafts = [
                    Draft() if row.done else self._draft(index, row, max(self.width - len(settled), 0))
                    for index, (row, settled) in enumerate(zip(rows, pending, strict=True))
                ]
                feed = self._feed(rows, pending, drafts)
                # `scores` begins with what follows the first token fed, in a prefill with what follows the prompt.
                scores = self.runner.score(feed) if passes else self.runner.prefill(request, feed)
                last = np.array([max(len(settled) - (passes > 0), 0) for settled in pending])
                passes += 1
                drafted += sum(map(len, drafts))
                for row, settled in zip(rows, pending, strict=True):
                    row.fed += len(settled)
                # What follows the settled text, then what follows each guess.
                width = 1 + max(map(len, drafts))
                at = np.minimum(last[:, None] + np.arange(width), scores.shape[1] - 1)
                chosen = np.take_along_axis(scores, at[..., None], axis=1)
                accepted += self._accept(rows, chosen, drafts, seen)
                if passes == 1:
                    prefilled = time.perf_counter()
                    if not all(row.done for row in rows):
                        self._plan(rows)
        self._finish(rows)
        answer = self.grammar.write([row.trace.symbols for row in rows], self.vlm.tokens.pad)
        self.last = DecodeReport(
            decoder=self.name,
            passes=passes,
            tokens=sum(len(row.trace.symbols) for row in rows),
            committed=committed,
            forced=sum(row.forced for row in rows),
            drafted=drafted,
            accepted=accepted,
            milliseconds=(time.perf_counter() - began) * 1e3,
            prefill_milliseconds=(prefilled - began) * 1e3,
            reused=self.runner.reused_columns,
            shape=self.shape,
            traces=[row.trace for row in rows],
            stops=[row.stops for row in rows],
        )
        return answer

    def _feed(self, rows: list[Row], pending: list[list[int]], drafts: list[Draft]) -> Feed:
        """Lay out settled symbols and drafts, shorter rows filled up with symbols nobody looks at."""
        width = max(len(settled) + len(draft) for settled, draft in zip(pending, drafts, strict=True))
        symbols = np.zeros((len(rows), width), dtype=np.int64)
        feed = Feed.chain(symbols, np.array([row.fed for row in rows]))
        for index, (settled, draft) in enumerate(zip(pending, drafts, strict=True)):
            first, end = len(settled), len(settled) + len(draft)
            symbols[index, :end] = settled + draft.symbols
            if len(draft):
                feed.depths[index, first:end] = first + np.array(draft.depths())
                feed.visible[index, first:end, first:end] = draft.visibility()
        return feed

    def _accept(
        self, rows: list[Row], scores: NDArray[Any], drafts: list[Draft], seen: NDArray[Any] | None
    ) -> int:
        """Settle one symbol per row, and more as long as a draft agrees; return the accepted draft symbols.

        Args:
            rows: the answers; what is settled is in the cache.
            scores: ``(B, 1 + n, 12)``: at 0 what follows a row's settled symbols, at ``1 + k`` what follows
                its draft's symbol ``k``.
            drafts: the guesses, in the cache after the settled symbols.
            seen: ``(B, 12)`` symbols in prompt or settled answer, for the repetition penalty; updated.
        """
        legal = np.full(scores.shape[:2], 2 * self.tables.n_local)
        used = np.zeros(scores.shape[:2], dtype=bool)
        for index, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
            if row.done:
                continue
            states = [row.state]
            for symbol, parent in zip(draft.symbols, draft.parents, strict=True):
                states.append(self.tables.advance(states[parent + 1], symbol))
            legal[index, : len(states)] = [self.tables.legal_row(state) for state in states]
            used[index, : len(states)] = True
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
            settled = len(row.trace.symbols)
            path: list[int] = []
            node: int | None = ROOT
            while node is not None:
                symbol = int(best[index, node + 1])
                row.settle(symbol, scores[index, node + 1])
                node = None if row.done else draft.child(node, symbol)
                if node is not None:
                    path.append(node)
            if path != list(range(len(path))):
                self.runner.keep(index, row.fed, path)
            row.fed += len(path)
            row.stops.append(len(row.numbers))
            accepted += len(path)
            row.settle_forced()
            if len(draft):
                self._learn(index, row, draft, path, best[index])
            if seen is not None:
                seen[index, row.trace.symbols[settled:]] = True
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

    def _seen_so_far(self, request: DecodeRequest, rows: list[Row]) -> NDArray[Any] | None:
        """Return which symbols stand in prompt or committed answer ``(B, 12)``; None without a penalty."""
        if self.repetition_penalty == 1.0:
            return None
        ids = self.grammar.token_ids
        seen: NDArray[Any] = (request.ids.unsqueeze(-1) == ids).any(1).cpu().numpy()
        for index, row in enumerate(rows):
            seen[index, row.trace.symbols] = True
        return seen

    def _penalise(self, scores: NDArray[Any], drafts: list[Draft], seen: NDArray[Any]) -> NDArray[Any]:
        """Divide positive and multiply negative scores of symbols written before, draft included."""
        written = np.zeros((*scores.shape[:2], N_SYMBOLS), dtype=bool)
        written[:, 0] = seen
        for index, draft in enumerate(drafts):
            for place, (symbol, parent) in enumerate(zip(draft.symbols, draft.parents, strict=True), start=1):
                written[index, place] = written[index, parent + 1]
                written[index, place, symbol] = True
        penalty = np.float32(self.repetition_penalty)
        penalised: NDArray[Any] = np.where(
            written, np.where(scores < 0, scores * penalty, scores / penalty), scores
        )
        return penalised
