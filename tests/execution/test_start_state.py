"""start_state.py: a first state far from the training data is said or refused, in the robot's units and with names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.tiny import make_batch, make_config, make_stats
from lerobot.configs.types import NormalizationMode
from torch import Tensor

from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.errors import StateError
from lerobot_policy_vla0.execution.start_state import TrainingStates

IDENTITY, MIN_MAX = NormalizationMode.IDENTITY, NormalizationMode.MIN_MAX
#: An SO-100 that picked things up in front of it, in degrees.
NAMES = [
    f"{joint}.pos"
    for joint in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
]
LOW = torch.tensor([-40.0, -70.0, -20.0, 10.0, -5.0, 0.0])
HIGH = torch.tensor([40.0, 30.0, 80.0, 90.0, 5.0, 50.0])
STATS = {
    "observation.state": {
        "min": LOW,
        "max": HIGH,
        "q01": LOW + 1,
        "q99": HIGH - 1,
        "mean": (LOW + HIGH) / 2,
        "std": (HIGH - LOW) / 4,
    }
}
INSIDE = torch.tensor([[0.0, -30.0, 40.0, 45.0, 0.0, 10.0]])


def states(mode: NormalizationMode = IDENTITY, names: list[str] | None = NAMES) -> TrainingStates:
    found = TrainingStates.from_stats(STATS, mode, names)
    assert found is not None
    return found


def check(state: Tensor, caplog: pytest.LogCaptureFixture, **options: Any) -> list[str]:
    with caplog.at_level("WARNING"):
        assert states(**options).check({"observation.state": state})
    return caplog.messages


CHECK = (
    "Check that this is the policy of this robot, the robot's calibration, and its units (SO-100: degrees, or -100 to "
    "100 with --robot.use_degrees=false)."
)


def test_a_state_inside_or_somewhat_outside_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    # Folded at rest: 40 degrees above what was seen of the shoulder, whose range is 100. The wrist was hardly rolled,
    # so it is measured by a tenth of the widest range: 5 degrees more are nothing.
    rest = torch.tensor([[0.0, -110.0, 110.0, 45.0, 10.0, 0.0]])
    assert check(torch.cat([INSIDE, rest, LOW[None], HIGH[None]]), caplog) == []


def test_a_joint_far_outside_is_named_with_its_value_and_range(caplog: pytest.LogCaptureFixture) -> None:
    state = INSIDE.clone()
    state[0, 1], state[0, 4] = 100.0, -98.25
    assert check(state, caplog) == [
        "observation.state begins far from everything in the training data in 2 of 6 dimensions: shoulder_lift.pos is "
        "100 (training data: -70 to 30), wrist_roll.pos is -98.25 (training data: -5 to 5). The policy knows nothing "
        f"of this place, and its first actions may move the robot far and fast. {CHECK} Or begin nearer to the "
        "demonstrations, and limit steps (SO-100: --robot.max_relative_target)."
    ]


@pytest.mark.parametrize("names", [None, ["x"], [f"dim{i}" for i in range(6)]], ids=str)
def test_dimensions_without_names_of_joints_are_numbered(
    names: list[str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    state = INSIDE.clone()
    state[0, 1] = 100.0
    assert ": dimension 1 is 100 (training data: -70 to 30). " in check(state, caplog, names=names)[0]


@pytest.mark.parametrize("mode", list(NormalizationMode)[:4], ids=str)
def test_a_normalised_state_is_compared_in_the_robots_units(
    mode: NormalizationMode, caplog: pytest.LogCaptureFixture
) -> None:
    state = INSIDE.clone()
    state[0, 1] = 100.0
    ends = {
        IDENTITY: (torch.full((6,), -1.0), torch.full((6,), 1.0)),
        MIN_MAX: (LOW, HIGH),
        NormalizationMode.QUANTILES: (LOW + 1, HIGH - 1),
        NormalizationMode.MEAN_STD: (
            (LOW + HIGH) / 2 - (HIGH - LOW) / 4,
            (LOW + HIGH) / 2 + (HIGH - LOW) / 4,
        ),
    }[mode]
    normalised = 2 * (state - ends[0]) / (ends[1] - ends[0]) - 1
    assert "shoulder_lift.pos is 100 (training data: -70 to 30). " in check(normalised, caplog, mode=mode)[0]


def test_no_joint_where_the_data_has_been_is_refused() -> None:
    state = torch.stack([INSIDE[0], HIGH + 1.05 * (HIGH - LOW)])
    with pytest.raises(StateError) as error:
        states().check({"observation.state": state})
    assert str(error.value) == (
        "observation.state cannot be of the robot of the training data: shoulder_pan.pos is 124 (training data: -40 to "
        "40), shoulder_lift.pos is 135 (training data: -70 to 30), elbow_flex.pos is 185 (training data: -20 to 80), "
        "wrist_flex.pos is 174 (training data: 10 to 90), wrist_roll.pos is 15.5 (training data: -5 to 5), gripper.pos "
        "is 102.5 (training data: 0 to 50). The statistics are of another robot or in other units, and so would the "
        f"actions be; none was sent. {CHECK}"
    )


def test_a_joint_in_degrees_where_radians_were_recorded_is_refused_alone() -> None:
    radians = {"observation.state": {key: value / 57.3 for key, value in STATS["observation.state"].items()}}
    found = TrainingStates.from_stats(radians, IDENTITY, NAMES)
    assert found is not None
    state = torch.tensor([[0.0, -60.0, 60.0, 30.0, 0.0, 0.5]])  # pan, roll and gripper are near zero in both
    with pytest.raises(StateError, match=r"shoulder_lift\.pos is -60 \(training data: -1\.222 to 0\.5236\)"):
        found.check({"observation.state": state})


def test_half_a_turn_with_the_other_sign_is_the_same_turn(caplog: pytest.LogCaptureFixture) -> None:
    """LIBERO's hand points down: its rotation vector is near (pi, 0, 0), which vla-eval writes as (-pi, 0, 0)."""
    stats = {"observation.state": {"min": torch.tensor([-0.2, 3.11]), "max": torch.tensor([0.1, 3.15])}}
    found = TrainingStates.from_stats(stats, IDENTITY, None)
    assert found is not None
    assert found.check({"observation.state": torch.tensor([[0.0, -3.14]])})
    assert caplog.messages == []
    found.check({"observation.state": torch.tensor([[0.0, -2.0]])})
    assert "in 1 of 2 dimensions: dimension 1 is -2 (training data: 3.11 to 3.15)" in caplog.text
    with pytest.raises(StateError, match="dimension 1 is -180 "):  # degrees are no radians
        found.check({"observation.state": torch.tensor([[0.0, -180.0]])})


def test_one_dimension_that_moved_is_not_everything(caplog: pytest.LogCaptureFixture) -> None:
    stats = {"observation.state": {"min": torch.tensor([0.0, 0.5]), "max": torch.tensor([1.0, 0.5])}}
    found = TrainingStates.from_stats(stats, IDENTITY, None)
    assert found is not None
    assert found.check({"observation.state": torch.tensor([[2.5, 0.5]])})
    assert "in 1 of 2 dimensions: dimension 0 is 2.5 (training data: 0 to 1)" in caplog.text


@pytest.mark.parametrize(
    ("stats", "mode"),
    [
        (None, IDENTITY),
        ({"action": {"min": LOW, "max": HIGH}}, IDENTITY),
        ({"observation.state": {"min": LOW}}, IDENTITY),
        ({"observation.state": {"min": LOW, "max": HIGH}}, NormalizationMode.QUANTILES),
        ({"observation.state": {"min": LOW, "max": HIGH * float("nan")}}, IDENTITY),
        ({"observation.state": {"min": LOW, "max": HIGH[:5]}}, IDENTITY),
    ],
    ids=["none", "no state", "no max", "no quantiles", "NaN", "sizes"],
)
def test_without_a_range_nothing_is_compared(stats: Any, mode: NormalizationMode) -> None:
    assert TrainingStates.from_stats(stats, mode, NAMES) is None


def test_a_batch_without_such_a_state_is_left_for_the_next() -> None:
    assert not states().check({})
    assert not states().check({"observation.state": torch.zeros(1, 7)})


# ---------------------------------------------------------------- through the policy


@pytest.fixture
def policy() -> VLA0Policy:
    return VLA0Policy(make_config(), dataset_stats=make_stats()).eval()  # states in [-1, 1]


def batch_at(policy: VLA0Policy, x: float, y: float) -> dict[str, Any]:
    return {**make_batch(policy.config, batch=1), "observation.state": torch.tensor([[x, y]])}


@pytest.mark.parametrize("ask", ["select_action", "predict_action_chunk"])
def test_the_policy_warns_at_the_first_observation_only(
    policy: VLA0Policy, ask: str, caplog: pytest.LogCaptureFixture
) -> None:
    policy.warm_up()  # has no state
    with caplog.at_level("WARNING"):
        getattr(policy, ask)(batch_at(policy, 0.0, 2.5))
        assert "dimension 1 is 2.5 (training data: -1 to 1)" in caplog.text
        caplog.clear()
        policy.reset()
        getattr(policy, ask)(batch_at(policy, 0.0, 2.5))
    assert not caplog.messages


def test_the_policy_refuses_again_until_the_state_is_plausible(policy: VLA0Policy) -> None:
    # LeRobot's Real-Time Chunking tries again after an error.
    for _ in range(2):
        with pytest.raises(StateError, match="cannot be of the robot of the training data"):
            policy.predict_action_chunk(batch_at(policy, 50.0, -60.0))
    policy.predict_action_chunk(batch_at(policy, 0.5, -0.5))
    policy.predict_action_chunk(batch_at(policy, 50.0, -60.0))  # the robot was where it belongs


def test_a_state_in_the_prompt_is_compared_in_the_robots_units() -> None:
    config = make_config(state_in_prompt=True)
    stats = {**make_stats(), "observation.state": {"min": LOW[:2], "max": HIGH[:2]}}
    policy = VLA0Policy(config, dataset_stats=stats).eval()
    normalised = 2 * (torch.tensor([[3000.0, 0.0]]) - LOW[:2]) / (HIGH - LOW)[:2] - 1
    with pytest.raises(StateError, match=r"dimension 0 is 3000 \(training data: -40 to 40\)"):
        policy.select_action({**make_batch(config, batch=1), "observation.state": normalised})
