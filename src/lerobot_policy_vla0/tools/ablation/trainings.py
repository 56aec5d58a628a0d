"""Separates what a setting changes from what another training of the same setting changes.

Episodes say how good one trained policy is. Whether a setting is better is a question about trainings, so a training is
the unit here: one success rate each, whatever the number of its episodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np


@dataclass(frozen=True)
class SettingEffect:
    """What a setting changes, over all trainings that could have been done."""

    difference: float  # of the mean success rates, in [-1, 1]
    interval: tuple[float, float] | None  # 95 %; None if the rates do not vary at all
    p_value: float  # two-sided, exact
    smallest_p_value: float  # that so few trainings could show


def setting_effect(rates: Sequence[float], first: Sequence[float], *, paired: bool) -> SettingEffect:
    """Compare the success rates of a setting's trainings with those of the first setting's.

    The interval is Student's: Welch's without pairs, the one of the differences with pairs. The p-value is that of a
    permutation test: how many ways of exchanging trainings between the settings give as large a difference. Both are
    SciPy's.

    >>> effect = setting_effect([0.9, 0.8, 0.85], [0.5, 0.6, 0.4], paired=False)
    >>> round(effect.difference, 2), round(effect.p_value, 2), round(effect.smallest_p_value, 2)
    (0.35, 0.1, 0.1)

    Args:
        rates: success rates in [0, 1], one per training, at least two.
        first: the same of the setting to compare with.
        paired: both settings play the same trainings, in the same order (a choice that only evaluation makes).

    Raises:
        ValueError: fewer than two trainings, or pairs of which one is missing.
    """
    if min(len(rates), len(first)) < 2 or (paired and len(rates) != len(first)):
        raise ValueError(f"{len(rates)} and {len(first)} trainings cannot be compared (paired={paired})")
    from scipy import stats  # takes a second

    samples = (np.asarray(rates, dtype=float), np.asarray(first, dtype=float))
    if paired:
        constant = float(np.ptp(samples[0] - samples[1])) == 0.0
        test: Any = stats.ttest_rel
        ways = 2.0 ** len(rates)
    else:
        constant = all(float(np.ptp(sample)) == 0.0 for sample in samples)
        test = partial(stats.ttest_ind, equal_var=False)
        ways = float(math.comb(len(rates) + len(first), len(first)))
    limits = None if constant else test(*samples).confidence_interval(0.95)
    permuted = stats.permutation_test(
        samples,
        lambda a, b, axis: np.mean(a, axis=axis) - np.mean(b, axis=axis),
        permutation_type="samples" if paired else "independent",
        n_resamples=np.inf if ways <= 1e5 else 99_999,
        vectorized=True,
        rng=0,
    )
    return SettingEffect(
        difference=float(samples[0].mean() - samples[1].mean()),
        interval=None if limits is None else (float(limits.low), float(limits.high)),
        p_value=float(permuted.pvalue),
        smallest_p_value=min(1.0, 2.0 / ways),
    )


def spread(rates: Sequence[float]) -> float:
    """Return the standard deviation of the success rates of several trainings of one setting.

    >>> round(spread([0.5, 0.6, 0.4]), 3)
    0.1
    """
    return float(np.std(rates, ddof=1))


def spread_of_episodes(rate: float, n_episodes: int) -> float:
    """Return the standard deviation that a rate has because only ``n_episodes`` were played, all trainings alike.

    >>> round(spread_of_episodes(0.5, 25), 3)
    0.1
    """
    return math.sqrt(rate * (1.0 - rate) / n_episodes)
