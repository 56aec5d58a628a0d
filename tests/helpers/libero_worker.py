"""Run `lerobot-eval` on LIBERO in a process of its own and write down what the simulator and the policy saw.

    PYTHONPATH=tests python tests/helpers/libero_worker.py OUTPUT SUITE [SUITE ...]

A process, because LIBERO reads HOME and LIBERO_CONFIG_PATH when it is imported. What is watched is called unchanged,
but for two things that save most of the time of rendering without a GPU: while an episode runs, cameras take one
picture, when the scene has settled; and the first environment is kept for the evaluations that use it again.
Beside `lerobot-eval`'s own folders, OUTPUT gets `<name>.npz` and `<name>.json` per evaluation of a task.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import mujoco
import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.libero import LiberoEnv
from lerobot.scripts.lerobot_eval import main as lerobot_eval
from libero.libero.envs import OffScreenRenderEnv
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


#: Pictures per second of a camera at work, and of one that waits.
AT_WORK, WAITING = 20, 1e-9


@dataclass
class Seen:
    """What happened in a suite: resets, steps, and the policy's first observation."""

    resets: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    cameras: list[str] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


class Watch:
    """Watches LeRobot's environment and our policy in one `lerobot-eval`."""

    def __init__(self, pictures: bool) -> None:
        self.seen: dict[str, Seen] = defaultdict(Seen)  # by suite
        self._now = Seen()  # the suite being evaluated
        self._pictures = pictures  # whether cameras take a picture after the scene has settled
        self._waits = 0  # steps until it has
        self._given_state: np.ndarray | None = None

    def watching(self) -> contextlib.ExitStack:
        """Watch until the returned context ends."""
        reset, step, select = LiberoEnv.reset, LiberoEnv.step, VLA0Policy.select_action
        set_state, raw_step = ControlEnv.set_init_state, ControlEnv.step

        def watched_state(env: ControlEnv, state: np.ndarray) -> Any:
            self._given_state = np.asarray(state)
            result = set_state(env, state)
            _set_picture_rate(env, WAITING)
            return result

        def watched_raw_step(env: ControlEnv, action: Any) -> Any:
            self._waits -= 1
            if self._waits == 0 and self._pictures:
                _set_picture_rate(env, AT_WORK)
            result = raw_step(env, action)
            _set_picture_rate(env, WAITING)
            return result

        def watched_reset(env: LiberoEnv, *args: Any, **kwargs: Any) -> Any:
            self._now = self.seen[Path(env._task_bddl_file).parent.name]
            index, self._waits = env.init_state_id, env.num_steps_wait
            result = reset(env, *args, **kwargs)
            self._note_reset(env, index)
            return result

        def watched_step(env: LiberoEnv, action: np.ndarray) -> Any:
            before = _arm(env)
            result = step(env, action)
            after, controller = _arm(env), env._env.robots[0].controller
            turn = controller.goal_ori @ before["orientation"].T
            self._now.steps.append(
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
            if not self._now.cameras:
                self._now.cameras = policy.config.camera_keys
                for key in (*CAMERAS, "observation.state"):
                    self._now.arrays[key] = batch[key][0].numpy()
            return select(policy, batch)

        stack = contextlib.ExitStack()
        for place, name, function in (
            (ControlEnv, "set_init_state", watched_state),
            (ControlEnv, "step", watched_raw_step),
            (LiberoEnv, "reset", watched_reset),
            (LiberoEnv, "step", watched_step),
            (VLA0Policy, "select_action", watched_select),
        ):
            stack.enter_context(mock.patch.object(place, name, function))
        return stack

    def _note_reset(self, env: LiberoEnv, index: int) -> None:
        simulation = env._env.sim
        states = np.asarray(env._init_states)  # (50, 1 + nq + nv): time, positions, velocities
        given = (states == self._given_state).all(axis=1)  # which of the fixed states LIBERO was given
        names = {element.get("file") for element in env._env.env.model.root.iter() if element.get("file")}
        if self._pictures and not self._now.resets:
            self._now.arrays |= true_pictures(simulation)
        self._now.resets.append(
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


class KeptEnv(OffScreenRenderEnv):
    """The first environment, which stays for the next evaluations of its task."""

    kept: ClassVar[KeptEnv | None] = None
    task: ClassVar[str] = ""  # its file

    @classmethod
    def get(cls, *, bddl_file_name: str, hard_reset: bool, **arguments: Any) -> OffScreenRenderEnv:
        """Return the kept environment if it is of this task, else a new one."""
        given = {"bddl_file_name": bddl_file_name, "hard_reset": hard_reset, **arguments}
        if cls.kept is None:
            cls.kept, cls.task = cls(**given), bddl_file_name
        if bddl_file_name != cls.task:
            return OffScreenRenderEnv(**given)
        cls.kept.env.hard_reset = hard_reset
        cls.kept.sim._render_context_offscreen.gl_ctx.make_current()  # others were made since
        return cls.kept

    def close(self) -> None:
        """Do nothing."""


def _set_picture_rate(env: ControlEnv, hertz: float) -> None:
    for camera in CAMERAS.values():
        env.env.modify_observable(f"{camera}_image", "sampling_rate", hertz)


def true_pictures(simulation: Any) -> dict[str, np.ndarray]:
    """Return what MuJoCo draws of a simulation's state: camera to uint8 (256, 256, 3), upright.

    Only the textures and meshes on the graphics card are robosuite's: a second copy of them takes seconds.
    """
    model, data, place = simulation.model._model, simulation.data._data, mujoco.MjrRect(0, 0, 256, 256)
    context, scene = simulation._render_context_offscreen.con, mujoco.MjvScene(model, maxgeom=10_000)
    options, camera = mujoco.MjvOption(), mujoco.MjvCamera()
    options.geomgroup[0] = 0  # collision shapes
    camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
    pictures = {}
    for name in CAMERAS.values():
        camera.fixedcamid = model.camera(name).id
        mujoco.mjv_updateScene(model, data, options, None, camera, mujoco.mjtCatBit.mjCAT_ALL, scene)
        mujoco.mjr_render(place, scene, context)
        picture = np.empty((256, 256, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, place, context)
        pictures[name] = picture[::-1]  # OpenGL begins with the lowest row
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


def evaluate(names: dict[str, str], policy: Path, output: Path, *arguments: str, pictures: bool) -> None:
    """Run `lerobot-eval` once on the first task of suites, watched; ``names`` are those of the files for each suite."""
    watch, folder = Watch(pictures), output / "-".join(names.values())
    sys.argv = [
        "lerobot-eval",
        f"--policy.path={policy}",
        "--policy.device=cpu",
        "--env.type=libero",
        f"--env.task={','.join(names)}",
        "--env.task_ids=[0]",
        "--eval.batch_size=1",
        "--seed=1000",
        f"--output_dir={folder}",
        *PROTOCOL,
        *arguments,
    ]
    with watch.watching(), mock.patch("lerobot.envs.libero.OffScreenRenderEnv", KeptEnv.get):
        lerobot_eval()
    evaluated = json.loads((folder / "eval_info.json").read_text())["per_task"]
    for suite, name in names.items():
        seen = watch.seen[suite]
        np.savez(output / f"{name}.npz", **seen.arrays)
        tasks = [task for task in evaluated if task["task_group"] == suite]
        notes = {"resets": seen.resets, "steps": seen.steps, "cameras": seen.cameras, "tasks": tasks}
        (output / f"{name}.json").write_text(json.dumps(notes))


def main(output: Path, suites: list[str]) -> None:
    """Evaluate the protocol on every suite, and two commands that never change on the first."""
    protocol = write_policy(output / "policy", ACTION_MIN, ACTION_MAX)
    once, soft = "--eval.n_episodes=1", "--env.hard_reset=false"
    evaluate(
        {suite: suite for suite in suites},
        protocol,
        output,
        once,
        "--env.episode_length=2",
        soft,
        pictures=True,
    )
    for name, action, arguments in (
        ("forward_close", [0.8, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0], ["--eval.n_episodes=2", soft]),
        (
            "left_up_open",
            [0.0, 0.8, 0.4, 0.0, 0.0, 0.0, -1.0],
            [once],
        ),  # rebuilt at each reset, as LeRobot does
    ):
        fixed = write_policy(output / f"policy_{name}", action, action)
        evaluate({suites[0]: name}, fixed, output, "--env.episode_length=5", *arguments, pictures=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
