"""Play a few steps of LIBERO with the third-person camera where it belongs, and elsewhere; write down what is seen.

    python tests/helpers/libero_camera.py OUTPUT

A process, because LIBERO reads HOME and LIBERO_CONFIG_PATH when it is imported. One simulator plays everything, from
the same start state: `plain` and `moved` (1 cm) with the seed 3, `other` (1 cm) with 4, and `unmoved` without a seed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np


def main(output: Path) -> None:
    """Write OUTPUT: pictures and states of each episode, and where the camera was."""
    from lerobot.envs.configs import LiberoEnv

    from lerobot_policy_vla0.tools.evaluation.perturbation import camera_direction
    from lerobot_policy_vla0.tools.libero.camera import move_cameras

    config = LiberoEnv(
        task="libero_spatial", task_ids=[0], observation_height=64, observation_width=64, hard_reset=False
    )
    vector = config.create_envs(1)["libero_spatial"][0]
    libero = vector.envs[0]
    libero.num_steps_wait = 2  # enough here, and drawn with both cameras
    seen: dict[str, np.ndarray] = {}

    def play(name: str, env: Any, seed: int | None, steps: int) -> None:
        libero.init_state_id = 0
        observation, _ = env.reset(seed=seed)
        rewards = []
        for step in range(steps):
            state = observation["robot_state"]
            parts = (
                state["eef"]["pos"],
                state["eef"]["quat"],
                state["joints"]["pos"],
                state["joints"]["vel"],
            )
            seen[f"{name}_state{step}"] = np.concatenate(parts)
            seen.update({f"{name}_{key}{step}": picture for key, picture in observation["pixels"].items()})
            observation, reward, *_ = env.step(np.array([0.8, 0.2, -0.4, 0.1, 0, 0, 1], np.float32))
            rewards.append(reward)
        simulation = libero._env.sim
        camera = simulation.model.camera_name2id("agentview")
        seen[f"{name}_place"] = np.array(simulation.data.cam_xpos[camera])
        seen[f"{name}_turn"] = np.array(simulation.data.cam_xmat[camera])
        seen[f"{name}_physics"] = np.array(simulation.get_state().flatten())
        seen[f"{name}_bodies"] = np.array(simulation.model.body_pos)
        seen[f"{name}_names"] = np.array(simulation.model.body_names)
        seen[f"{name}_rewards"] = np.array(rewards)

    play("first", libero, 3, 0)  # a simulator's first episode differs in last digits
    play("plain", libero, 3, 2)
    moved = move_cameras(vector, 0.01, camera_direction).envs[0]
    play("moved", moved, 3, 2)
    play("other", moved, 4, 0)
    play("unmoved", moved, None, 0)
    np.savez(output, **seen)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
