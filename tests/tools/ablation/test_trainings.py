"""The unit of an ablation is a training: what a setting changes, and what another training changes anyway."""

from __future__ import annotations

import pytest

from lerobot_policy_vla0.tools.ablation.report import Row, trainings_table
from lerobot_policy_vla0.tools.ablation.trainings import setting_effect
from lerobot_policy_vla0.tools.evaluation.compare import Rate


def row(name: str, **solved: int) -> Row:
    """Return a variant's row: solved episodes of 25 by training."""
    return Row(name, None, [], {training: Rate(count, 25) for training, count in solved.items()}, [], None)


def test_trainings_that_overlap_show_nothing_whatever_their_episodes_say() -> None:
    # 1,000 episodes each would make 70 and 60 % "significant"; three trainings that differ by 20 do not.
    effect = setting_effect([0.9, 0.7, 0.5], [0.8, 0.6, 0.4], paired=False)
    assert effect.difference == pytest.approx(0.1)
    assert effect.interval is not None and effect.interval[0] < -0.3 and effect.interval[1] > 0.5
    # 10 of the 20 ways to deal six trainings into two settings differ by 0.1 or more, in one direction or the other.
    assert effect.p_value == pytest.approx(0.7)
    assert effect.smallest_p_value == pytest.approx(0.1)


def test_the_same_trainings_are_compared_pair_by_pair() -> None:
    apart = setting_effect([0.9, 0.7, 0.5], [0.85, 0.66, 0.44], paired=False)
    pairs = setting_effect([0.9, 0.7, 0.5], [0.85, 0.66, 0.44], paired=True)
    assert apart.interval is not None and apart.interval[0] < 0
    assert pairs.interval is not None and pairs.interval[0] > 0
    assert (pairs.p_value, pairs.smallest_p_value) == (0.25, 0.25)


def test_rates_without_any_spread_have_no_interval() -> None:
    assert setting_effect([1.0, 1.0], [0.5, 0.5], paired=False).interval is None
    assert setting_effect([1.0, 0.8], [0.6, 0.4], paired=True).interval is None


@pytest.mark.parametrize(
    ("rates", "first", "paired"), [([0.5], [0.5, 0.6], False), ([0.5] * 3, [0.5] * 2, True)]
)
def test_one_training_is_compared_with_nothing(rates: list[float], first: list[float], paired: bool) -> None:
    with pytest.raises(ValueError, match="trainings cannot be compared"):
        setting_effect(rates, first, paired=paired)


def test_the_table_separates_trainings_from_episodes() -> None:
    table = trainings_table(
        [
            row("masked", a=20, b=15, c=10),
            row("none", d=22, e=25, f=25),
            row("averaged", a=21, b=17, c=11),
            row("unfinished", g=3),
        ]
    )
    assert table is not None
    cells = {line[0]: list(line[1:]) for line in table.rows}
    # Counts of 20, 15 and 10 of 25 spread by 20 %; 25 episodes alone by sqrt(0.6 * 0.4 / 25).
    assert cells["masked"] == ["3", "60.0 %", "20.0 %", "9.8 %", "", "", ""]
    assert cells["none"][4] == "+36.0 %" and cells["none"][6] == "0.1 (0.1)"
    # The same trainings, played otherwise: pairs, of which there are 2 ** 3 exchanges.
    assert cells["averaged"][4:] == ["+5.3 %", "-0.4 to +11.1 %", "0.25 (0.25)"]
    assert cells["unfinished"] == ["1", "", "", "", "", "", ""]
    assert trainings_table([row("masked", a=20), row("none", d=22, e=25)]) is None
