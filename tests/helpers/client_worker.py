"""Runs an unmodified client against a server; needs openpi-client and vla-eval, and nothing of this package.

    python client_worker.py openpi|vla-eval PORT FIRST_SEED STEPS

The last line is JSON: what the client was told first, then the actions it got.
"""

from __future__ import annotations

import asyncio
import json
import sys

import numpy as np

SIDE, ACTION_DIM = 40, 2


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def run_openpi(port, first, steps):
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    policy = WebsocketClientPolicy("127.0.0.1", port)
    answers = [policy.get_server_metadata()]
    for seed in range(first, first + steps):
        observation = {
            "observation/image": picture(seed),
            "observation/wrist_image": picture(seed + 1000),
            "observation/state": np.full(ACTION_DIM, 0.1),
            "prompt": f"push button {seed % 3}",
        }
        answers.append(policy.infer(observation)["actions"].tolist())
    return answers


def run_vla_eval(port, first, steps):
    from vla_eval.benchmarks.base import StepBenchmark, StepResult
    from vla_eval.connection import Connection
    from vla_eval.runners.sync_runner import SyncEpisodeRunner

    class Toy(StepBenchmark):
        """Shows made-up pictures, and is solved after some steps."""

        def __init__(self):
            super().__init__()
            self.actions = []

        def get_tasks(self):
            return [{"name": "push", "suite": "toy"}]

        def reset(self, task):
            return first

        def step(self, action):
            self.actions.append(np.asarray(action["actions"]).tolist())
            seed = first + len(self.actions)
            return StepResult(obs=seed, reward=0.0, done=len(self.actions) == steps, info={})

        def make_obs(self, seed, task):
            return {
                "images": {"agentview": picture(seed), "wrist": picture(seed + 1000)},
                "states": np.full(ACTION_DIM, 0.1),
                "task_description": f"push button {seed % 3}",
            }

        def get_step_result(self, result):
            return {"success": result.done}

    async def run():
        toy = Toy()
        async with Connection(f"ws://127.0.0.1:{port}/vla-eval") as connection:
            result = await SyncEpisodeRunner().run_episode(
                toy, toy.get_tasks()[0], connection, max_steps=steps + 5
            )
        return [{"success": result["metrics"]["success"], "steps": result["steps"]}, *toy.actions]

    return asyncio.run(run())


if __name__ == "__main__":
    _, kind, *numbers = sys.argv
    run = {"openpi": run_openpi, "vla-eval": run_vla_eval}[kind]
    print(json.dumps(run(*map(int, numbers))))
