"""Statistics of success rates: intervals, the paired test, and how many episodes it takes.

Counts in, numbers out; knows nothing about files, policies or pages. Everything is exact or a published closed form, so
the same counts give the same digits on every machine.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: 97.5 % quantile of the standard normal distribution.
Z_95 = 1.959963984540054

#: Significance level (two-sided) and power that `pairs_to_separate` plans for.
LEVEL, POWER = 0.05, 0.8

# Above this many pairs the exact power is within half a per cent of the formula's.
_EXACT_UP_TO = 1000


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a success rate, as two fractions in [0, 1].

    Unlike the textbook interval it is not empty at 0 or n successes and keeps its coverage at small n.
    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, Journal of the
    American Statistical Association 22 (1927) 209-212.

    >>> [round(limit, 3) for limit in wilson_interval(8, 8)]
    [0.676, 1.0]
    >>> [round(limit, 3) for limit in wilson_interval(10, 20)]
    [0.299, 0.701]

    Raises:
        ValueError: `successes` is not in 0 to n, or n is 0.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes of {n} episodes is not a success rate")
    rate, z2n = successes / n, Z_95**2 / n
    center = (rate + z2n / 2) / (1 + z2n)
    half = Z_95 * math.sqrt(rate * (1 - rate) / n + z2n / (4 * n)) / (1 + z2n)
    # At the ends the limit is exactly 0 or 1; rounding would miss it by 1e-17.
    return (0.0 if successes == 0 else center - half), (1.0 if successes == n else center + half)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of the exact McNemar test.

    Episodes that both policies solve, or neither does, say nothing about which is better; among the others each policy
    is the one that solves it with probability 1/2 if they are equally good. Source: Q. McNemar, Psychometrika 12 (1947)
    153-157, with the binomial distribution itself in place of its chi-square approximation.

    Args:
        only_first: episodes that only the first policy solves.
        only_second: episodes that only the second one solves.

    Returns:
        The probability, in (0, 1], of a split at least as uneven: ``min(1, 2 P(X <= min))``, ``X ~ Bin(sum, 1/2)``.

    >>> mcnemar_exact(5, 0)  # 2 / 2**5
    0.0625

    Raises:
        ValueError: a count is negative.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"{only_first} and {only_second} are not counts of episodes")
    n = only_first + only_second
    term = tail = 1  # n choose 0; integers up to the last line: no rounding, no overflow
    for k in range(1, min(only_first, only_second) + 1):
        term = term * (n - k + 1) // k
        tail += term
    return min(1.0, float(2 * tail / 2**n))


def paired_difference_interval(only_first: int, only_second: int, n: int) -> tuple[float, float]:
    """Return a 95 % interval of the difference (first minus second) of two success rates on the same episodes.

    The adjusted Wald interval: one made-up episode is added to each of the two discordant counts. Source: D. G. Bonett,
    R. M. Price, Adjusted Wald confidence interval for a difference of binomial proportions based on paired data,
    Journal of Educational and Behavioral Statistics 37 (2012) 479-488.

    Args:
        only_first: episodes that only the first policy solves.
        only_second: episodes that only the second one solves.
        n: all episodes, also those that both or neither solve.

    Returns:
        Two fractions in [-1, 1].

    Raises:
        ValueError: the counts are not those of n > 0 episodes.
    """
    _check_pairs(only_first, only_second, n)
    first, second = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    difference = first - second
    half = Z_95 * math.sqrt((first + second - difference**2) / (n + 2))
    return max(-1.0, difference - half), min(1.0, difference + half)


def pairs_to_separate(only_first: int, only_second: int, n: int) -> int | None:
    """Return how many paired episodes the exact McNemar test needs, if the policies differ as much as was measured.

    For significance at `LEVEL` (two-sided) with probability `POWER`. Starts from the closed form of R. J. Connor,
    Sample size for testing differences in proportions for the paired-sample design, Biometrics 43 (1987) 207-211,
    and goes up to the first number of episodes whose exact power suffices: the exact test needs a few more than the
    approximation says, and never gets by with fewer than six discordant episodes.

    Args:
        only_first: episodes that only the first policy solves.
        only_second: episodes that only the second one solves.
        n: all paired episodes that were run.

    Returns:
        Episodes, or None if the measured rates are equal: then no number of episodes follows from them.

    Raises:
        ValueError: the counts are not those of n > 0 episodes.
    """
    _check_pairs(only_first, only_second, n)
    if only_first == only_second:
        return None
    first, second = only_first / n, only_second / n
    discordant, difference = first + second, first - second
    normal = NormalDist()
    spread = normal.inv_cdf(1 - LEVEL / 2) * math.sqrt(discordant)
    spread += normal.inv_cdf(POWER) * math.sqrt(max(0.0, discordant - difference**2))
    needed = math.ceil(spread**2 / difference**2)
    while needed <= _EXACT_UP_TO and exact_power(first, second, needed) < POWER:
        needed += 1
    return needed


def exact_power(first: float, second: float, n: int) -> float:
    """Return the probability that the exact McNemar test of n pairs is significant at `LEVEL`.

    Args:
        first: probability that only the first policy solves an episode.
        second: probability that only the second one does.
        n: paired episodes.
    """
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    power = 0.0
    for m in range(n + 1):  # discordant episodes
        solved, worst = np.arange(m + 1), _largest_significant(m)  # of them by the first policy only
        split = solved[(solved <= worst) | (solved >= m - worst)]
        log_p = log_factorial[n] - log_factorial[split] - log_factorial[m - split] - log_factorial[n - m]
        log_p = log_p + _times_log(split, first) + _times_log(m - split, second)
        log_p = log_p + _times_log(np.array([n - m]), 1 - first - second)
        power += float(np.exp(log_p).sum())
    return power


def _times_log(count: NDArray[np.integer[Any]], p: float) -> NDArray[np.floating[Any]]:
    """``count * log(p)``, where nothing times log(0) is 0."""
    if p > 0:
        return np.asarray(count * math.log(p))
    return np.where(count == 0, 0.0, -np.inf)


_SIGNIFICANT: list[int] = []


def _largest_significant(m: int) -> int:
    """Return the largest k for which a split of m into k and m - k is significant; -1 if none is."""
    while len(_SIGNIFICANT) <= m:
        size = len(_SIGNIFICANT)
        k = _SIGNIFICANT[-1] if _SIGNIFICANT else -1  # never falls as m grows, and rises by one at most
        _SIGNIFICANT.append(
            k + 1 if 2 * (k + 1) <= size and mcnemar_exact(k + 1, size - k - 1) <= LEVEL else k
        )
    return _SIGNIFICANT[m]


def _check_pairs(only_first: int, only_second: int, n: int) -> None:
    if n < 1 or min(only_first, only_second) < 0 or only_first + only_second > n:
        raise ValueError(f"{only_first} and {only_second} are not discordant episodes of {n}")
