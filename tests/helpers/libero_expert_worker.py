"""Play, record and replay LIBERO's scripted experts in a process of its own and write down what happened.

    PYTHONPATH=examples/libero python tests/helpers/libero_expert_worker.py OUTPUT

A process, because LIBERO reads HOME and LIBERO_CONFIG_PATH when it is imported. OUTPUT gets the data set `dataset`, the
pictures of the live environment (`live.npz`) and `notes.json`.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import recording
import workers
from episodes import Placed, run_expert
from simulation import make_env, policy_observation
from tasks import TASKS

from lerobot_policy_vla0.tools.recorder import read_result

KNOB, BOWL = "turn_on_the_stove", "put_the_bowl_on_the_plate"
SETTINGS: dict[str, Any] = {
    "tasks": [KNOB],
    "episodes": 2,
    "seed": 100_000,
    "image_size": 64,
    "noise": 0.0,
    "video": False,
}


def interrupted(jobs: list[workers.Job], _: int) -> Iterator[Any]:
    """Play the first job here, begin to write the second, and stop as if killed."""
    yield workers.play(jobs[0])
    jobs[1].path.with_name(jobs[1].path.name + ".1.tmp").write_bytes(b"half an episode")
    raise KeyboardInterrupt


def main(output: Path) -> None:
    """Do everything in turn; rendering is nearly all of the cost, so as few pictures as possible are drawn."""
    notes: dict[str, Any] = {}

    # 1. An expert that is disturbed, without pictures.
    env = make_env(TASKS[BOWL].suite, BOWL, None)
    notes["bowl"] = asdict(run_expert(env, BOWL, seed=7, noise=0.3).result)
    env.close()

    # 2. A recording of two episodes that is stopped after the first one, and goes on in a process of its own.
    root, staging = output / "dataset", output / "dataset.staging"
    play_all = recording.play_all
    recording.play_all = interrupted
    try:
        recording.record(SETTINGS, root, "local/knob", workers=1)
    except KeyboardInterrupt:
        notes["root_after_kill"] = root.exists()
    recording.play_all = play_all
    first = staging / KNOB / f"{SETTINGS['seed']}.npz"
    notes["staged_after_kill"] = sorted(path.name for path in staging.glob("*/*.npz"))
    notes["first"] = asdict(read_result(first, Placed))
    written, played = first.stat().st_mtime_ns, []

    def watched(jobs: list[workers.Job], count: int) -> Iterator[Any]:
        notes["first_untouched"] = first.stat().st_mtime_ns == written
        for result in play_all(jobs, count):
            played.append(asdict(result))
            yield result

    recording.play_all = watched
    recording.record(SETTINGS, root, "local/knob", workers=1)
    notes["played_after_kill"] = played
    notes["left"] = sorted(path.name for path in output.iterdir())
    recording.play_all = play_all
    recording.record(SETTINGS, root, "local/knob", workers=1)  # reused
    try:
        recording.record({**SETTINGS, "image_size": 32}, root, "local/knob", workers=1)
    except recording.RecordingError as error:
        notes["refusal"] = str(error)

    # 3. The first episode again in LeRobot's environment, which is still open: three pictures, then without cameras.
    actions = importlib.import_module("3_replay").episode_actions(root)[0]
    env = workers._open[1]
    observation, _ = env.reset(seed=SETTINGS["seed"])
    live = [policy_observation(observation)]
    raw = observation["pixels"]["image"]
    for step, action in enumerate(actions):
        observation, _, solved, _, info = env.step(action)
        if step < 2:
            live.append(policy_observation(observation))
        if step == 1:
            for camera in env.camera_name:
                env._env.env.modify_observable(camera, "enabled", False)
            env.camera_name = []
    notes["replay"] = {"solved": bool(solved and info["is_success"]), "steps": step + 1}
    np.savez(output / "live.npz", raw=raw, **{key: np.stack([row[key] for row in live]) for key in live[0]})
    (output / "notes.json").write_text(json.dumps(notes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
