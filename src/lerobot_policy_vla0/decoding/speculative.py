"""Drafts for an action chunk, made mostly from the chunk before it. `FastDecoder` checks them.

A good guess saves passes; a wrong one changes nothing. The guesses for a number are, best first:

- the model's own correction: what it wrote, in the pass before, at this place of a draft that was wrong further ahead;
- the number that the previous chunk predicted for the same control step;
- for steps beyond the previous chunk: the two steps before, continued in a straight line;
- where some digits of the number are settled: the legal number nearest to the guess that begins with these digits;
- without a previous chunk (the first query of an episode): every symbol that may come next, side by side.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lerobot_policy_vla0.decoding.autotune import (
    CAPTURED,
    MEASURED,
    WIDTHS,
    Acceptance,
    best_width,
    measure_widths,
    time_of,
)
from lerobot_policy_vla0.decoding.drafts import ROOT, Draft
from lerobot_policy_vla0.decoding.fast import Row
from lerobot_policy_vla0.decoding.passes import Feed, PassRunner
from lerobot_policy_vla0.decoding.request import DecodeRequest
from lerobot_policy_vla0.text.grammar import END, N_SYMBOLS, SEPARATOR, AnswerGrammar

logger = logging.getLogger(__name__)


class PreviousChunkDrafter:
    """Makes drafts from the previous chunk; see `decoding.drafts.Drafter`.

    Args:
        grammar: the legal answers.
        shape: ``(chunk_size, action_dim)``.
        draft_width: tokens of a pass; None measures, once per batch size and after its first prefill, how long passes
            take, and chooses the best width for every answer.
    """

    def __init__(
        self, grammar: AnswerGrammar, *, shape: tuple[int, int], draft_width: int | None = None
    ) -> None:
        self.tables = grammar.host
        self.n_bins = grammar.n_bins
        self.shape = shape
        self.draft_width = draft_width
        self.max_width = self.width = draft_width or max(WIDTHS)
        self._times: dict[int, dict[int, float]] = {}  # per batch size: seconds of a pass by its width
        self._acceptance = Acceptance()
        self._siblings = True  # whether all legal symbols are fed side by side where there is no guess
        self._rows: list[Row] = []
        self._passes = 0  # drafts made for this answer
        self._previous: NDArray[Any] | None = None  # (B, T, D) bins of the last finished answer
        self._guess: list[list[int | None]] = []  # per row and number; None without a previous chunk
        # Per row, about its last draft: index of the number it began in, the settled digits of that number, and its
        # length; 0 for siblings, which teach nothing.
        self._last_chain: list[tuple[int, str, int]] = []

    def reset(self) -> None:
        """Forget the previous chunks, which belong to another episode."""
        self._previous = None
        self._rows = []

    def begin(self, request: DecodeRequest, rows: list[Row]) -> None:
        """Guess the answer: the previous chunk, shifted by the steps executed since."""
        steps, dims = self.shape
        # The last answer is the previous chunk, unless an error left it unfinished.
        if self._rows and all(row.done for row in self._rows):
            self._previous = np.array([row.numbers for row in self._rows]).reshape(-1, steps, dims)
        self._rows = rows
        self._passes = 0
        self._last_chain = [(0, "", 0)] * len(rows)
        self._guess = [[None] * (steps * dims) for _ in rows]
        if self._previous is None or len(self._previous) != len(rows):
            return
        shift = min(self._shift(request, self._previous), steps)
        for guess, chunk in zip(self._guess, self._previous, strict=True):
            # After a chunk that was executed to its end, the robot continues from its last step.
            left = chunk[shift:] if shift < steps else chunk[-1:]
            guess[: left.size] = left.flatten().tolist()

    def _shift(self, request: DecodeRequest, previous: NDArray[Any]) -> int:
        """Return how many steps were executed since the previous chunk ``(B, T, D)`` began."""
        if request.committed is None or not request.committed.shape[1]:
            return request.steps_since
        # The committed steps are steps of the previous chunk: look where they fit best.
        committed = request.committed.cpu().numpy()
        length, steps = committed.shape[1], self.shape[0]
        errors = [
            np.abs(previous[:, shift : shift + length] - committed[:, : steps - shift]).mean()
            for shift in range(steps)
        ]
        return int(np.argmin(errors))

    # ------------------------------------------------------------------ drafts

    def draft(self, runner: PassRunner) -> list[Draft]:
        """Return each row's guesses, as many as fit into a pass of the chosen width beside the settled symbols."""
        if self._passes == 1 and self.draft_width is None:  # the prefill is done, so that passes can be timed
            self._choose_width(runner)
        self._passes += 1
        return [
            Draft() if row.done else self._draft_row(index, row, max(self.width - len(row.pending), 0))
            for index, row in enumerate(self._rows)
        ]

    def _choose_width(self, runner: PassRunner) -> None:
        """Choose the width of this answer's passes, and whether siblings save time."""
        batch = len(self._rows)
        if batch not in self._times:
            starts = np.array([row.fed for row in self._rows])

            def run(width: int) -> None:
                # The columns written here are written again before a pass looks at them.
                runner.score(Feed.chain(np.zeros((batch, width), dtype=np.int64), starts))

            measured, offered = (CAPTURED, CAPTURED) if runner.static else (MEASURED, WIDTHS)
            times = self._times[batch] = measure_widths(run, measured=measured, offered=offered)
            logger.info(
                "decoder: a pass of a batch of %d takes %s",
                batch,
                ", ".join(f"{1e3 * times[w]:.1f} ms at width {w}" for w in measured if w in times),
            )
        times = self._times[batch]
        self.width = best_width(times, self._acceptance.rate)
        # Siblings settle two symbols in a pass instead of one.
        self._siblings = time_of(times, N_SYMBOLS) < 2 * time_of(times, 2)

    def _draft_row(self, index: int, row: Row, room: int) -> Draft:
        """Return up to ``room`` guesses for row ``index``; more only for siblings of a width that was measured."""
        draft = Draft()
        draft.extend(self._chain(index, row.numbers, row.partial, room), ROOT, room)
        self._last_chain[index] = (len(row.numbers), row.partial, len(draft))
        if not len(draft) and self._siblings:
            # There is no guess: feed every symbol that may come next, to have what follows it as well.
            legal = self.tables.legal_rows[self.tables.legal_row(row.state), :END].nonzero()[0]
            if self.draft_width is None or len(legal) <= room:
                for symbol in legal:
                    draft.add(int(symbol), ROOT)
        return draft

    def _chain(self, index: int, numbers: list[int], partial: str, room: int) -> list[int]:
        """Return the guessed symbols after ``numbers`` and the digits ``partial``, until they are ``room`` or more."""
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
        """Return the guess for the number after ``numbers``; None in a first step without a previous chunk."""
        guess = self._guess[index][len(numbers)]
        if guess is not None:
            return guess
        dims = self.shape[1]
        if len(numbers) < dims:
            return None
        if len(numbers) < 2 * dims:
            return numbers[-dims]
        return min(max(2 * numbers[-dims] - numbers[-2 * dims], 0), self.n_bins)

    # ------------------------------------------------------------------ what a pass teaches

    def learn(self, index: int, draft: Draft, path: list[int], best: NDArray[Any]) -> None:
        """Count the accepted guesses, and take over what the model wrote at the places after a wrong one."""
        row = self._rows[index]
        number, written, length = self._last_chain[index]
        if not length:
            return
        self._acceptance.add(len(path), length)
        if row.done or len(path) == length:
            return
        # The model also said what it would write at each place of the rejected part. It said so after a wrong number,
        # and still knew more than the guess did.
        wanted: str | None = None  # of the current number: the digits up to the model's first correction
        for symbol, choice in zip(draft.symbols, best.tolist(), strict=False):
            if wanted is None and choice != symbol:
                wanted = written + str(choice) if choice < SEPARATOR else written
            if symbol < SEPARATOR:
                written += str(symbol)
                continue
            if wanted and number > len(row.numbers):
                self._guess[index][number] = int(nearest_with_prefix(int(written), wanted, self.n_bins))
            number, written, wanted = number + 1, "", None


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
