"""The speculative decoder: guesses the answer, and lets one pass check many guessed tokens.

The guess never changes the answer, only how many passes it takes: a token is settled when the model itself
would have written it (`FastDecoder` checks). What is worth guessing for an action chunk, best first:

- what the model said, in the pass before, it would write after a guess that turned out wrong;
- a step the previous chunk already predicted: the same numbers, shifted by the steps executed since;
- a step beyond it: the two steps before it, carried on;
- within a number some of whose digits are settled: the legal number nearest to the guess that begins with them;
- nothing to go by (an episode's first action): every symbol that may come next, side by side.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lerobot_policy_vla0.decoding.autotune import MEASURED, WIDTHS, Acceptance, best_width, measure_widths
from lerobot_policy_vla0.decoding.drafts import ROOT, Draft
from lerobot_policy_vla0.decoding.fast import FastDecoder, Row
from lerobot_policy_vla0.decoding.passes import Feed
from lerobot_policy_vla0.decoding.request import DecodeRequest
from lerobot_policy_vla0.text.grammar import END, N_SYMBOLS, SEPARATOR, AnswerGrammar

if TYPE_CHECKING:
    from lerobot_policy_vla0.backbone.vlm import VLM


logger = logging.getLogger(__name__)


class SpeculativeDecoder(FastDecoder):
    """Decodes greedily with drafts.

    Args:
        vlm: the backbone.
        grammar: the legal answers.
        n_bins: the top integer.
        draft_width: tokens of the widest pass; None measures what pays, per batch size, before the first
            pass that could use it.
        **options: see `FastDecoder`; ``temperature`` must be 0.
    """

    name = "speculative"

    def __init__(
        self, vlm: VLM, grammar: AnswerGrammar, *, n_bins: int, draft_width: int | None = None, **options: Any
    ) -> None:
        super().__init__(vlm, grammar, max_width=draft_width or max(WIDTHS), **options)
        self.draft_width = draft_width
        self._times: dict[int, dict[int, float]] = {}  # per batch size: width to seconds
        self._acceptance = Acceptance()
        assert self.temperature == 0, "drafts are checked against the greedy choice"
        self.n_bins = n_bins
        self._previous: NDArray[Any] | None = None  # (B, T, D) bins of the last answer
        self._guess: list[list[int | None]] = []  # per row, N guesses, None where there is nothing to go by
        # Per row, where its last draft began (number, digits written of it) and the guessed symbols in a row.
        self._chained: list[tuple[int, str, int]] = []
        self._siblings = True

    def reset(self) -> None:
        """Forget the previous chunks: they belong to another episode."""
        self._previous = None

    def _begin(self, request: DecodeRequest) -> None:
        steps, dims = self.shape
        batch = len(request.ids)
        self._chained = [(0, "", 0)] * batch
        if self._previous is None or len(self._previous) != batch:
            self._guess = [[None] * (steps * dims) for _ in range(batch)]
            return
        shift = min(self._shift(request), steps)
        last = self._previous[:, -1].tolist()
        self._guess = []
        for chunk, final in zip(self._previous, last, strict=True):
            left: list[int | None] = chunk[shift:].reshape(-1).tolist()
            # Nothing left of the chunk: the robot goes on from where it ended.
            self._guess.append([*(left or final), *[None] * (steps * dims - len(left or final))])

    def _plan(self, rows: list[Row]) -> None:
        """Choose the width of this answer's passes."""
        if self.draft_width is not None:
            return  # as wide as it was told to be, siblings included
        batch = len(rows)
        if batch not in self._times:
            starts = np.array([row.fed for row in rows])

            def run(width: int) -> None:
                # The columns written here are written again before anything looks at them.
                self.runner.score(Feed.chain(np.zeros((batch, width), dtype=np.int64), starts))

            for width in WIDTHS if self.runner.static else ():
                run(width)  # captured now, not when an episode first needs it
            self._times[batch] = measure_widths(run)
            logger.info(
                "decoder: a pass of a batch of %d takes %s",
                batch,
                ", ".join(f"{1e3 * self._times[batch][w]:.1f} ms at width {w}" for w in MEASURED),
            )
        times = self._times[batch]
        self.width = best_width(times, self._acceptance.rate)
        # Siblings settle two symbols in a pass instead of one.
        self._siblings = times[N_SYMBOLS] < 2 * times[2]

    def _learn(self, index: int, row: Row, draft: Draft, path: list[int], best: NDArray[Any]) -> None:
        number, written, length = self._chained[index]
        if not length:
            return
        self._acceptance.add(len(path), length)
        if row.done or len(path) == length:
            return
        # The model has also said what it would write at each place of the part that was turned down. It said so
        # after a wrong number, which is still more than was known before this pass.
        wanted: str | None = None
        for symbol, choice in zip(draft.symbols, best.tolist(), strict=False):
            if wanted is None and choice != symbol:
                wanted = written + str(choice) if choice < SEPARATOR else written
            if symbol < SEPARATOR:
                written += str(symbol)
                continue
            if wanted and number > len(row.numbers):
                self._guess[index][number] = int(nearest_with_prefix(int(written), wanted, self.n_bins))
            number, written, wanted = number + 1, "", None

    def _shift(self, request: DecodeRequest) -> int:
        """Return how many steps passed since the previous chunk."""
        if request.committed is not None and request.committed.shape[1] and self._previous is not None:
            # The committed steps are steps of the previous chunk: look where they fit best.
            given = request.committed.cpu().numpy()
            length = given.shape[1]
            errors = [
                np.abs(self._previous[:, shift : shift + length] - given[:, : self.shape[0] - shift]).mean()
                for shift in range(self.shape[0])
            ]
            return int(np.argmin(errors))
        return request.steps_since

    def _draft(self, index: int, row: Row, room: int) -> Draft:
        draft = Draft()
        draft.extend(self._chain(index, row.numbers, row.partial, room), ROOT, room)
        self._chained[index] = (len(row.numbers), row.partial, len(draft))
        if not len(draft) and self._siblings:
            # Nothing to go by: feed every symbol that may come next, to have what follows it as well.
            legal = self.tables.legal_rows[self.tables.legal_row(row.state), :END].nonzero()[0]
            if self.draft_width is None or len(legal) <= room:
                for symbol in legal:
                    draft.add(int(symbol), ROOT)
        return draft

    def _chain(self, index: int, numbers: list[int], partial: str, room: int) -> list[int]:
        """Return the guessed text after ``numbers`` and the digits ``partial``, at least ``room`` symbols of it."""
        out: list[int] = []
        numbers = list(numbers)
        while len(out) < room and len(numbers) < self.tables.n_numbers:
            target = self._target(index, numbers)
            if target is None:
                break
            text = nearest_with_prefix(target, partial, self.n_bins)
            out += [int(c) for c in text[len(partial) :]]
            numbers.append(int(text))
            partial = ""
            if len(numbers) < self.tables.n_numbers:
                out.append(SEPARATOR)
        return out

    def _target(self, index: int, numbers: list[int]) -> int | None:
        """Return the guess for the number after ``numbers``, None if there is nothing to go by."""
        guess = self._guess[index][len(numbers)]
        if guess is not None:
            return guess
        dims = self.shape[1]
        if len(numbers) < dims:
            return None
        if len(numbers) < 2 * dims:
            return numbers[-dims]
        return min(max(2 * numbers[-dims] - numbers[-2 * dims], 0), self.n_bins)

    def _finish(self, rows: list[Row]) -> None:
        steps, dims = self.shape
        self._previous = np.array([row.numbers for row in rows]).reshape(-1, steps, dims)


def nearest_with_prefix(target: int, prefix: str, n_bins: int) -> str:
    """Return the integer in ``[0, n_bins]`` nearest to ``target`` whose text begins with ``prefix``.

    >>> nearest_with_prefix(47, "", 100), nearest_with_prefix(47, "5", 100), nearest_with_prefix(47, "3", 100)
    ('47', '50', '39')
    >>> nearest_with_prefix(47, "0", 100), nearest_with_prefix(9, "10", 100)
    ('0', '10')
    """
    text = str(target)
    if text.startswith(prefix):
        return text
    if prefix == "0":
        return prefix
    low = high = int(prefix)
    best = low
    while low <= n_bins:
        candidate = min(max(target, low), high, n_bins)
        if abs(candidate - target) < abs(best - target):
            best = candidate
        low, high = low * 10, high * 10 + 9
    return str(best)
