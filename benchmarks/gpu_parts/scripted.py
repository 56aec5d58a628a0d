"""Makes a random model answer what it is told to, so that as many drafts are accepted as in a policy's rollouts.

Every pass is run on the device in full; what it says is then replaced on the host, and the time that takes is counted
apart. What a pass costs does not depend on what it says.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lerobot_policy_vla0.text.grammar import N_SYMBOLS, SEPARATOR, spell


class ScriptedRunner:
    """Stands before a `PassRunner`: its passes run, its answers are the script's.

    Off the script (after a wrong guess) the answer is the next guess, from which a decoder learns nothing.

    Args:
        runner: the real one, or None to run no pass at all.
    """

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        #: Per row, the symbols to write.
        self.script: list[list[int]] = []
        #: Seconds spent on the script since the last time this was set.
        self.seconds = 0.0
        self.reused_columns = 0
        self._rows: list[int] = []  # of the script, in the order in which they stand in a pass

    def prefill(self, request: Any, feed: Any) -> NDArray[Any]:
        """Run the prompt; score by the script."""
        self._rows = list(range(len(self.script)))
        if self._runner is not None:
            self._runner.prefill(request, feed)
            self.reused_columns = self._runner.reused_columns
        return self._scores(feed, after_prompt=True)

    def score(self, feed: Any) -> NDArray[Any]:
        """Run a pass; score by the script."""
        if self._runner is not None:
            self._runner.score(feed)
        return self._scores(feed, after_prompt=False)

    def leave_out(self, finished: list[bool]) -> list[int]:
        """See `PassRunner.leave_out`; without a real runner all rows stay."""
        places = list(range(len(finished))) if self._runner is None else self._runner.leave_out(finished)
        self._rows = [self._rows[place] for place in places]
        return places

    def keep(self, *moves: NDArray[Any]) -> None:
        """See `PassRunner.keep`."""
        if self._runner is not None:
            self._runner.keep(*moves)

    def _scores(self, feed: Any, *, after_prompt: bool) -> NDArray[Any]:
        began = time.perf_counter()
        batch, width = feed.symbols.shape
        scores = np.zeros((batch, width + after_prompt, N_SYMBOLS), dtype=np.float32)
        for row in range(batch):
            text = self.script[self._rows[row]]
            if after_prompt:
                scores[row, 0, text[0]] = 1.0
            for column in range(width):
                seen = feed.visible[row, column].nonzero()[0]
                path = feed.symbols[row, seen].tolist()
                start = int(feed.starts[row])
                place = start + len(path)
                if place < len(text) and text[start:place] == path:
                    symbol = text[place]
                else:
                    following = column + 1 < width and feed.visible[row, column + 1, column]
                    symbol = int(feed.symbols[row, column + 1]) if following else SEPARATOR
                scores[row, column + after_prompt, symbol] = 1.0
        self.seconds += time.perf_counter() - began
        return scores


class Chunks:
    """Answers that follow one another as a policy's do: the last one, one step on, with surprises.

    Args:
        rows: answers at a time.
        shape: ``(chunk_size, action_dim)``.
        n_bins: the top integer.
        surprise: share of the numbers that are others than the answer before had said.
        seed: of all this.
    """

    def __init__(
        self, rows: int, shape: tuple[int, int], n_bins: int, surprise: float, seed: int = 0
    ) -> None:
        self._random = np.random.default_rng(seed)
        self._n_bins, self._surprise = n_bins, surprise
        # Three digits, like most numbers up to 1000.
        low, high = n_bins // 5, 4 * n_bins // 5
        self._bins = np.repeat(self._random.integers(low, high, (rows, 1, shape[1])), shape[0], axis=1)

    def next(self) -> list[list[int]]:
        """Return the symbols of the next answer of every row."""
        bins = np.concatenate([self._bins[:, 1:], self._bins[:, -1:]], axis=1)
        other = self._random.random(bins.shape) < self._surprise
        step = self._random.integers(1, 30, bins.shape) * self._random.choice([-1, 1], bins.shape)
        self._bins = np.clip(bins + other * step, 0, self._n_bins)
        n_numbers = self._bins[0].size
        return [spell(row, n_numbers) for row in self._bins.reshape(len(bins), -1).tolist()]
