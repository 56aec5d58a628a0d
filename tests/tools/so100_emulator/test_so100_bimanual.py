"""Two arms as one robot of twelve joints: LeRobot's `bi_so_follower` on two emulated arms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.so100_policy import HIGH, LOW, STEP, Rollout, save_policy

from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.tools.commands import main
from lerobot_policy_vla0.tools.so100_emulator import SO100Emulator

LIMIT = 3.0  # degrees a goal may differ from the one before
GOALS = 20


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bimanual") / "policy"
    prompt = "{H} steps of {D} joints: {N} integers 0-{B}"
    options = {"chunk_size": 12, "n_action_steps": 12, "system_prompt": prompt}
    return save_policy(folder, joints=12, restless=True, **options)


@pytest.mark.sim
@pytest.mark.parametrize("inference", ["sync", "rtc"])
def test_a_policy_of_twelve_joints_drives_both_arms_within_its_limits(
    policy: Path, tmp_path: Path, inference: str
) -> None:
    rollout = Rollout(tmp_path)
    rollout(
        policy,
        f"--inference.type={inference}",
        *(["--inference.queue_threshold=8"] if inference == "rtc" else []),
        f"--policy.max_action_step={LIMIT}",
        "--policy.max_action_step_unit=robot",
        "--fps=3",
        pair="pair",
        goals=GOALS,
    )
    assert rollout.other is not None
    left, right = ([goal.pose for goal in log.goals] for log in (rollout.log, rollout.other))
    assert min(len(left), len(right)) >= GOALS - 1
    for goals in (np.array(left), np.array(right)):
        assert (goals >= LOW - 1.01 * STEP).all() and (goals <= HIGH + 1.01 * STEP).all()
        assert np.ptp(goals, axis=0).max() > LIMIT  # it moves
    # Each arm has its own half of the action, not the other's.
    assert np.abs(np.array(left)[: GOALS - 1] - np.array(right)[: GOALS - 1]).max() > LIMIT
    if inference == "sync":
        changes = np.array([*rollout.log.changes(), *rollout.other.changes()])
        assert LIMIT / 2 < changes.max() <= LIMIT + 1.01 * STEP
    assert "max_action_step bites" in rollout.said


def test_prompt_answer_and_latency_are_those_of_twelve_joints(
    policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = VLA0Policy.from_pretrained(policy)
    assert loaded.config.action_dim == 12
    assert loaded.codec.n_numbers == 12 * 12
    assert main(["latency", f"--policy.path={policy}", "--fps=10", "--repeats=2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["measured"]["action_dim"] == 12


def test_options_name_both_ports(tmp_path: Path) -> None:
    with SO100Emulator(tmp_path, followers=("pair_left", "pair_right", "third"), leaders=()) as emulator:
        assert emulator.pairs == ["pair"]
        options = emulator.robot_options("pair")
        assert options[:2] == ["--robot.type=bi_so_follower", "--robot.id=pair"]
        for side in ("left", "right"):
            assert f"--robot.{side}_arm_config.port={tmp_path / 'ports' / f'pair_{side}'}" in options
        assert emulator.robot_options()[0] == "--robot.type=so100_follower"
