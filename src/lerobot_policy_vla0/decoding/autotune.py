"""How wide a draft pays: measured pass times against the share of draft tokens that turn out right.

A wider pass settles more tokens when the draft is good and costs more time, how much more depends on the
device: little on a GPU that waits for weights, a lot on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable

#: Widths measured, in tokens per row, and captured: a narrower feed is filled up with tokens nobody looks at.
WIDTHS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_REPEATS = 3
#: Seconds after which no wider pass is tried: a large model on a CPU would be measured for minutes.
_BUDGET = 2.0


def measure_widths(run: Callable[[int], object]) -> dict[int, float]:
    """Time passes of growing width.

    Args:
        run: runs one pass of the given width and waits for its result.

    Returns:
        Width to seconds (the best of a few runs), wider never cheaper.
    """
    times: dict[int, float] = {}
    fastest = 0.0
    began = time.perf_counter()
    for width in WIDTHS:
        if times and time.perf_counter() - began > _BUDGET:
            break
        run(width)  # allocations and kernel selection
        best = min(_timed(run, width) for _ in range(_REPEATS))
        fastest = max(fastest, best)  # timings are noisy, but a wider pass is never cheaper
        times[width] = fastest
    return times


def _timed(run: Callable[[int], object], width: int) -> float:
    began = time.perf_counter()
    run(width)
    return time.perf_counter() - began


def best_width(times: dict[int, float], acceptance: float, *, pending: int = 2) -> int:
    """Return the measured width that settles the most tokens per second.

    A pass of width ``w`` holds about ``pending`` settled tokens and a draft; each draft token is right with
    probability ``acceptance`` given that those before it were, and the pass settles one token beyond the
    last right one.

    Args:
        times: width to seconds, from `measure_widths`.
        acceptance: in ``[0, 1]``.
        pending: settled tokens fed per pass.

    >>> times = {1: 1.0, 8: 1.1, 32: 3.0}
    >>> best_width(times, 0.0), best_width(times, 0.8), best_width(times, 0.999)
    (1, 8, 32)
    """

    def rate(width: int) -> float:
        draft = max(width - pending, 0)
        expected = 1.0 + sum(acceptance**k for k in range(1, draft + 1))
        return expected / times[width]

    return max(times, key=rate)


class Acceptance:
    """Running share of draft tokens accepted, each counted only if those before it were right."""

    def __init__(self, prior: float = 0.9, weight: float = 20.0, memory: float = 500.0) -> None:
        self._tried = weight
        self._right = prior * weight
        self._memory = memory

    def add(self, accepted: int, drafted: int) -> None:
        """Count one row's draft: ``accepted`` right tokens, then a wrong one unless all ``drafted`` were."""
        self._tried += accepted + (accepted < drafted)
        self._right += accepted
        if self._tried > self._memory:  # recent answers count more
            self._right *= self._memory / self._tried
            self._tried = self._memory

    @property
    def rate(self) -> float:
        """The share, in ``[0, 1]``."""
        return self._right / self._tried
