"""The ablations' Meta-World: LeRobot's starts, physics and pixels, with fewer steps and no frame drawn twice."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from helpers.paths import REPO
from helpers.tiny import make_config, make_stats
from lerobot.scripts import lerobot_eval

from lerobot_policy_vla0 import VLA0Policy, make_vla0_pre_post_processors

pytestmark = pytest.mark.sim

TASK = "button-press-topdown-v3"


@pytest.fixture
def short_env(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, as ``--env.discover_packages_path`` imports it in the repository's root."""
    monkeypatch.syspath_prepend(str(REPO))
    import examples.metaworld.short_env as module

    return module


def played(env: Any) -> list[np.ndarray]:
    """Return what can be seen of a start and three steps, observations and video frames."""
    seen = []
    observation, _ = env.reset(seed=300_000)
    for step in range(4):
        seen += [observation["pixels"], observation["agent_pos"], env.render()]
        observation, reward, *_ = env.step(np.array([0.3, -0.2, 0.5, 1.0], np.float32) * step)
        seen.append(np.array(reward))
    env.close()
    return seen


def test_it_shows_and_does_what_lerobots_does(short_env: Any) -> None:
    from lerobot.envs.metaworld import MetaworldEnv

    # One after the other: gymnasium draws in the context made last.
    theirs = played(MetaworldEnv(TASK, obs_type="pixels_agent_pos"))
    ours = played(short_env.ShortMetaworldEnv(TASK, max_steps=4))
    assert len(ours) == 16 and np.ptp(ours[0]) > 0
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("steps", [0, 501])
def test_a_limit_that_is_none_is_refused(short_env: Any, steps: int) -> None:
    with pytest.raises(ValueError, match=f"--env.max_steps={steps} is outside 1 to 500"):
        short_env.ShortMetaworldEnv(TASK, max_steps=steps)


def test_lerobots_options_reach_the_environment(short_env: Any) -> None:
    envs = short_env.ShortMetaworldConfig(task=TASK, obs_type="pixels", max_steps=7).create_envs(1)
    env = envs[TASK][0]
    assert set(env.single_observation_space.spaces) == {"pixels"}
    assert env.call("_max_episode_steps") == (7,)
    env.close()


def test_lerobot_eval_ends_an_episode_at_the_limit(
    short_env: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 3
    torch.manual_seed(0)
    config = make_config(action_dim=4, cameras=("observation.image",), image=480, n_action_steps=1)
    VLA0Policy(config).save_pretrained(tmp_path / "policy")
    for processor in make_vla0_pre_post_processors(config, make_stats(4, low=-1.0, high=1.0)):
        processor.save_pretrained(tmp_path / "policy")
    arguments = {
        "policy.path": tmp_path / "policy",
        "policy.device": "cpu",
        "env.discover_packages_path": "examples.metaworld.short_env",
        "env.type": "metaworld_short",
        "env.task": f"metaworld-{TASK}",
        "env.max_steps": steps,
        "eval.n_episodes": 1,
        "eval.batch_size": 1,
        "output_dir": tmp_path / "out",
    }
    monkeypatch.setattr(
        sys, "argv", ["lerobot-eval", *(f"--{name}={value}" for name, value in arguments.items())]
    )
    lerobot_eval.main()
    task = json.loads((tmp_path / "out" / "eval_info.json").read_text())["per_task"][0]
    assert task["task_group"] == TASK
    assert task["metrics"]["successes"] == [False]
    video = cv2.VideoCapture(task["metrics"]["video_paths"][0])
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == steps
