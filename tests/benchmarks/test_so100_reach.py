"""The reaching benchmark, its task, and what the emulator lends it: kinematics, a ball, an arm in simulated time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.paths import REPO

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.so100_emulator import (
    REST,
    Scene,
    SO100Emulator,
    SteppedArm,
    gripper_tip,
    joint_points,
    reach,
)
from lerobot_policy_vla0.tools.so100_emulator.console import obey

sys.path.insert(0, str(REPO / "benchmarks"))

import so100_reach
from reach import task
from reach.controllers import Expert, Replay
from reach.demonstrations import demonstrate, features
from reach.episodes import Outcome, run

STEP = 360 / 4095  # degrees per encoder step


# ----------------------------------------------------------------------------------------------------- kinematics


@pytest.mark.parametrize("point", [(0.2, 0.0, 0.03), (0.15, 0.12, 0.05), (0.1, -0.2, 0.1), (0.28, 0.0, 0.02)])
@pytest.mark.parametrize("pitch", [130.0, 150.0])
def test_the_pose_for_a_place_puts_the_gripper_there(point: tuple[float, ...], pitch: float) -> None:
    pose = reach(point, pitch)
    assert gripper_tip(pose) == pytest.approx(point, abs=1e-9)
    points = joint_points(pose)
    assert points[2, 2] > (points[1, 2] + points[3, 2]) / 2  # elbow up
    direction = (gripper_tip(pose) - points[3])[2] / np.linalg.norm(gripper_tip(pose) - points[3])
    assert np.degrees(np.arccos(direction)) == pytest.approx(pitch)


def test_a_place_out_of_reach_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot be at \[0.6, 0.0, 0.0\].* reaches 0.019 to 0.251 m"):
        reach((0.6, 0.0, 0.0))


# ---------------------------------------------------------------------------------------- ball and simulated time


def test_the_ball_is_where_it_was_put(tmp_path: Path) -> None:
    with SO100Emulator(tmp_path, leaders=(), start=(10, -20, 30, 5, 0, 50)) as emulator:
        assert emulator.followers[0].pose() == pytest.approx([10, -20, 30, 5, 0, 50], abs=STEP)
        before = emulator.render(160, 120)
        obey(emulator, "ball 0.2 -0.15")
        assert emulator.scene.ball == (0.2, -0.15)
        assert emulator.scene.ball_centre.tolist() == [0.2, -0.15, 0.02]
        assert (emulator.render(160, 120) != before).any()
        emulator.place_ball(0.24, 0.08)
        assert np.array_equal(emulator.render(160, 120), before)
        with pytest.raises(
            ConfigError, match=r"x=2.0, y=0.0 is off the table: give metres, x in \[-0.35, 0.5\]"
        ):
            obey(emulator, "ball 2 0")
        with pytest.raises(ConfigError, match="cannot do 'ball 1'"):
            obey(emulator, "ball 1")
    with pytest.raises(ConfigError, match="y=nan is off the table"):
        Scene(ball=(0.1, float("nan")))


def test_a_larger_ball_covers_more_of_the_picture() -> None:
    def red(radius: float) -> int:
        picture = Scene(ball_radius=radius).render(REST, 160, 120)
        return int(((picture[..., 0] > 180) & (picture[..., 1] < 90)).sum())

    assert red(0.04) == pytest.approx(4 * red(0.02), rel=0.2)
    with pytest.raises(ConfigError, match="ball_radius=0 is no ball"):
        Scene(ball_radius=0)


def test_in_simulated_time_the_arm_moves_as_its_servos_do() -> None:
    arm = SteppedArm((0, 0, 0, 0, 0, 0))
    arm.send((20, 0, 0, 0, 0, 100))
    assert arm.pose()[0] == pytest.approx(0, abs=STEP)  # no time has passed
    arm.advance(1 / 16)  # LeRobot's P coefficient: one time constant
    assert arm.pose()[0] == pytest.approx(20 * (1 - np.exp(-1)), abs=2 * STEP)
    arm.send((0, 0, 0, 0, 0, 0))  # what was moved stays moved
    assert arm.pose()[0] == pytest.approx(20 * (1 - np.exp(-1)), abs=2 * STEP)
    arm.advance(2.0)
    assert arm.pose() == pytest.approx([0] * 6, abs=STEP)
    with pytest.raises(ConfigError, match=r"time cannot pass by -1 s"):
        arm.advance(-1)


def test_lerobots_brake_keeps_goals_near_the_arm() -> None:
    arm = SteppedArm((0, 0, 0, 0, 0, 50), max_relative_target=10)
    arm.send((60, -4, 0, 0, 0, 50))
    arm.advance(5)
    assert arm.pose() == pytest.approx([10, -4, 0, 0, 0, 50], abs=2 * STEP)
    arm.send((60, -4, 0, 0, 0, 50))
    arm.advance(5)
    assert arm.pose()[0] == pytest.approx(20, abs=3 * STEP)
    with pytest.raises(ConfigError, match="max_relative_target=0 lets nothing move"):
        SteppedArm(max_relative_target=0)


# ----------------------------------------------------------------------------------------------------------- task


def test_cases_are_the_same_for_a_seed_and_within_reach() -> None:
    cases = [task.draw_case(seed) for seed in range(50)]
    assert cases[3] == task.draw_case(3)
    assert len({case.ball for case in cases}) == 50
    for case in cases:
        assert task.distance(task.expert(case.ball), case.ball) == pytest.approx(0, abs=1e-9)
        assert task.distance(case.start, case.ball) > task.TOLERANCE  # nobody starts at the ball
        x, y = case.ball
        assert 0.17 <= np.hypot(x, y) <= 0.29


def test_the_expert_gets_there_and_those_who_see_nothing_do_not() -> None:
    cases = [task.draw_case(seed) for seed in range(so100_reach.HELD_OUT, so100_reach.HELD_OUT + 12)]
    assert all(outcome.success for outcome in run(cases, Expert(cases)))
    goals = np.stack([frame["action"] for frame in demonstrate(0)])
    assert sum(outcome.success for outcome in run(cases, Replay(goals))) <= 3
    assert sum(outcome.success for outcome in run(cases, Replay(goals.mean(axis=0, keepdims=True)))) <= 3
    # A replay does solve the case it was recorded in: failing above is not the replay's fault.
    assert run([task.draw_case(0)], Replay(goals))[0].success


def test_success_is_staying_at_the_ball_not_passing_it() -> None:
    passing = Outcome((0.2, 0.01, 0.01, 0.01, 0.01, 0.2))
    assert passing.touched
    assert not passing.success
    assert Outcome((0.2, 0.03, 0.02, 0.01, 0.01, 0.02)).success


def test_demonstrations_end_at_the_ball_and_labels_are_what_was_done_next() -> None:
    frames = demonstrate(5)
    case = task.draw_case(5)
    assert task.distance(frames[-1]["observation.state"], case.ball) < 0.01
    assert frames[0]["observation.state"] == pytest.approx(case.start, abs=STEP)
    actions = np.stack([frame["action"] for frame in frames])
    states = np.stack([frame["observation.state"] for frame in frames])
    # The follower covers 1 - exp(-3.2), 96 %, of the way to a goal in a control step; the brake shortens the way.
    way = np.clip(actions - states, -task.BRAKE, task.BRAKE)[:-1]
    expected = states[:-1] + (1 - np.exp(-3.2)) * way
    assert np.abs(states[1:] - expected).max() < 3 * STEP
    assert set(frames[0]) == {*features(), "task"}


def test_wilsons_interval() -> None:
    # By hand: p = 0.9, n = 20: (0.9 + 0.09604 -+ 1.96 sqrt(0.0045 + 0.0024010)) / 1.19208
    assert so100_reach.wilson(18, 20) == [0.699, 0.972]
    assert so100_reach.wilson(0, 50)[0] == 0.0


@pytest.mark.sim
def test_the_benchmark_runs_and_goes_on_from_what_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--folder", str(tmp_path / "run"), "--demonstrations", "3", "--cases", "2", "--wire", "0"]
    output = tmp_path / "result.json"
    result = so100_reach.main([*options, "--steps", "2", "--output", str(output)])
    rows = result["results"]
    assert rows["the expert, who knows where the ball is"]["success"] == 2
    assert rows["the policy"]["episodes"] == rows["the policy, shown a ball elsewhere"]["episodes"] == 2
    assert rows["the policy"]["success"] == 0  # two steps teach nothing
    assert rows["demonstrations, replayed blindly"]["episodes"] == 2 * so100_reach.REPLAYS
    assert set(result["first_motion"]) == {"shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex"}
    assert result["frames"] == sum(len(demonstrate(seed)) for seed in range(3))
    line = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(line) == json.loads(output.read_text()) == json.loads(json.dumps(result))

    again = so100_reach.main([*options, "--steps", "2"])
    assert again["train_seconds"] == result["train_seconds"]
    assert again["results"] == rows  # nothing is drawn
    with pytest.raises(SystemExit, match=r"was begun with .*'train_steps': 2.* choose another --folder"):
        so100_reach.main([*options, "--steps", "3"])
