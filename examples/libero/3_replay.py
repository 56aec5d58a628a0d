"""Step 3: play recorded actions in LeRobot's environment, from the placements they were recorded on.

    python examples/libero/3_replay.py --root outputs/libero/stove --episodes 3

It shows that the data set alone holds what solves the task. Only recordings without `--noise` can be replayed: with it,
the data set has the expert's actions and not the disturbed ones that were executed. `--from-next` plays each episode's
actions on the placements of the NEXT one instead: a blind baseline that a policy has to beat.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from simulation import make_env
from tasks import TASKS

from lerobot_policy_vla0.tools.blind_baselines import play_blindly
from lerobot_policy_vla0.tools.recorder import episode_actions, recorded_episodes


def replay(task: str, seed: int, actions: np.ndarray, image_size: int | None = None) -> bool:
    """Return whether the actions solve the task from the placements of `seed`."""
    env = make_env(TASKS[task].suite, task, image_size)
    played = play_blindly(
        [seed],
        lambda seed: env.reset(seed=seed),
        lambda action: env.step(action)[2],
        list(actions),
        len(actions),
    )
    env.close()
    return bool(played["n_success"])


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--episodes", type=int, help="how many; all by default")
    parser.add_argument("--from-next", action="store_true", help="on the placements of the next episode")
    options = parser.parse_args()
    keys = recorded_episodes(options.root)
    actions = episode_actions(options.root)
    solved = []
    for index, (task, seed) in enumerate(keys[: options.episodes]):
        if options.from_next:
            same = [key for key in keys if key[0] == task]
            seed = same[(same.index((task, seed)) + 1) % len(same)][1]
        solved.append(replay(task, seed, actions[index]))
        print(
            f"{'solved' if solved[-1] else 'failed'}  {task}, actions of episode {index}, placements of seed {seed}"
        )
    print(json.dumps({"episodes": len(solved), "solved": sum(solved)}))


if __name__ == "__main__":
    main()
