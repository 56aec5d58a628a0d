"""Statistics of success rates: intervals, the paired test, and the number of episodes that separates two policies.

Everything is exact or a published closed form, so the same counts give the same digits on every machine.
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
    # At 0 and n successes one limit is exactly 0 or 1; rounding would miss it by 1e-17.
    return (0.0 if successes == 0 else center - half), (1.0 if successes == n else center + half)


# The functions below count paired episodes: `only_first` are those that only the first policy solves, `only_second`
# those that only the second one solves, and `n` is the number of all pairs, also those that both or neither solve.


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value, in (0, 1], of the exact McNemar test.

    Episodes that both policies solve, or neither, do not show which policy is better. Of the others each policy solves
    half if both are equally good. So the p-value is ``min(1, 2 P(X <= min(only_first, only_second)))`` with
    ``X ~ Bin(only_first + only_second, 1/2)``. Source: Q. McNemar, Psychometrika 12 (1947) 153-157, with the binomial
    distribution itself in place of its chi-square approximation.

    >>> mcnemar_exact(5, 0)  # 2 / 2**5
    0.0625

    Raises:
        ValueError: a count is negative.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"{only_first} and {only_second} are not counts of episodes")
    n = only_first + only_second
    choices = tail = 1  # n choose k and their sum; integers, so nothing is rounded before the last line
    for k in range(1, min(only_first, only_second) + 1):
        choices = choices * (n - k + 1) // k
        tail += choices
    return min(1.0, float(2 * tail / 2**n))


def paired_difference_interval(only_first: int, only_second: int, n: int) -> tuple[float, float]:
    """Return a 95 % interval, two fractions in [-1, 1], of the first policy's success rate minus the second's.

    The adjusted Wald interval: one made-up episode is added to each of the two discordant counts. Source: D. G. Bonett,
    R. M. Price, Adjusted Wald confidence interval for a difference of binomial proportions based on paired data,
    Journal of Educational and Behavioral Statistics 37 (2012) 479-488.

    Raises:
        ValueError: the counts are not those of n > 0 episodes.
    """
    _check_pairs(only_first, only_second, n)
    first, second = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    difference = first - second
    half = Z_95 * math.sqrt((first + second - difference**2) / (n + 2))
    return max(-1.0, difference - half), min(1.0, difference + half)


def pairs_to_separate(only_first: int, only_second: int, n: int) -> int | None:
    """Return how many paired episodes the exact McNemar test needs, if the policies differ as much as measured.

    "Needs" means: the test is significant at `LEVEL` (two-sided) with probability `POWER`. The search starts from the
    closed form of R. J. Connor, Sample size for testing differences in proportions for the paired-sample design,
    Biometrics 43 (1987) 207-211, and goes up to the first number of episodes whose exact power suffices. The exact test
    needs a few more episodes than the approximation says, and at least six discordant ones.

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
        k = np.arange(m + 1)  # of them solved by the first policy only
        log_choices = log_factorial[m] - log_factorial[k] - log_factorial[m - k]
        tail = np.cumsum(np.exp(log_choices - m * math.log(2)))
        k = k[2 * tail[np.minimum(k, m - k)] <= LEVEL]  # the significant ones, as `mcnemar_exact` says
        log_p = log_factorial[n] - log_factorial[k] - log_factorial[m - k] - log_factorial[n - m]
        log_p = log_p + _times_log(k, first) + _times_log(m - k, second)
        log_p = log_p + _times_log(np.array([n - m]), 1 - first - second)
        power += float(np.exp(log_p).sum())
    return power


def _times_log(count: NDArray[np.integer[Any]], p: float) -> NDArray[np.floating[Any]]:
    """Return ``count * log(p)``; 0 * log(0) is 0."""
    if p > 0:
        return np.asarray(count * math.log(p))
    return np.where(count == 0, 0.0, -np.inf)


def _check_pairs(only_first: int, only_second: int, n: int) -> None:
    if n < 1 or min(only_first, only_second) < 0 or only_first + only_second > n:
        raise ValueError(f"{only_first} and {only_second} are not discordant episodes of {n}")
