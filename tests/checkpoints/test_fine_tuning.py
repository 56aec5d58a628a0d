"""fine_tuning.py: a data set that does not fit the checkpoint is refused before anything is trained, or warned of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.tiny import CAMERA, make_config, make_stats

from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.checkpoints.fine_tuning import check_dataset, warn_about_other_ranges
from lerobot_policy_vla0.checkpoints.saved_normalizers import SavedNormalizer
from lerobot_policy_vla0.errors import CameraError, StateError, StatsError

SIDE, WRIST = "observation.images.side", "observation.images.wrist"


def meta(*cameras: str, state: int = 2) -> Any:
    """What is read of LeRobot's ``LeRobotDatasetMetadata``."""
    names = [f"joint{i}.pos" for i in range(state)]
    features: dict[str, Any] = {"observation.state": {"shape": (state,), "names": names}}
    return SimpleNamespace(features=features, camera_keys=list(cameras))


def test_a_data_set_without_statistics_would_be_converted_with_the_checkpoints() -> None:
    with pytest.raises(StatsError) as error:
        VLA0Policy(make_config(), dataset_stats=None, dataset_meta=meta(CAMERA))
    assert str(error.value) == (
        "the data set has no statistics (meta/stats.json), and a checkpoint's are of other data. Compute them: "
        "`lerobot-edit-dataset --repo_id=NAME --new_repo_id=NAME_stats --operation.type=recompute_stats`."
    )


def test_a_state_of_another_size_is_refused() -> None:
    # The policy would be trained, and then refuse the robot of its own data.
    with pytest.raises(StateError) as error:
        check_dataset(make_config(), make_stats(), meta(CAMERA, state=3))
    assert str(error.value) == (
        "the data set's observation.state has 3 values ['joint0.pos', 'joint1.pos', 'joint2.pos'], the checkpoint was "
        "trained with 2: they are of different robots, and the policy could not be run on the data set's. Use data of "
        "the robot it was trained for, or train a new policy with --policy.type=vla0."
    )


def test_a_camera_less_is_refused_and_no_renaming_helps() -> None:
    with pytest.raises(CameraError) as error:
        check_dataset(make_config(cameras=(CAMERA, WRIST)), make_stats(), meta(SIDE))
    assert str(error.value) == (
        f"the checkpoint reads the cameras ['{CAMERA}', '{WRIST}'], and the data set has only ['{SIDE}']. Use data "
        "with all of its cameras, or train a new policy with --policy.type=vla0."
    )


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ([SIDE], f'--rename_map=\'{{"{SIDE}": "{CAMERA}"}}\''),
        (
            [SIDE, WRIST],
            f"--rename_map='{{\"<key>\": \"{CAMERA}\"}}', where each <key> is one of ['{SIDE}', '{WRIST}']",
        ),
    ],
    ids=["one", "two"],
)
def test_a_renaming_that_is_needed_is_said_before_lerobot_looks(
    there: list[str], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        check_dataset(make_config(), make_stats(), meta(*there))
    assert caplog.messages == [
        f"the checkpoint reads the cameras ['{CAMERA}'], and the data set has {there}: this needs {said}"
    ]


def test_a_data_set_that_fits_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        check_dataset(make_config(), make_stats(), meta(CAMERA, WRIST))
    assert not caplog.messages


def saved(low: list[float], high: list[float]) -> Any:
    return SimpleNamespace(stats={"action": {"min": torch.tensor(low), "max": torch.tensor(high)}})


@pytest.mark.parametrize(
    ("low", "high", "warned"),
    [
        ([-90.0, 0.0], [90.0, 100.0], False),  # the same
        ([-60.0, 10.0], [80.0, 60.0], False),  # half of it: other demonstrations
        ([-90.0, 0.0], [90.0, 1.0], False),  # one dimension of two
        ([-1.5, 0.0], [1.5, 1.0], True),  # radians
        ([100.0, 200.0], [280.0, 300.0], True),  # another zero
    ],
)
def test_ranges_that_hardly_overlap_are_warned_of(
    low: list[float], high: list[float], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(action_feature_names=["pan.pos", "gripper.pos"])
    stats = {"action": {"min": low, "max": high}}
    normalizer: SavedNormalizer = saved([-90.0, 0.0], [90.0, 100.0])
    with caplog.at_level("WARNING"):
        warn_about_other_ranges(config, normalizer, stats)
    ranges = (
        f"pan.pos {low[0]:.4g} to {high[0]:.4g} (checkpoint: -90 to 90), gripper.pos {low[1]:.4g} to {high[1]:.4g} "
        "(checkpoint: 0 to 100)"
    )
    assert (
        caplog.messages
        == [
            f"the data set's actions have other ranges than those the checkpoint was trained on: {ranges}. The same "
            "number then means another position, and the policy has to learn it anew. If this is the same robot, check "
            "units (SO-100: --robot.use_degrees) and calibration."
        ]
        * warned
    )


def test_statistics_that_the_checkpoint_lacks_are_not_compared(caplog: pytest.LogCaptureFixture) -> None:
    warn_about_other_ranges(make_config(), SimpleNamespace(stats={}), make_stats())  # type: ignore[arg-type]
    assert not caplog.messages
