"""Chooses the width of passes from measured pass times and the share of draft tokens that were right.

A wider pass settles more tokens if the draft is good, and takes longer: a little on a GPU that waits for weights, a lot
on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

#: Widths to choose from, in tokens per row.
WIDTHS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
#: Widths that are measured; times of the others are interpolated.
MEASURED = (1, 8, 32, 64, 128)
#: The only widths on fixed memory (CUDA graphs); a narrower feed is filled up with tokens whose scores are not used.
CAPTURED = (8, 32, 128)


def captured_width(width: int) -> int:
    """Return the narrowest captured width that holds ``width`` tokens; beyond the widest, a multiple of it.

    >>> captured_width(5), captured_width(32), captured_width(200)
    (8, 32, 256)
    """
    return next((w for w in CAPTURED if w >= width), -(-width // CAPTURED[-1]) * CAPTURED[-1])


def captured_widths(widest: int) -> list[int]:
    """Return all captured widths that feeds of up to ``widest`` tokens need.

    >>> captured_widths(8), captured_widths(100), captured_widths(300)
    ([8], [8, 32, 128], [8, 32, 128, 256, 384])
    """
    last = captured_width(widest)
    return [w for w in CAPTURED if w <= last] + list(range(2 * CAPTURED[-1], last + 1, CAPTURED[-1]))


def measure_widths(
    run: Callable[[int], object],
    clock: Callable[[], float] = time.perf_counter,
    *,
    measured: Sequence[int] = MEASURED,
    offered: Sequence[int] = WIDTHS,
) -> dict[int, float]:
    """Time passes of a few widths.

    The widest is not timed if the width before it already took more than 1.5 times as long as the one before that.

    Args:
        run: runs one pass of the given width and waits for its result.
        clock: seconds.
        measured: the widths to time, ascending.
        offered: the widths to choose from; times of those that are not measured are interpolated.

    Returns:
        Each offered width to seconds, wider never cheaper.
    """
    best: list[float] = []
    for width in measured:
        if width == measured[-1] and len(best) > 2 and best[-1] > 1.5 * best[-2]:
            break
        # The first call of a width may allocate, so the faster of two counts.
        times = [clock()]
        for _ in range(2):
            run(width)
            times.append(clock())
        best.append(np.diff(times).min())
    # A pass that took longer than a wider one was disturbed by something else on the processor.
    smooth = np.minimum.accumulate(best[::-1])[::-1]
    known = measured[: len(smooth)]
    within = [width for width in offered if width <= known[-1]]
    return dict(zip(within, np.interp(within, known, smooth).tolist(), strict=True))


def time_of(times: dict[int, float], width: int) -> float:
    """Return the seconds of a pass that holds ``width`` tokens: those of the narrowest offered width.

    >>> time_of({8: 1.0, 32: 3.0}, 2), time_of({8: 1.0, 32: 3.0}, 12)
    (1.0, 3.0)
    """
    return times[min((w for w in times if w >= width), default=max(times))]


def best_width(times: dict[int, float], acceptance: float, *, pending: int = 2) -> int:
    """Return the width that settles the most tokens per second.

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
