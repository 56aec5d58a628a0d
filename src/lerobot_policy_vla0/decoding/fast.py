"""The fast decoder: one pass over the prompt (the prefill), then passes that each settle several tokens.

It returns the reference decoder's tokens. A pass feeds the tokens that are settled but that the model has not seen (its
last choice and what the grammar forces after it), and then a draft of what may follow. Every draft token that the model
would have written itself is accepted.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lerobot_policy_vla0.backbone.grad_mode import without_gradients
from lerobot_policy_vla0.decoding.drafts import NONE, Chain, Draft, Drafter, side_by_side
from lerobot_policy_vla0.decoding.feed import Feed
from lerobot_policy_vla0.decoding.passes import PassRunner
from lerobot_policy_vla0.decoding.report import DecodeReport, RowTrace
from lerobot_policy_vla0.decoding.request import DecodeRequest
from lerobot_policy_vla0.text.grammar import N_SYMBOLS, AnswerGrammar, HostGrammar, check_finite

if TYPE_CHECKING:
    from lerobot_policy_vla0.backbone.vlm import VLM
    from lerobot_policy_vla0.decoding.lean import LeanModel

#: Tokens that a pass without a draft has room for: the last choice and what the grammar forces after it.
_SETTLED_WIDTH = 8


#: Turns symbols into text that numbers are read from.
_CHARACTERS = bytes.maketrans(bytes(range(N_SYMBOLS)), b"0123456789  ")


class Row:
    """One answer while it is written.

    Attributes:
        number: of its prompt in the request.
        text: the settled symbols.
        scores: for each, the scores ``(12,)`` it was chosen from, None if it was no choice.
        state: the grammar state after them.
        written: ``(12,)`` bool, the symbols in prompt or settled answer; None if there is no repetition penalty.
        fed: settled symbols whose keys and values are in the cache.
        numbers: finished integers.
        partial: digits of the integer that is written now.
        forced: settled symbols that were no choice.
        stops: per pass, how many integers were finished after it.
    """

    def __init__(self, tables: HostGrammar, number: int) -> None:
        self.tables = tables
        self.number = number
        self.text = bytearray()
        self.scores: list[NDArray[Any] | None] = []
        self.state = 0
        self.written: NDArray[Any] | None = None
        self.fed = 0
        self.numbers: list[int] = []
        self.partial = ""
        self.forced = 0
        self.stops: list[int] = []

    @property
    def done(self) -> bool:
        """Whether the end has been written."""
        return self.state >= self.tables.finished

    @property
    def pending(self) -> bytes:
        """Settled symbols that the model has not seen; none once the answer is finished."""
        return b"" if self.done else bytes(self.text[self.fed :])

    def settle(self, symbols: bytes, scores: Iterable[NDArray[Any] | None]) -> None:
        """Append symbols that stay."""
        self.text += symbols
        self.scores.extend(scores)
        *words, self.partial = (self.partial + symbols.translate(_CHARACTERS).decode()).split(" ")
        self.numbers += map(int, words)
        self.state = len(self.numbers) * self.tables.n_local
        for digit in map(int, self.partial):
            self.state = self.tables.advance(self.state, digit)
        if self.written is not None:
            self.written[list(symbols)] = True

    def settle_forced(self) -> None:
        """Append symbols as long as the grammar allows exactly one."""
        while not self.done and (symbol := self.tables.forced(self.state)) >= 0:
            self.settle(bytes([symbol]), [None])
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
        model: runs the backbone; None builds one. Another decoder's saves a second copy of fused weights.
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
        model: LeanModel | None = None,
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
        width = max(drafter.max_width if drafter else 0, _SETTLED_WIDTH)
        self.runner = PassRunner(vlm, grammar, max_width=width, model=model)
        self.last: DecodeReport | None = None
        # Of equally good tokens the reference takes the smallest id.
        self._order = torch.argsort(grammar.token_ids.cpu()).numpy().astype(np.uint8)

    def reset(self) -> None:
        """Forget what earlier answers say about the next one."""
        if self.drafter:
            self.drafter.reset()

    @without_gradients
    def decode(self, request: DecodeRequest) -> Tensor:
        """Answer a batch; see `decoding.request.Decoder`."""
        began = prefilled = time.perf_counter()
        # 1. The committed steps are the beginning of the answer.
        rows = [Row(self.tables, number) for number in range(len(request.ids))]
        if self.repetition_penalty != 1.0:
            for row, line in zip(rows, self.grammar.occurring(request.ids), strict=True):
                row.written = line
        for row, text in zip(rows, request.committed_symbols(self.tables.n_numbers), strict=True):
            row.settle(bytes(text), [None] * len(text))
        committed = sum(len(row.text) for row in rows)
        passes = drafted = accepted = 0
        if self.drafter:
            self.drafter.begin(request, rows)
        active = rows  # in the order in which they stand in a pass
        while not all(row.done for row in rows):
            # 2. A pass feeds settled symbols that the model has not seen, and a draft of what follows them. Finished
            # rows are left out.
            guesses = self.drafter.draft(self.runner) if self.drafter else [Chain() for _ in rows]
            if passes:
                active = [active[place] for place in self.runner.leave_out([row.done for row in active])]
            drafts = [guesses[row.number] for row in active]
            pending = [row.pending for row in active]
            feed = Feed.lay_out(pending, drafts, np.array([row.fed for row in active]))
            # 3. The scores begin with those after the first token fed, in a prefill with those after the prompt.
            scores = self.runner.score(feed) if passes else self.runner.prefill(request, feed)
            last = np.array([max(len(settled) - (passes > 0), 0) for settled in pending])
            passes += 1
            longest = max(map(len, drafts))
            drafted += sum(map(len, drafts))
            # 4. Of these, the scores after the settled text and after each guess say what the model would write there.
            places = np.minimum(last[:, None] + np.arange(1 + longest), scores.shape[1] - 1)
            scores = self._masked(scores[np.arange(len(active))[:, None], places], active, drafts)
            best = self._choose(scores)  # (B, 1 + n)
            # 5. Each row gets one symbol, and one more for every guess that was right.
            wrong = np.ones(best.shape, dtype=bool)
            wrong[:, :longest] = best[:, :longest] != side_by_side(
                [bytes(d.symbols) for d in drafts], longest, NONE
            )
            right = wrong.argmax(1).tolist()
            moves: list[tuple[int, int, int]] = []
            for place, (row, draft) in enumerate(zip(active, drafts, strict=True)):
                if row.done:
                    continue
                row.fed += len(pending[place])
                line = best[place].tobytes()
                if isinstance(draft, Chain):
                    count = right[place]
                    row.settle(line[: count + 1], scores[place, : count + 1])
                else:
                    path = draft.path(line)
                    count = len(path)
                    # Accepted guesses that stand behind rejected ones.
                    moves += [(place, row.fed + node, row.fed + k) for k, node in enumerate(path) if node > k]
                    steps = [0, *(node + 1 for node in path)]
                    row.settle(bytes(line[step] for step in steps), scores[place, steps])
                row.fed += count
                row.stops.append(len(row.numbers))
                accepted += count
                row.settle_forced()
                if self.drafter and len(draft):
                    self.drafter.learn(row.number, draft, count, line)
            if moves:
                self.runner.keep(*np.array(moves).T)
            if passes == 1:
                prefilled = time.perf_counter()
        # 6. Write the answer, and report what it took.
        traces = [RowTrace(list(row.text), row.scores) for row in rows]
        answer = self.grammar.write([trace.symbols for trace in traces], self.vlm.tokens.pad)
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
            traces=traces,
            stops=[row.stops for row in rows],
        )
        return answer

    def _masked(self, scores: NDArray[Any], rows: list[Row], drafts: Sequence[Chain | Draft]) -> NDArray[Any]:
        """Return scores ``(B, 1 + n, 12)`` after penalty and temperature, minus infinity at illegal symbols.

        Args:
            scores: at 0 what follows a row's settled symbols, at ``1 + k`` what follows its draft's symbol ``k``.
            rows: the answers of the pass.
            drafts: the guesses.

        Raises:
            DecodeError: if scores of an unfinished row are NaN or infinite.
        """
        finite = np.isfinite(scores).all(-1)
        if not finite.all():
            ends = np.array([0 if row.done else 1 + len(d) for row, d in zip(rows, drafts, strict=True)])
            in_request = np.ones(1 + max(row.number for row in rows), dtype=bool)
            in_request[[row.number for row in rows]] = (
                finite | (np.arange(scores.shape[1]) >= ends[:, None])
            ).all(1)
            check_finite(in_request)
        if self.repetition_penalty != 1.0:
            written = np.zeros(scores.shape, dtype=bool)
            for index, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
                written[index] = row.written
                if len(draft):
                    written[index, 1 : 1 + len(draft)] |= draft.seen()
            scores = penalise(scores, written, self.repetition_penalty)
        if self.temperature > 0:
            scores = scores / np.float32(self.temperature)
        legal = [
            bytes([self.tables.legal_row(row.state)]) + draft.legal_after(self.tables, row.state)
            for row, draft in zip(rows, drafts, strict=True)
        ]
        allowed = self.tables.legal_rows[side_by_side(legal, scores.shape[1])]
        return np.where(allowed, scores, -np.inf)

    def _choose(self, scores: NDArray[Any]) -> NDArray[Any]:
        """Return a symbol ``(B, W)`` uint8 for each row of masked scores: the best, with a temperature a random one."""
        if self.temperature > 0:
            probabilities = torch.from_numpy(scores).double().softmax(-1)
            drawn = torch.multinomial(probabilities.flatten(0, 1), 1)
            sampled: NDArray[Any] = drawn.view(scores.shape[:2]).numpy().astype(np.uint8)
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
