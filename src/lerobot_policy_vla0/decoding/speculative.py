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
from lerobot_policy_vla0.decoding.drafts import ROOT, Chain, Draft
from lerobot_policy_vla0.decoding.fast import Row
from lerobot_policy_vla0.decoding.feed import Feed
from lerobot_policy_vla0.decoding.passes import PassRunner
from lerobot_policy_vla0.decoding.request import DecodeRequest
from lerobot_policy_vla0.text.grammar import END, N_SYMBOLS, SEPARATOR, AnswerGrammar, HostGrammar

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
        self._spelled = _Spelled(grammar.host)
        # Per row, about its last draft: the number it began in, how many digits of that were settled, and the numbers
        # guessed; none for siblings, which teach nothing.
        self._last_chain: list[tuple[int, int, list[int]]] = []

    def reset(self) -> None:
        """Forget the previous chunks, which belong to another episode."""
        self._previous = None
        self._rows = []

    def begin(self, request: DecodeRequest, rows: list[Row]) -> None:
        """Guess the answer: the previous chunk, shifted by the steps executed since."""
        steps, dims = self.shape
        previous = self._previous_chunks(request, len(rows))
        self._rows = rows
        self._passes = 0
        self._last_chain = [(0, 0, [])] * len(rows)
        self._guess = [[None] * (steps * dims) for _ in rows]
        known = [index for index, chunk in enumerate(previous) if chunk is not None]
        if not known:
            return
        shift = min(self._shift(request, previous, known), steps)
        for index in known:
            # After a chunk that was executed to its end, the robot continues from its last step.
            chunk = previous[index]
            left = chunk[shift:] if shift < steps else chunk[-1:]
            self._guess[index][: left.size] = left.flatten().tolist()

    def _previous_chunks(self, request: DecodeRequest, rows: int) -> list[Any]:
        """Return each row's chunk before, ``(T, D)`` bins, or None: those of the request, or of the last answer."""
        if request.previous is not None:
            return [
                None if bins is None else np.array(bins, dtype=np.int64).reshape(self.shape)
                for bins in request.previous
            ]
        # The last answer is the previous chunk, unless an error left it unfinished.
        if self._rows and all(row.done for row in self._rows):
            self._previous = np.array([row.numbers for row in self._rows]).reshape(-1, *self.shape)
        if self._previous is None or len(self._previous) != rows:
            return [None] * rows
        return list(self._previous)

    def _shift(self, request: DecodeRequest, previous: list[Any], known: list[int]) -> int:
        """Return how many steps were executed since the previous chunks ``(T, D)`` of the ``known`` rows began."""
        if request.committed is None or not request.committed.shape[1]:
            return request.steps_since
        # The committed steps are steps of the previous chunk: look where they fit best.
        committed = request.committed.cpu().numpy()[known]
        chunks = np.stack([previous[index] for index in known])
        length, steps = committed.shape[1], self.shape[0]
        errors = [
            np.abs(chunks[:, shift : shift + length] - committed[:, : steps - shift]).mean()
            for shift in range(steps)
        ]
        return int(np.argmin(errors))

    # ------------------------------------------------------------------ drafts

    def draft(self, runner: PassRunner) -> list[Chain | Draft]:
        """Return each row's guesses, as many as fit into a pass of the chosen width beside the settled symbols."""
        if self._passes == 1 and self.draft_width is None:  # the prefill is done, so that passes can be timed
            self._choose_width(runner)
        self._passes += 1
        return [
            Chain() if row.done else self._draft_row(index, row, max(self.width - len(row.pending), 0))
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

    def _draft_row(self, index: int, row: Row, room: int) -> Chain | Draft:
        """Return up to ``room`` guesses for row ``index``; more only for siblings of a width that was measured."""
        chain = self._chain(index, row, room)
        if len(chain) or not self._siblings:
            return chain
        # There is no guess: feed every symbol that may come next, to have what follows it as well.
        legal = self.tables.legal_rows[self.tables.legal_row(row.state), :END].nonzero()[0].tolist()
        if self.draft_width is not None and len(legal) > room:
            return chain
        draft = Draft()
        for symbol in legal:
            draft.add(symbol, ROOT)
        return draft

    def _chain(self, index: int, row: Row, room: int) -> Chain:
        """Return the guessed symbols after those settled of row ``index``, at most ``room``."""
        first, begun = len(row.numbers), len(row.partial)
        values = self._targets(index, row, room // 2 + 1) if room else []  # a number has two symbols or more
        self._last_chain[index] = (first, begun, values)
        if not values:
            return Chain()
        spelled = [self._spelled[value] for value in values]
        symbols = b"".join([text for text, _ in spelled])
        legal = b"".join([rows for _, rows in spelled])
        if (
            first + len(values) == self.tables.n_numbers
        ):  # no guess ends an answer, and its last number's rows differ
            symbols, legal = symbols[:-1], legal[:-1]
            cut = max(len(symbols) - len(spelled[-1][0]), 0)  # of the separator before the number
            legal = legal[:cut] + self._spelled.of_last(legal[cut:])
        return Chain(symbols[begun : begun + room], legal[begun : begun + room])

    def _targets(self, index: int, row: Row, count: int) -> list[int]:
        """Return guesses for at most ``count`` numbers, from the one that is written now on."""
        first = len(row.numbers)
        values = self._guess[index][first : first + count]
        if values[0] is not None and row.partial:
            values[0] = int(nearest_with_prefix(values[0], row.partial, self.n_bins))
        if None not in values:
            return values  # type: ignore[return-value]
        line = list(row.numbers)
        for value in values:
            target = self._continued(line) if value is None else value
            if target is None:
                break
            if len(line) == first:
                target = int(nearest_with_prefix(target, row.partial, self.n_bins))
            line.append(target)
        return line[first:]

    def _continued(self, numbers: list[int]) -> int | None:
        """Return the number after others by the two steps before; None in a first step."""
        dims = self.shape[1]
        if len(numbers) < dims:
            return None
        if len(numbers) < 2 * dims:
            return numbers[-dims]
        return min(max(2 * numbers[-dims] - numbers[-2 * dims], 0), self.n_bins)

    # ------------------------------------------------------------------ what a pass teaches

    def learn(self, index: int, draft: Chain | Draft, accepted: int, best: bytes) -> None:
        """Count the accepted guesses, and take over what the model wrote at the places after a wrong one."""
        row, length = self._rows[index], len(draft)
        first, begun, values = self._last_chain[index]
        if not values:
            return
        self._acceptance.add(accepted, length)
        if row.done or accepted == length:
            return
        # The model also said what it would write at each place of the rejected part. It said so after a wrong number,
        # and still knew more than the guess did.
        place = -begun  # of the first number's text in the draft
        for number, value in enumerate(values, start=first):
            text = self._spelled[value][0]
            begin, place = place, place + len(text)
            if place > length:
                break
            if number > len(row.numbers) and best[begin:place] != text:
                digits = next(k for k, symbol in enumerate(text) if best[begin + k] != symbol)
                choice = best[begin + digits]
                if choice < SEPARATOR:  # otherwise it would have ended the number there
                    wanted = str(value)[:digits] + str(choice)
                    value = int(nearest_with_prefix(value, wanted, self.n_bins))
                self._guess[index][number] = value


class _Spelled(dict[int, tuple[bytes, bytes]]):
    """An integer's symbols, its separator included, and the row of `HostGrammar.legal_rows` after each of them.

    The rows are those of all numbers but the last.
    """

    def __init__(self, tables: HostGrammar) -> None:
        super().__init__()
        self._tables = tables
        self._shift = bytes((row + tables.n_local) % 256 for row in range(256))

    def __missing__(self, value: int) -> tuple[bytes, bytes]:
        symbols = bytes([*map(int, str(value)), SEPARATOR])
        states = [0]
        for symbol in symbols[:-1]:
            states.append(self._tables.advance(states[-1] % self._tables.n_local, symbol))
        self[value] = symbols, bytes([*states[1:], 0])
        return self[value]

    def of_last(self, rows: bytes) -> bytes:
        """Return what these rows are in an answer's last number."""
        return rows.translate(self._shift)


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
