"""How often an arm that sees nothing lifts the cube, from the starts that a policy is evaluated on.

    python examples/so101/baselines.py --root outputs/so101/demo/dataset --output outputs/so101/demo/baselines.json

Two kinds: the mean action of the demonstrations at every step, and the goals of single demonstrations, played again
undisturbed from their own start and replayed here, the last one repeated for a second. Start i is that of seed S + i,
as in `lerobot-eval --seed=S`. No pictures are drawn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from episodes import TASK, run_expert
from record import FPS
from tqdm import tqdm

from lerobot_policy_vla0.tools.blind_baselines import play_blindly, write_baselines
from lerobot_policy_vla0.tools.recorder import episode_actions, recorded_episodes
from lerobot_policy_vla0.tools.so101.arm import SimulatedArm


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--root", type=Path, required=True, help="folder of the demonstrations")
    add("--replays", type=int, default=5, help="demonstrations to replay: the first ones")
    add("--seed", type=int, default=1000, help="of the first start, as given to lerobot-eval")
    add("--episodes", type=int, default=50, help="starts")
    add("--max-steps", type=int, default=150, help="of an episode, as --env.episode_length")
    add("--output", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(arguments)
    seeds = range(options.seed, options.seed + options.episodes)
    recorded = recorded_episodes(options.root)[: options.replays]
    mean = np.concatenate(episode_actions(options.root)).mean(axis=0)
    arm = SimulatedArm(image_size=None, fps=FPS)

    def step(goal: np.ndarray) -> bool:
        arm.send(goal)
        return bool(arm.info["success"])

    constant = play_blindly(seeds, arm.reset, step, [mean], options.max_steps)
    replays = []
    for index, (_, seed) in enumerate(tqdm(recorded, unit="replay")):
        actions = list(run_expert(arm, seed).frames["action"])
        limit = min(options.max_steps, len(actions) + FPS)
        played = play_blindly(seeds, arm.reset, step, actions, limit)
        replays.append({"episode_index": index, "seed": seed, **played})
    arm.close()
    write_baselines(options.output, TASK, seeds, mean, constant, replays)


if __name__ == "__main__":
    main()
