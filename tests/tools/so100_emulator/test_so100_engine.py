"""An arm whose policy has no weights: LeRobot's real rollouts on an inference engine's answers, and without them."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from helpers.engine_server import serving
from helpers.so100_policy import HIGH, LOW, STEP, Rollout, save_policy
from helpers.waiting import wait_until

from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.errors import EngineError

pytestmark = pytest.mark.sim


@pytest.mark.parametrize("inference", ["sync", "rtc"])
def test_the_arm_moves_without_weights(tmp_path: Path, inference: str) -> None:
    folder = save_policy(tmp_path / "policy", restless=True, chunk_size=6, n_action_steps=6)
    weights = VLA0Policy.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    rollout = Rollout(tmp_path)
    with serving(weights) as (engine, address):
        rollout(folder, f"--policy.engine={address}", f"--inference.type={inference}", "--fps=3", goals=12)
    goals = np.array([goal.pose for goal in rollout.log.goals])
    assert (goals >= LOW - 1.01 * STEP).all() and (goals <= HIGH + 1.01 * STEP).all()
    assert np.ptp(goals, axis=0).max() > 10  # it moves
    assert f"engine: vLLM at {address} serves 'vla0'" in rollout.said
    continued = [body for body in engine.asked if body["messages"][-1]["role"] == "assistant"]
    assert bool(continued) == (inference == "rtc")


def test_a_server_that_fails_on_the_way_ends_the_motion(tmp_path: Path) -> None:
    """What the first answer said is executed, and nothing else."""
    folder = save_policy(tmp_path / "policy", restless=True, chunk_size=3, n_action_steps=3)
    rollout = Rollout(tmp_path)
    with serving(folder) as (engine, address):

        def fail() -> None:
            wait_until(lambda: len(engine.asked) >= 2)  # warm-up and the first chunk
            engine.fault = "words"

        failing = threading.Thread(target=fail)
        failing.start()
        with pytest.raises(EngineError, match="Nothing was sent to the robot"):
            rollout(folder, f"--policy.engine={address}", goals=1000)
        failing.join()
    assert 3 <= len(rollout.log.goals) <= 6
    assert len(rollout.log.goals) % 3 == 0
