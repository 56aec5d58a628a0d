"""What users get wrong on an SO-100, through LeRobot's real commands: a clear error, or an adaptation that is said."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers.made_up_data import write_dataset
from helpers.paths import REPO
from helpers.so100_policy import TOP, Rollout, save_policy
from helpers.tiny import make_dataset
from safetensors.torch import load_file, save_file

from lerobot_policy_vla0.errors import (
    ActionError,
    CameraError,
    CheckpointError,
    StateError,
    StatsError,
)
from lerobot_policy_vla0.tools.so100_emulator import CameraSettings

pytestmark = pytest.mark.sim


@pytest.fixture
def rollout(tmp_path: Path) -> Rollout:
    """`lerobot-rollout` on an emulated arm."""
    return Rollout(tmp_path)


def test_another_number_of_joints_is_refused_before_anything_moves(rollout: Rollout, tmp_path: Path) -> None:
    # LeRobot itself would send the first six of seven numbers.
    policy = save_policy(tmp_path / "seven", joints=7)
    with pytest.raises(ActionError, match=r"observation\.state has 6 values, the policy was trained with 7"):
        rollout(policy)
    assert rollout.log.reads and not rollout.log.goals


def test_another_camera_name_is_refused_by_lerobot(rollout: Rollout, tmp_path: Path) -> None:
    policy = save_policy(tmp_path / "policy")
    with pytest.raises(
        ValueError, match=r"(?s)Visual feature mismatch.*images\.top.*images\.side.*--rename_map"
    ):
        rollout(policy, camera=CameraSettings("side", 64, 48, 30))


def test_a_camera_the_policy_misses_is_refused(rollout: Rollout, tmp_path: Path) -> None:
    # LeRobot lets a robot with some of the cameras pass.
    policy = save_policy(tmp_path / "two", cameras=(TOP, "observation.images.wrist"))
    with pytest.raises(CameraError, match=r"add \['observation\.images\.wrist'\] to --robot\.cameras"):
        rollout(policy)
    assert not rollout.log.goals


def test_a_misspelt_renaming_is_answered_with_the_right_one(rollout: Rollout, tmp_path: Path) -> None:
    # With any --rename_map LeRobot compares nothing.
    policy = save_policy(tmp_path / "policy")
    misspelt = '--rename_map={"observation.images.sid": "observation.images.top"}'
    with pytest.raises(CameraError) as error:
        rollout(policy, misspelt, camera=CameraSettings("side", 64, 48, 30))
    assert '--rename_map=\'{"observation.images.side": "observation.images.top"}\'' in str(error.value)
    assert not rollout.log.goals


@pytest.mark.parametrize("engine", ["sync", "rtc"])
def test_statistics_under_another_key_never_reach_the_arm(
    rollout: Rollout, tmp_path: Path, engine: str
) -> None:
    # LeRobot would send numbers from -1 to 1 as degrees: the arm jumps to its middle and stands still.
    policy = save_policy(tmp_path / "policy")
    step = policy / "policy_postprocessor_step_0.safetensors"
    save_file({key.replace("action", "so100.action"): value for key, value in load_file(step).items()}, step)
    with pytest.raises(StatsError, match=r"If 'so100\.action' is meant, rename it to 'action' there"):
        rollout(policy, f"--inference.type={engine}")
    assert not rollout.log.goals


def test_statistics_in_other_units_are_refused_at_the_first_observation(
    rollout: Rollout, tmp_path: Path
) -> None:
    policy = save_policy(tmp_path / "radians", states=(-1.7, 1.7))
    with pytest.raises(StateError, match=r"dimension 1 is -60\.\d+ \(training data: -1\.7 to 1\.7\)"):
        rollout(policy)
    assert rollout.log.reads and not rollout.log.goals


def test_a_beginning_far_from_the_demonstrations_is_said_once(rollout: Rollout, tmp_path: Path) -> None:
    rollout(save_policy(tmp_path / "near", states=(-20.0, 20.0)))
    assert rollout.said.count("begins far from everything in the training data in 2 of 6 dimensions") == 1
    assert len(rollout.log.goals) >= 3


def test_no_task_and_a_stretched_picture_are_said_and_the_arm_moves(rollout: Rollout, tmp_path: Path) -> None:
    policy = save_policy(tmp_path / "policy")
    rollout(policy, camera=CameraSettings("top", 96, 96, 30), task="")
    assert "the task is empty, so the model gets no instruction. Pass --task=..." in rollout.said
    assert f"{TOP}: images are 96x96, the policy was trained with 64x48" in rollout.said
    assert "the model sees a stretched picture" in rollout.said
    assert len(rollout.log.goals) >= 2


# ---------------------------------------------------------------- training


def train(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Run `lerobot-train` in this process."""
    from lerobot.scripts.lerobot_train import main

    monkeypatch.setattr(sys, "argv", ["lerobot-train", *arguments])
    main()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of a dataset of two joints and the camera ``top``."""
    root = make_dataset(tmp_path_factory.mktemp("data") / "tiny")
    return ["--dataset.repo_id=local/tiny", f"--dataset.root={root}", "--steps=1", "--save_freq=1"]


DEBUG = f"--config_path={REPO / 'configs' / 'debug.yaml'}"
FINE_TUNE = ["--policy.push_to_hub=false", "--num_workers=0", "--env_eval_freq=0", "--batch_size=2"]


def test_training_on_a_camera_that_is_not_recorded_is_refused(
    dataset: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = '--policy.cameras=["observation.images.side"]'
    with pytest.raises(
        CameraError, match=r"names \['observation\.images\.side'\], but .* has \['observation"
    ):
        train(monkeypatch, DEBUG, *dataset, f"--output_dir={tmp_path / 'out'}", camera)


def test_fine_tuning_on_a_robot_with_other_joints_is_refused(
    dataset: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = save_policy(tmp_path / "six", joints=6)
    with pytest.raises(CheckpointError, match="action_dim is 2, the checkpoint has 6"):
        train(
            monkeypatch, f"--policy.path={policy}", *dataset, *FINE_TUNE, f"--output_dir={tmp_path / 'out'}"
        )


def test_fine_tuning_on_a_camera_more_names_the_option_that_ignores_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = save_policy(tmp_path / "policy", joints=2)
    cameras = dict.fromkeys((TOP, "observation.images.wrist"), (64, 64))
    root = write_dataset(tmp_path / "data", [[[0.0, 1.0], [60.0, 50.0], [30.0, 2.0]]], cameras=cameras)
    data = ["--dataset.repo_id=local/tiny", f"--dataset.root={root}", "--steps=1", "--save_freq=1"]
    arguments = [f"--policy.path={policy}", *data, *FINE_TUNE]
    with pytest.raises(CameraError) as error:
        train(monkeypatch, *arguments, f"--output_dir={tmp_path / 'refused'}")
    option = "--policy.cameras='[\"observation.images.top\"]'"
    assert (
        f"unexpected: ['observation.images.wrist']). Let the policy ignore what it does not read, {option},"
        in str(error.value)
    )
    train(monkeypatch, *arguments, f"--output_dir={tmp_path / 'out'}", option.replace("'", ""))
    assert (tmp_path / "out/checkpoints/000001/pretrained_model/model.safetensors").is_file()


def test_fine_tuning_on_pictures_of_another_size_works(
    dataset: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = save_policy(tmp_path / "policy", joints=2)  # 64x48; the dataset has 64x64
    train(monkeypatch, f"--policy.path={policy}", *dataset, *FINE_TUNE, f"--output_dir={tmp_path / 'out'}")
    assert (tmp_path / "out/checkpoints/000001/pretrained_model/model.safetensors").is_file()
