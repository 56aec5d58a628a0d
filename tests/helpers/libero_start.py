"""Write down where everything is after the first reset of a LIBERO task, without drawing anything.

    PYTHONPATH=examples/libero python tests/helpers/libero_start.py OUTPUT SUITE TASK

A process, because LIBERO reads HOME and LIBERO_CONFIG_PATH when it is imported. OUTPUT gets the place (3,) of every
object and fixture by its name in the task file, and under `free_joints` those the start state holds, in its order.
"""

from __future__ import annotations

import sys

import numpy as np
from libero.libero import benchmark
from simulation import BlindLiberoEnv, Scene


def main(output: str, suite: str, task: str) -> None:
    """Reset once and write OUTPUT."""
    tasks = benchmark.get_benchmark_dict()[suite]()
    env = BlindLiberoEnv(tasks, tasks.get_task_names().index(task), suite, obs_type="pixels_agent_pos")
    env.reset(seed=0)
    world, scene = env._env.env, Scene(env)
    model = world.sim.model
    free = [model.joint_id2name(joint) for joint in np.flatnonzero(model.jnt_type == 0)]
    places = {name: scene.position(name) for name in world.obj_body_id}
    np.savez(output, free_joints=[name.removesuffix("_joint0") for name in free], **places)


if __name__ == "__main__":
    main(*sys.argv[1:])
