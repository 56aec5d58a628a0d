"""Chunks of a made-up model that writes what it is told to, and what decoders needed for them.

Off its script (after a wrong guess) the model says something that depends on all it was fed, about half of it the
script's; decoders learn from that. `counts` gives the same numbers on every machine. Those of the decoder that went
through rows and symbols one by one (commit 9f0ddd0) are in `tests/data/decoding_counts.json`, written by

    PYTHONPATH=tests:src python -m helpers.scripted_chunks > tests/data/decoding_counts.json
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray

from lerobot_policy_vla0.decoding.fast import FastDecoder
from lerobot_policy_vla0.decoding.request import DecodeRequest
from lerobot_policy_vla0.decoding.speculative import PreviousChunkDrafter
from lerobot_policy_vla0.text.codec import ActionTokens
from lerobot_policy_vla0.text.grammar import N_SYMBOLS, AnswerGrammar, spell

N_BINS = (1, 9, 10, 99, 100, 250, 1000, 4000)
WIDTHS = (1, 2, 3, 7, 8, 16, 32, 64, 128, None)
#: Made-up seconds of a pass, for decoders that choose its width.
TIMES = {1: 1.0, 8: 1.1, 32: 1.6, 64: 2.2, 128: 3.5}
CASES = 60
TOKENS = ActionTokens(digits=tuple(range(10)), space=10, mask=12, end=11, newline=13, pad=14)


class ScriptedModel:
    """Takes the place of a decoder's `PassRunner`."""

    static = False
    reused_columns = 0

    def __init__(self) -> None:
        self.script: list[list[int]] = []  # per row, the symbols to write

    def prefill(self, request: DecodeRequest, feed: Any) -> NDArray[Any]:
        return np.concatenate([self._after(feed, fed=0), self._after(feed)], axis=1)

    def score(self, feed: Any) -> NDArray[Any]:
        return self._after(feed)

    def keep(self, *_: Any) -> None:
        """Do nothing, because no score depends on what is in a cache."""

    def leave_out(self, finished: list[bool]) -> list[int]:
        """Leave none out, because what this model says depends on the row."""
        return list(range(len(finished)))

    def _after(self, feed: Any, fed: int | None = None) -> NDArray[Any]:
        batch, width = feed.symbols.shape
        width = 1 if fed == 0 else width
        scores = np.zeros((batch, width, N_SYMBOLS), np.float32)
        for row in range(batch):
            script, start = self.script[row], int(feed.starts[row])
            for column in range(width):
                seen = [] if fed == 0 else feed.visible[row, column].nonzero()[0]
                path = feed.symbols[row, seen].tolist()
                place = start + len(path)
                chance = crc32(bytes([row, place % 256, *path]))
                noise = (chance * np.arange(3, 3 + 2 * N_SYMBOLS, 2) + 977) % 2**32
                scores[row, column] = noise / 2.0**32
                on_script = script[start:place] == path
                if place < len(script) and (on_script or chance % 2):
                    scores[row, column, script[place]] += 2.0
        return scores


def counts(seed: int) -> list[list[int]]:
    """Answer a few requests of one episode and more; return for each what `DecodeReport` counts, and a checksum."""
    rng = np.random.default_rng(seed)
    n_bins = int(rng.choice(N_BINS))
    batch = int(rng.choice([1, 1, 3, 8]))
    steps, dims = int(rng.integers(1, 9)), int(rng.integers(1, 7))
    penalty = float(rng.choice([1.0, 1.05]))
    width = WIDTHS[int(rng.integers(len(WIDTHS)))]
    grammar = AnswerGrammar(n_bins=n_bins, n_numbers=steps * dims, tokens=TOKENS)
    drafter = None
    if rng.random() < 0.9:
        drafter = PreviousChunkDrafter(grammar, shape=(steps, dims), draft_width=width)
        drafter._times = {batch: TIMES}
    # All that a decoder asks of a backbone is its runner's.
    vlm: Any = SimpleNamespace(tokens=TOKENS, model=SimpleNamespace(get_input_embeddings=lambda: None))
    decoder = FastDecoder(vlm, grammar, shape=(steps, dims), repetition_penalty=penalty, drafter=drafter)
    model = ScriptedModel()
    decoder.runner = model  # type: ignore[assignment]
    bins = rng.integers(0, n_bins + 1, (batch, steps, dims))
    found = []
    for query in range(4):
        if query == 3 and rng.random() < 0.5:
            decoder.reset()
        since = int(rng.choice([1, 1, 2, steps]))
        bins = np.concatenate([bins[:, since:], np.repeat(bins[:, -1:], min(since, steps), 1)], 1)[:, :steps]
        surprise = rng.random(bins.shape) < rng.choice([0.0, 0.1, 0.5])
        moved = bins + surprise * rng.integers(-max(n_bins // 8, 1), max(n_bins // 8, 1) + 1, bins.shape)
        bins = np.clip(moved, 0, n_bins)
        given = int(rng.integers(0, steps + 1)) if rng.random() < 0.3 else 0
        model.script = [spell(row, steps * dims) for row in bins.reshape(batch, -1).tolist()]
        ids = torch.full((batch, 5), TOKENS.space)
        decoder.decode(
            DecodeRequest(
                ids,
                torch.ones_like(ids, dtype=torch.bool),
                torch.empty(0),
                torch.empty(0),
                torch.from_numpy(bins[:, :given]) if given else None,
                steps_since=since,
            )
        )
        report: Any = decoder.last
        assert [trace.symbols for trace in report.traces] == model.script
        stops = crc32(json.dumps(report.stops).encode())
        found.append([report.passes, report.drafted, report.accepted, report.forced, report.committed, stops])
    return found


if __name__ == "__main__":
    print(json.dumps([counts(seed) for seed in range(CASES)]))
