"""Run `lerobot-eval` on LIBERO in a process of its own and write down what the simulator and the policy saw.

    PYTHONPATH=tests python tests/helpers/libero_worker.py OUTPUT SUITE [SUITE ...]

A process, because LIBERO reads HOME and LIBERO_CONFIG_PATH when it is imported. What is watched is called unchanged.
Beside `lerobot-eval`'s own folders, OUTPUT gets `<name>.npz` and `<name>.json` per evaluation.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.libero import LiberoEnv
from lerobot.scripts.lerobot_eval import main as lerobot_eval
from libero.libero.envs.env_wrapper import ControlEnv

from helpers.tiny import make_config
from lerobot_policy_vla0 import VLA0Policy, make_vla0_pre_post_processors

CAMERAS = {
    "observation.images.image": "agentview",
    "observation.images.image2": "robot0_eye_in_hand",
}
#: Of the paper's LIBERO training set.
ACTION_MIN = [-0.9375, -0.9375, -0.9375, -0.258214, -0.375, -0.3675, -1.0]
ACTION_MAX = [0.9375, 0.9375, 0.9375, 0.355714, 0.375, 0.375, 1.0]
#: The simulation protocol, as docs/libero.md gives it on the command line.
PROTOCOL = [
    "--policy.n_action_steps=1",
    "--policy.ensemble_n_chunks=8",
    "--policy.binary_action_indices=[6]",
    "--env.observation_height=256",
    "--env.observation_width=256",
]


class Watch:
    """What happened in one evaluation: resets, steps, and the policy's first observation."""

    def __init__(self) -> None:
        self.resets: list[dict[str, Any]] = []
        self.steps: list[dict[str, Any]] = []
        self.snapshot: tuple[Any, Any] | None = None  # model and data after the first reset
        self.given_state: np.ndarray | None = None
        self.seen: dict[str, np.ndarray] = {}
        self.cameras: list[str] = []

    def install(self) -> None:
        """Watch LeRobot's environment and our policy."""
        reset, step, select = LiberoEnv.reset, LiberoEnv.step, VLA0Policy.select_action
        set_state = ControlEnv.set_init_state

        def watched_state(env: ControlEnv, state: np.ndarray) -> Any:
            self.given_state = np.asarray(state)
            return set_state(env, state)

        def watched_reset(env: LiberoEnv, *args: Any, **kwargs: Any) -> Any:
            index = env.init_state_id
            result = reset(env, *args, **kwargs)
            self._note_reset(env, index)
            return result

        def watched_step(env: LiberoEnv, action: np.ndarray) -> Any:
            before = _arm(env)
            result = step(env, action)
            after, controller = _arm(env), env._env.robots[0].controller
            turn = controller.goal_ori @ before["orientation"].T
            self.steps.append(
                {
                    "action": np.asarray(action).tolist(),
                    "goal_shift": (controller.goal_pos - before["position"]).tolist(),
                    "goal_turn": _axis_angle(turn),
                    "moved": (after["position"] - before["position"]).tolist(),
                    "fingers": after["fingers"],
                }
            )
            return result

        def watched_select(policy: VLA0Policy, batch: dict[str, Any]) -> Any:
            if not self.seen:
                self.cameras = policy.config.camera_keys
                self.seen = {key: batch[key][0].numpy() for key in (*CAMERAS, "observation.state")}
            return select(policy, batch)

        ControlEnv.set_init_state = watched_state
        LiberoEnv.reset, LiberoEnv.step = watched_reset, watched_step
        VLA0Policy.select_action = watched_select

    def _note_reset(self, env: LiberoEnv, index: int) -> None:
        simulation = env._env.sim
        states = np.asarray(env._init_states)  # (50, 1 + nq + nv): time, positions, velocities
        given = (states == self.given_state).all(axis=1)  # which of the fixed states LIBERO was given
        names = {element.get("file") for element in env._env.env.model.root.iter() if element.get("file")}
        self.resets.append(
            {
                "init_state": index,
                "task": env.task_description,
                "bddl": env._task_bddl_file,
                "max_steps": env._max_episode_steps,
                "settled_seconds": float(simulation.data.time - states[index, 0]),
                "n_states": len(states),
                "given_states": np.flatnonzero(given).tolist(),
                "files": sorted(os.path.normpath(name) for name in names),
                "position": _arm(env)["position"].tolist(),
            }
        )
        if self.snapshot is None:
            self.snapshot = (simulation.model._model, copy.copy(simulation.data._data))

    def true_pictures(self) -> dict[str, np.ndarray]:
        """Return what MuJoCo's own renderer draws of the first observation: camera to uint8 (256, 256, 3), upright."""
        assert self.snapshot is not None
        model, data = self.snapshot
        options = mujoco.MjvOption()
        options.geomgroup[0] = 0  # collision shapes
        pictures = {}
        for camera in CAMERAS.values():
            with mujoco.Renderer(model, 256, 256) as renderer:
                renderer.update_scene(data, camera=camera, scene_option=options)
                pictures[camera] = renderer.render()
        return pictures


def _arm(env: LiberoEnv) -> dict[str, Any]:
    """Return the hand's position (metres) and orientation (3, 3), and both fingers' joints (metres)."""
    raw = env._env.env
    robot, data = raw.robots[0], raw.sim.data
    fingers = [float(data.get_joint_qpos(joint)) for joint in robot.gripper.joints]
    return {
        "position": np.array(data.site_xpos[robot.eef_site_id]),
        "orientation": np.array(data.site_xmat[robot.eef_site_id]).reshape(3, 3),
        "fingers": fingers,
    }


def _axis_angle(rotation: np.ndarray) -> list[float]:
    """Return a rotation matrix as axis times angle, radians."""
    quaternion, result = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(rotation).ravel())
    mujoco.mju_quat2Vel(result, quaternion, 1.0)
    return result.tolist()


def write_policy(folder: Path, low: list[float], high: list[float]) -> Path:
    """Write a random policy of LIBERO's shape whose actions lie in ``[low, high]``; equal ends fix a dimension.

    Statistics of which every dimension is fixed are refused, so 1e-7 is added to the first one's high end.
    """
    if low == high:
        high = [high[0] + 1e-7, *high[1:]]
    config = make_config(
        action_dim=7,
        cameras=tuple(CAMERAS),
        image=256,
        chunk_size=8,
        n_action_steps=8,
        n_bins=1000,
        image_size=(112, 112),
    )
    config.input_features["observation.state"] = PolicyFeature(FeatureType.STATE, (8,))
    stats = {
        "action": {"min": torch.tensor(low), "max": torch.tensor(high)},
        "observation.state": {"min": torch.full((8,), -1.0), "max": torch.ones(8)},
    }
    VLA0Policy(config).save_pretrained(folder)
    for processor in make_vla0_pre_post_processors(config, stats):
        processor.save_pretrained(folder)
    return folder


def evaluate(name: str, suite: str, policy: Path, output: Path, arguments: list[str]) -> None:
    """Run `lerobot-eval` on the suite's first task, watched."""
    watch = Watch()
    set_state = ControlEnv.set_init_state
    originals = LiberoEnv.reset, LiberoEnv.step, VLA0Policy.select_action
    watch.install()
    sys.argv = [
        "lerobot-eval",
        f"--policy.path={policy}",
        "--policy.device=cpu",
        "--env.type=libero",
        f"--env.task={suite}",
        "--env.task_ids=[0]",
        "--eval.batch_size=1",
        "--seed=1000",
        f"--output_dir={output / name}",
        *PROTOCOL,
        *arguments,
    ]
    try:
        lerobot_eval()
    finally:
        ControlEnv.set_init_state = set_state
        LiberoEnv.reset, LiberoEnv.step, VLA0Policy.select_action = originals
    arrays = {**watch.seen, **watch.true_pictures()}
    np.savez(output / f"{name}.npz", **arrays)
    notes = {"resets": watch.resets, "steps": watch.steps, "cameras": watch.cameras}
    (output / f"{name}.json").write_text(json.dumps(notes))


def main(output: Path, suites: list[str]) -> None:
    """Evaluate the protocol on every suite, and two commands that never change on the first."""
    protocol = write_policy(output / "policy", ACTION_MIN, ACTION_MAX)
    for index, suite in enumerate(suites):
        # Two episodes on the first: two initial states.
        episodes = [f"--eval.n_episodes={2 - min(index, 1)}", "--env.episode_length=2"]
        evaluate(suite, suite, protocol, output, episodes)
    short = ["--eval.n_episodes=1", "--env.episode_length=5", "--env.hard_reset=false"]
    for name, action in {
        "forward_close": [0.8, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
        "left_up_open": [0.0, 0.8, 0.4, 0.0, 0.0, 0.0, -1.0],
    }.items():
        fixed = write_policy(output / f"policy_{name}", action, action)
        evaluate(name, suites[0], fixed, output, short)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
