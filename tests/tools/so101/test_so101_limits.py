"""Do the limits hold in physics? A policy that answers at random drives the simulated arm, with and without them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import make_config

pytest.importorskip("so101_nexus", reason="pip install 'lerobot_policy_vla0[so101]'")

from lerobot_policy_vla0 import VLA0Policy, make_vla0_pre_post_processors
from lerobot_policy_vla0.dataset_stats import ActionRange
from lerobot_policy_vla0.errors import ActionError, ConfigError, StatsError
from lerobot_policy_vla0.execution.floor import Floor
from lerobot_policy_vla0.execution.step_limit import limit_steps
from lerobot_policy_vla0.tools.so101.arm import SimulatedArm
from lerobot_policy_vla0.tools.so101.scene import FINGERS

FEWER, MAX_STEP, HEIGHT = 300, 1.0, 0.06  # a step in degrees, and in percent for the gripper; metres
#: More than the joints can turn, as if the recorded arm had been calibrated otherwise.
LOW, HIGH = np.array([-130, -110, -110, -110, -170, 0]), np.array([130, 110, 110, 110, 170, 100])
RANGE = ActionRange(torch.tensor(LOW).float(), torch.tensor(HIGH).float())
ENCODER = 0.1  # degrees: more than a step of it


@pytest.fixture(scope="module")
def arm() -> Iterator[SimulatedArm]:
    arm = SimulatedArm(image_size=None, fps=30)
    yield arm
    arm.close()


def stats() -> dict[str, dict[str, Any]]:
    return {"action": {"min": RANGE.low, "max": RANGE.high}}


@dataclass
class Violations:
    """How many of the steps broke a limit."""

    step: int = 0
    floor: int = 0
    joints: int = 0


def drive(arm: SimulatedArm, steps: int, **options: Any) -> Violations:
    """Let a policy of random weights that samples hot drive the arm; count what breaks the limits."""
    # 0 begins with a goal that the table keeps the arm from, and the arm would stay below the floor.
    torch.manual_seed(2)
    config = make_config(
        action_dim=6,
        image=16,
        image_size=(28, 28),
        chunk_size=8,
        n_action_steps=8,
        n_bins=9,  # one digit each: a random answer takes as many passes as it has digits
        temperature=5.0,
        **options,
    )
    policy = VLA0Policy(config, stats()).eval()
    before, after = make_vla0_pre_post_processors(config, stats())
    key, grey = config.camera_keys[0], torch.full((3, 16, 16), 0.5)
    arm.reset(seed=1)
    scene, found, last = arm.scene, Violations(), None
    low, high = scene.action_space.low, scene.action_space.high
    for step in range(steps):
        goal = after(policy.select_action(before({key: grey, "task": "wave"})))[0].numpy()
        sent = arm.send(goal)
        if step == 0:  # the way to the first goal is free: get there
            for _ in range(60):
                arm.send(goal)
        joints = scene.data.qpos[: len(low)]
        found.joints += bool((joints < low - 0.01).any() or (joints > high + 0.01).any())
        found.floor += bool(scene.data.site(FINGERS).xpos[2] < HEIGHT)
        found.step += last is not None and bool((np.abs(sent - last) > MAX_STEP + 2 * ENCODER).any())
        last = sent
    return found


@pytest.mark.sim
def test_a_random_policy_breaks_no_limit_and_without_them_it_does(arm: SimulatedArm) -> None:
    limits = {"max_action_step": MAX_STEP, "max_action_step_unit": "robot", "min_gripper_height": HEIGHT}
    assert drive(arm, 1000, **limits) == Violations(0, 0, 0)
    free = drive(arm, FEWER)
    assert free.joints == 0  # the arm's own stops
    assert free.step > 0.9 * FEWER and free.floor > 0.05 * FEWER
    del limits["min_gripper_height"]
    only_steps = drive(arm, FEWER, **limits)
    assert only_steps.step == 0 and only_steps.floor > 0.01 * FEWER


@pytest.mark.sim
def test_a_goal_is_raised_as_little_as_it_has_to_be(arm: SimulatedArm) -> None:
    floor = Floor(HEIGHT, RANGE)
    arm.reset(seed=1)
    state, _ = arm.observe()
    assert floor.height(state) == pytest.approx(arm.scene.data.site(FINGERS).xpos[2], abs=2e-3)
    goals = torch.rand(80, 6, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.7
    raised = floor.keep_above(goals, None, torch.full((6,), 0.1))

    def heights(actions: torch.Tensor) -> np.ndarray:
        return np.array(
            [floor.height(goal) for goal in LOW + (actions.double().numpy() + 1) / 2 * (HIGH - LOW)]
        )

    low = heights(goals) < HEIGHT + 0.004
    assert 10 < low.sum() < 70
    assert torch.equal(raised[~torch.from_numpy(low)], goals[~torch.from_numpy(low)])
    assert ((heights(raised)[low] >= HEIGHT) & (heights(raised)[low] < HEIGHT + 0.01)).all()
    assert torch.equal(raised[:, 5], goals[:, 5])
    # From goals that are high enough, no step is larger than it may be, and none leads too low.
    before = raised
    for _ in range(5):
        after = limit_steps(goals.unsqueeze(1), torch.full((6,), 0.05), before, floor)[:, 0]
        assert (after - before).abs().max() < 0.05 + 1e-5 and heights(after).min() >= HEIGHT - 1e-6
        before = after
    with pytest.raises(ActionError, match=r"no pose near the goal .* degrees is 0.004 m higher"):
        Floor(2.0, RANGE).keep_above(goals, None, torch.full((6,), 0.1))


def test_what_the_floor_needs_is_said() -> None:
    with pytest.raises(ConfigError, match=r"min_gripper_height=0\.02 needs max_action_step"):
        make_config(action_dim=6, min_gripper_height=0.02)
    with pytest.raises(ConfigError, match="min_gripper_height=nan must be"):
        make_config(action_dim=6, min_gripper_height=float("nan"), max_action_step=0.1)
    with pytest.raises(ConfigError, match="the action has 2 dimensions"):
        VLA0Policy(
            make_config(min_gripper_height=0.02, max_action_step=0.1),
            {"action": {"min": torch.zeros(2), "max": torch.ones(2)}},
        )
    with pytest.raises(StatsError, match=r"min_gripper_height=0\.02 needs the action statistics"):
        policy = VLA0Policy(make_config(action_dim=6, min_gripper_height=0.02, max_action_step=0.1)).eval()
        policy.executor.set_limits(None)
    # Who asks again, as RTC does, gets the error again, and no actions without the height.
    assert policy.executor.waits_for_statistics
