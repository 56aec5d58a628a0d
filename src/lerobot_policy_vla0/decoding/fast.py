"""The fast decoder: one pass over the prompt (the prefill), then passes that each settle several tokens.

It returns the reference decoder's tokens. A pass feeds the tokens that are settled but that the model has not seen (its
last choice and what the grammar forces after it), and then a draft of what may follow. Every draft token that the model
would have written itself is accepted.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lerobot_policy_vla0.backbone.grad_mode import without_gradients
from lerobot_policy_vla0.decoding.drafts import ROOT, Draft, Drafter
from lerobot_policy_vla0.decoding.passes import Feed, PassRunner
from lerobot_policy_vla0.decoding.report import DecodeReport, RowTrace
from lerobot_policy_vla0.decoding.request import DecodeRequest
from lerobot_policy_vla0.text.grammar import N_SYMBOLS, SEPARATOR, AnswerGrammar, HostGrammar, check_finite

if TYPE_CHECKING:
    from lerobot_policy_vla0.backbone.vlm import VLM

#: Tokens that a pass without a draft has room for: the last choice and what the grammar forces after it.
_SETTLED_WIDTH = 8


class Row:
    """One answer while it is written.

    Attributes:
        state: the grammar state after all settled symbols.
        written: ``(12,)`` bool, the symbols in prompt or settled answer, for the repetition penalty.
        fed: settled symbols whose keys and values are in the cache.
        numbers: finished integers.
        partial: digits of the integer that is written now.
        trace: the settled symbols and the scores they were chosen from.
        forced: settled symbols that were no choice.
        stops: per pass, how many integers were finished after it.
    """

    def __init__(self, tables: HostGrammar, written: NDArray[Any]) -> None:
        self.tables = tables
        self.state = 0
        self.written = written
        self.fed = 0
        self.numbers: list[int] = []
        self.partial = ""
        self.trace = RowTrace()
        self.forced = 0
        self.stops: list[int] = []

    @property
    def done(self) -> bool:
        """Whether the end has been written."""
        return self.state >= self.tables.finished

    @property
    def pending(self) -> list[int]:
        """Settled symbols that the model has not seen; none once the answer is finished."""
        return [] if self.done else self.trace.symbols[self.fed :]

    def settle(self, symbol: int, scores: NDArray[Any] | None) -> None:
        """Append a symbol that stays."""
        self.trace.symbols.append(symbol)
        self.trace.scores.append(scores)
        self.state = self.tables.advance(self.state, symbol)
        self.written[symbol] = True
        if symbol < SEPARATOR:
            self.partial += str(symbol)
        else:
            self.numbers.append(int(self.partial))
            self.partial = ""

    def settle_forced(self) -> None:
        """Append symbols as long as the grammar allows exactly one."""
        while not self.done and (symbol := self.tables.forced(self.state)) >= 0:
            self.settle(symbol, None)
            self.forced += 1


class FastDecoder:
    """Decodes over a static cache, and checks a draft in every pass if it has a drafter.

    Args:
        vlm: see `ReferenceDecoder`.
        grammar: see `ReferenceDecoder`.
        shape: see `ReferenceDecoder`.
        temperature: see `ReferenceDecoder`; 0 if there is a drafter.
        repetition_penalty: see `ReferenceDecoder`.
        drafter: makes the drafts; None feeds settled tokens only.
    """

    def __init__(
        self,
        vlm: VLM,
        grammar: AnswerGrammar,
        *,
        shape: tuple[int, int],
        temperature: float = 0.0,
        repetition_penalty: float = 1.0,
        drafter: Drafter | None = None,
    ) -> None:
        assert temperature == 0 or drafter is None, "drafts are checked against the greedy choice"
        self.name = "speculative" if drafter else "fast"
        self.vlm = vlm
        self.grammar = grammar
        self.shape = shape
        self.temperature = temperature
        self.repetition_penalty = repetition_penalty
        self.drafter = drafter
        self.tables = grammar.host
        self.runner = PassRunner(
            vlm, grammar, max_width=max(drafter.max_width if drafter else 0, _SETTLED_WIDTH)
        )
        self.last: DecodeReport | None = None
        # Of equally good tokens the reference takes the smallest id.
        self._order = torch.argsort(grammar.token_ids.cpu()).numpy()

    def reset(self) -> None:
        """Forget what earlier answers say about the next one."""
        if self.drafter:
            self.drafter.reset()

    @without_gradients
    def decode(self, request: DecodeRequest) -> Tensor:
        """Answer a batch; see `decoding.request.Decoder`."""
        began = prefilled = time.perf_counter()
        # 1. The committed steps are the beginning of the answer.
        batch = len(request.ids)
        penalised = self.repetition_penalty != 1.0
        written = self.grammar.occurring(request.ids) if penalised else np.zeros((batch, N_SYMBOLS), bool)
        rows = [Row(self.tables, line) for line in written]
        for row, text in zip(rows, request.committed_symbols(self.tables.n_numbers), strict=True):
            for symbol in text:
                row.settle(symbol, None)
        committed = sum(len(row.trace.symbols) for row in rows)
        passes = drafted = accepted = 0
        if self.drafter:
            self.drafter.begin(request, rows)
        while not all(row.done for row in rows):
            # 2. A pass feeds settled symbols that the model has not seen, and a draft of what follows them.
            drafts = self.drafter.draft(self.runner) if self.drafter else [Draft() for _ in rows]
            pending = [row.pending for row in rows]
            feed = Feed.lay_out(pending, drafts, np.array([row.fed for row in rows]))
            # 3. The scores begin with those after the first token fed, in a prefill with those after the prompt.
            scores = self.runner.score(feed) if passes else self.runner.prefill(request, feed)
            last = np.array([max(len(settled) - (passes > 0), 0) for settled in pending])
            passes += 1
            drafted += sum(map(len, drafts))
            for row, settled in zip(rows, pending, strict=True):
                row.fed += len(settled)
            # 4. Of these, the scores after the settled text and after each guess say what the model would write there.
            places = np.minimum(last[:, None] + np.arange(1 + max(map(len, drafts))), scores.shape[1] - 1)
            scores = self._masked(np.take_along_axis(scores, places[..., None], axis=1), rows, drafts)
            best = self._choose(scores)  # (B, 1 + n)
            # 5. Each row gets one symbol, and one more for every guess that was right.
            for index, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
                if row.done:
                    continue
                path: list[int] = []
                node: int | None = ROOT
                while node is not None:
                    symbol = int(best[index, node + 1])
                    row.settle(symbol, scores[index, node + 1])
                    node = None if row.done else draft.child(node, symbol)
                    if node is not None:
                        path.append(node)
                if path != list(range(len(path))):  # the accepted guesses stand behind rejected ones
                    n = len(path)
                    self.runner.keep(np.full(n, index), row.fed + np.array(path), row.fed + np.arange(n))
                row.fed += len(path)
                row.stops.append(len(row.numbers))
                accepted += len(path)
                row.settle_forced()
                if self.drafter and len(draft):
                    self.drafter.learn(index, draft, path, best[index])
            if passes == 1:
                prefilled = time.perf_counter()
        # 6. Write the answer, and report what it took.
        answer = self.grammar.write([row.trace.symbols for row in rows], self.vlm.tokens.pad)
        self.last = DecodeReport(
            decoder=self.name,
            passes=passes,
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

    def _masked(self, scores: NDArray[Any], rows: list[Row], drafts: list[Draft]) -> NDArray[Any]:
        """Return scores ``(B, 1 + n, 12)`` after penalty and temperature, minus infinity at illegal symbols.

        Args:
            scores: at 0 what follows a row's settled symbols, at ``1 + k`` what follows its draft's symbol ``k``.
            rows: the answers.
            drafts: the guesses.

        Raises:
            DecodeError: if scores of an unfinished row are NaN or infinite.
        """
        legal = np.full(scores.shape[:2], self.tables.legal_row(self.tables.finished))
        written = np.zeros(scores.shape, dtype=bool)
        used = np.zeros(scores.shape[:2], dtype=bool)
        for index, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
            if row.done:
                continue
            states = [row.state]
            written[index, 0] = row.written
            for place, (symbol, parent) in enumerate(zip(draft.symbols, draft.parents, strict=True), start=1):
                states.append(self.tables.advance(states[parent + 1], symbol))
                written[index, place] = written[index, parent + 1]
                written[index, place, symbol] = True
            legal[index, : len(states)] = [self.tables.legal_row(state) for state in states]
            used[index, : len(states)] = True
        check_finite((np.isfinite(scores).all(-1) | ~used).all(1))
        if self.repetition_penalty != 1.0:
            scores = penalise(scores, written, self.repetition_penalty)
        if self.temperature > 0:
            scores = scores / np.float32(self.temperature)
        return np.where(self.tables.legal_rows[legal], scores, -np.inf)

    def _choose(self, scores: NDArray[Any]) -> NDArray[Any]:
        """Return a symbol ``(B, W)`` for each row of masked scores: the best, or with a temperature a random one."""
        if self.temperature > 0:
            probabilities = torch.from_numpy(scores).double().softmax(-1)
            drawn = torch.multinomial(probabilities.flatten(0, 1), 1)
            sampled: NDArray[Any] = drawn.view(scores.shape[:2]).numpy()
            return sampled
        best: NDArray[Any] = self._order[scores[..., self._order].argmax(-1)]
        return best


def penalise(scores: NDArray[Any], written: NDArray[Any], penalty: float) -> NDArray[Any]:
    """Divide positive and multiply negative scores of the symbols that were ``written`` before, as transformers does.

    >>> penalise(np.array([3.0, -3.0, 3.0]), np.array([True, True, False]), 1.5).tolist()
    [2.0, -4.5, 3.0]
    """
    penalised: NDArray[Any] = np.where(
        written, np.where(scores < 0, scores * penalty, scores / penalty), scores
    )
    return penalised
