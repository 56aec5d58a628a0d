"""Statistics of success rates, against values worked out by hand, and scipy as an oracle where it is installed."""

from __future__ import annotations

import doctest
import math

import pytest

from lerobot_policy_vla0.tools.evaluation import statistics
from lerobot_policy_vla0.tools.evaluation.statistics import (
    exact_power,
    mcnemar_exact,
    paired_difference_interval,
    pairs_to_separate,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # By hand from (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z = 1.959964, z^2 = 3.841459:
        # 0 of 10: upper limit (z^2/n) / (1 + z^2/n) = 0.384146 / 1.384146.
        (0, 10, 0.0, 0.277533),
        # 0 of 20: 0.192073 / 1.192073.
        (0, 20, 0.0, 0.161125),
        # 20 of 20: lower limit 1 / (1 + z^2/n) = 1 / 1.192073.
        (20, 20, 0.838875, 1.0),
        # 8 of 8: 1 / 1.480182.
        (8, 8, 0.675592, 1.0),
        # 10 of 20: 0.5 -+ z sqrt(0.0125 + 0.00240091) / 1.192073 = 0.5 -+ 0.200702.
        (10, 20, 0.299298, 0.700702),
        # 1 of 1: 1 / 4.841459.
        (1, 1, 0.206549, 1.0),
    ],
)
def test_the_wilson_interval_equals_the_one_computed_by_hand(
    successes: int, n: int, low: float, high: float
) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=2e-6)


def test_the_limits_of_none_and_all_are_exact() -> None:
    for n in range(1, 300):
        assert wilson_interval(0, n)[0] == 0.0
        assert wilson_interval(n, n)[1] == 1.0


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 4)])
def test_the_interval_of_no_rate_is_an_error(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} successes of {n} episodes"):
        wilson_interval(successes, n)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),  # 2 / 2
        (5, 0, 2 / 32),
        (6, 0, 2 / 64),
        (0, 6, 2 / 64),
        (8, 1, 2 * (1 + 9) / 512),  # C(9,0) + C(9,1)
        (3, 3, 1.0),  # 2 * 42 / 64 is more than 1
        (10, 2, 2 * (1 + 12 + 66) / 4096),
    ],
)
def test_the_exact_mcnemar_test_equals_the_one_computed_by_hand(
    only_first: int, only_second: int, p: float
) -> None:
    assert mcnemar_exact(only_first, only_second) == p


def test_thousands_of_episodes_neither_overflow_nor_vanish() -> None:
    assert mcnemar_exact(2000, 2000) == 1.0
    assert 0 < mcnemar_exact(2200, 2000) < 0.0025
    with pytest.raises(ValueError, match="-1 and 4 are not counts"):
        mcnemar_exact(-1, 4)


def test_the_interval_of_a_paired_difference_equals_the_one_computed_by_hand() -> None:
    # 12 and 4 of 50: 13/52 = 0.25 and 5/52 = 0.096154; difference 0.153846, sum 0.346154;
    # z sqrt((0.346154 - 0.023669) / 52) = 1.959964 x 0.078751 = 0.154349.
    assert paired_difference_interval(12, 4, 50) == pytest.approx((-0.000503, 0.308195), abs=2e-6)
    low, high = paired_difference_interval(4, 12, 50)
    assert (-high, -low) == pytest.approx(paired_difference_interval(12, 4, 50))
    assert paired_difference_interval(0, 0, 20)[0] < 0 < paired_difference_interval(0, 0, 20)[1]


def test_the_number_of_pairs_starts_from_connors_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    # 12 and 4 of 50: (1.959964 sqrt(0.32) + 0.841621 sqrt(0.32 - 0.0256))^2 / 0.0256 = 1.565375^2 / 0.0256 = 95.7.
    monkeypatch.setattr(statistics, "_EXACT_UP_TO", 0)
    assert pairs_to_separate(12, 4, 50) == 96
    assert pairs_to_separate(4, 12, 50) == 96


def test_the_number_of_pairs_is_what_the_exact_test_needs() -> None:
    needed = pairs_to_separate(12, 4, 50)
    assert needed is not None and 96 < needed < 115
    assert exact_power(0.24, 0.08, needed) >= 0.8 > exact_power(0.24, 0.08, needed - 1)
    # Only one policy ever wins, always: the test needs six discordant pairs (2 / 64), and five give 2 / 32.
    assert pairs_to_separate(10, 0, 10) == 6


def test_equal_rates_are_not_separated_by_any_number() -> None:
    assert pairs_to_separate(3, 3, 50) is None
    assert pairs_to_separate(0, 0, 50) is None
    with pytest.raises(ValueError, match="3 and 9 are not discordant episodes of 10"):
        pairs_to_separate(3, 9, 10)


def test_the_exact_power_equals_the_one_computed_by_hand() -> None:
    # Six pairs, significant only if all six are discordant the same way: 0.9^6 + 0.1^6.
    assert exact_power(0.9, 0.1, 6) == pytest.approx(0.9**6 + 0.1**6)
    assert exact_power(0.5, 0.5, 5) == 0.0
    # Seven pairs: six or seven discordant, one way: 7 x 0.4^6 x 0.6 + 0.4^7.
    assert exact_power(0.4, 0.0, 7) == pytest.approx(7 * 0.4**6 * 0.6 + 0.4**7)


def test_scipy_agrees() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is only an oracle here")
    for n in (1, 2, 7, 25, 60, 301):
        for k in range(0, n + 1, max(1, n // 12)):
            oracle = stats.binomtest(k, n)
            assert mcnemar_exact(k, n - k) == pytest.approx(oracle.pvalue, abs=1e-12)
            ours, theirs = wilson_interval(k, n), oracle.proportion_ci(method="wilson")
            assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    n, first, second = 60, 0.3, 0.1
    power = sum(
        stats.binom.pmf(m, n, first + second) * stats.binom.pmf(k, m, first / (first + second))
        for m in range(n + 1)
        for k in range(m + 1)
        if mcnemar_exact(k, m - k) <= 0.05
    )
    assert exact_power(first, second, n) == pytest.approx(float(power), rel=1e-9)


def test_documented_examples_hold() -> None:
    assert doctest.testmod(statistics).failed == 0
    assert math.isclose(statistics.Z_95, statistics.NormalDist().inv_cdf(0.975), rel_tol=1e-12)
