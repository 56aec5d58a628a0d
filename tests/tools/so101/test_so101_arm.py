"""The simulated SO-101: LeRobot's units, starts from a seed, and the scene's own judgement."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.paths import REPO

pytest.importorskip("so101_nexus", reason="pip install 'lerobot_policy_vla0[so101]'")

from so101_nexus.lerobot_adapter.synthetic_calibration import build_synthetic_calibration

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.so101.arm import SimulatedArm
from lerobot_policy_vla0.tools.so101.environment import PickLiftEnv, PickLiftEnvConfig
from lerobot_policy_vla0.tools.so101.scene import SPEED, PickLift

pytestmark = pytest.mark.sim
REST = [0, -90, 90, 37.8, 0, 0]
TICK = 360 / 4095  # degrees


@pytest.fixture(scope="module")
def arm() -> Iterator[SimulatedArm]:
    arm = SimulatedArm(image_size=32, fps=30)
    yield arm
    arm.close()


def test_positions_and_goals_are_in_lerobots_units(arm: SimulatedArm) -> None:
    arm.reset(seed=3)
    state, pictures = arm.observe()
    assert state == pytest.approx(REST, abs=1.5)  # degrees: the start is a little disturbed
    assert {name: picture.shape for name, picture in pictures.items()} == {
        "wrist": (32, 32, 3),
        "side": (32, 32, 3),
    }
    goal = np.array([20, -60, 60, 50, -10, 40], np.float32)
    before = state[:5]
    for _ in range(30):
        assert arm.send(goal) == pytest.approx(goal, abs=1.5 * TICK)
        now = arm.observe()[0][:5]
        assert np.abs(now - before).max() < 1.5 * SPEED / 30  # a joint may swing a little
        before = now
    state, _ = arm.observe()
    assert state == pytest.approx(goal, abs=1.5)
    radians = np.append(np.radians(goal[:5]), -0.17453 + 0.4 * (1.7453291 + 0.17453))
    assert arm.positions(radians) == pytest.approx(goal, abs=TICK)
    # A goal outside the joints' limits is cut to them.
    for _ in range(40):
        arm.send(np.array([500, *goal[1:]]))
    assert arm.observe()[0][0] == pytest.approx(110, abs=1.5)


def test_a_seed_is_a_place_and_nothing_else(arm: SimulatedArm) -> None:
    def start(seed: int) -> tuple[np.ndarray, np.ndarray]:
        arm.reset(seed)
        return arm.scene.data.body("pick_slot_0").xpos.copy(), arm.observe()[1]["side"]

    (place, picture), (other, _) = start(5), start(6)
    again, same = start(5)
    assert (place == again).all() and (picture == same).all()
    assert np.linalg.norm(place - other) > 1e-3
    places = np.array([start(seed)[0] for seed in range(20)])
    assert np.linalg.norm(places[:, :2] - [0.22, 0], axis=1).max() <= 0.08
    assert np.ptp(places[:, 0]) > 0.06 and np.ptp(places[:, 1]) > 0.06


def test_an_episode_ends_when_the_cube_is_lifted_or_time_is_up() -> None:
    env = PickLiftEnv(image_size=16, fps=30, max_steps=3)
    try:
        observation, info = env.reset(seed=1)
        assert env.observation_space.contains(observation) and info == {"is_success": False}
        rest = observation["agent_pos"]
        ends = [env.step(rest)[1:] for _ in range(3)]
        assert [(reward, done, late) for reward, done, late, _ in ends] == [
            (0.0, False, False),
            (0.0, False, False),
            (0.0, False, True),
        ]
        assert env.render().shape == (16, 32, 3)
        # Held by nobody's fingers: high up, it still counts as nothing.
        env.reset(seed=1)
        env.arm.scene.data.qpos[env.arm.scene._slots[0].qpos_addr + 2] += 0.2
        assert env.step(rest)[4] == {"is_success": False}
    finally:
        env.close()
    with pytest.raises(ConfigError, match=r"episode_length=0 leaves no step"):
        PickLiftEnv(image_size=16, fps=30, max_steps=0)
    with pytest.raises(ConfigError, match=r"image_size=0 and fps=30"):
        PickLift(image_size=0)
    with pytest.raises(ConfigError, match=r"control_mode=pd_ee_pose is not for this scene"):
        PickLift(control_mode="pd_ee_pose")


def test_the_options_describe_what_the_environment_gives() -> None:
    config = PickLiftEnvConfig(image_size=16, episode_length=7)
    env = config.create_envs(2)["so101_pick_lift"][0]
    try:
        observation, _ = env.reset(seed=[1, 2])
        for name, feature in config.features.items():
            value = (
                observation
                if name.startswith(("agent_pos", "pixels"))
                else {"action": env.action_space.sample()}
            )
            for part in name.split("/"):
                value = value[part]
            assert value.shape == (2, *feature.shape), name
        assert env.call("_max_episode_steps") == (7, 7)
        assert env.call("task_description") == ("Pick up the red cube.",) * 2
    finally:
        env.close()


def test_the_log_has_a_line_for_each_step(tmp_path: Path) -> None:
    log = tmp_path / "folder" / "steps.jsonl"
    scene = PickLift(image_size=16, log=str(log))
    scene.reset(seed=4)
    for _ in range(2):
        scene.step(scene.action_space.low)
    scene.close()
    first, *steps = map(json.loads, log.read_text().splitlines())
    assert first == {"reset": 4}
    assert [line.keys() for line in steps] == [{"time", "lift_height", "is_grasped", "success"}] * 2
    assert steps[0]["time"] < steps[1]["time"] and not steps[1]["success"]


def test_the_examples_calibration_is_the_simulations() -> None:
    written = json.loads((REPO / "examples/so101/calibration/simulated.json").read_text())
    assert written == {name: vars(joint) for name, joint in build_synthetic_calibration().items()}
