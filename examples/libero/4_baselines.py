"""Step 4: play two policies that see nothing on the starts of `lerobot-eval`, to know what a success rate is worth.

    python examples/libero/4_baselines.py --task put_the_cream_cheese_in_the_bowl --root outputs/libero/cheese/dataset \
        --seed 1000 --episodes 50 --output outputs/libero/cheese/baselines.json

*constant*: the mean action of the demonstrations, until the benchmark's limit of steps. *blind replay*: the actions of
one undisturbed demonstration, then its last action for one second. Episode i starts from the benchmark's fixed state i
with seed S + i, as in `lerobot-eval --seed=S`. Nothing is rendered.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from episodes import run_expert
from simulation import make_env
from tasks import TASKS
from tqdm import tqdm

from lerobot_policy_vla0.tools.blind_baselines import play_blindly, write_baselines
from lerobot_policy_vla0.tools.recorder import episode_actions, recorded_episodes
from lerobot_policy_vla0.tools.workers import in_processes

AFTER = 20  # steps that a replay's last action is repeated: one second, for what still falls or slides


@dataclass(frozen=True)
class Blind:
    """One policy that sees nothing, and the episodes it plays.

    Attributes:
        task: LIBERO's name.
        demonstration: Seed of the demonstration to replay; None for the constant action.
        action: The constant action, (7,).
        seed: Of the first episode.
        episodes: Number of episodes.
    """

    task: str
    demonstration: int | None
    action: tuple[float, ...]
    seed: int
    episodes: int


def play(policy: Blind) -> dict[str, Any]:
    """Play one policy; returns success and steps of every episode."""
    suite = TASKS[policy.task].suite
    actions = [np.array(policy.action, np.float32)]
    if policy.demonstration is not None:
        # Played again without disturbance: what was recorded with --noise is not what moved the arm.
        placed = make_env(suite, policy.task, None)
        episode = run_expert(placed, policy.task, policy.demonstration)
        placed.close()
        actions = list(episode.frames["action"])
    env = make_env(suite, policy.task, None, fixed_starts=True)
    limit = env._max_episode_steps if policy.demonstration is None else len(actions) + AFTER

    def reset(seed: int) -> None:
        env.init_state_id = seed - policy.seed
        env.reset(seed=seed)

    seeds = range(policy.seed, policy.seed + policy.episodes)
    played = play_blindly(seeds, reset, lambda action: env.step(action)[2], actions, limit)
    env.close()
    return played


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--task", required=True, choices=TASKS, metavar="NAME", help="LIBERO's name of the task")
    add("--root", type=Path, required=True, help="folder of its demonstrations")
    add("--seed", type=int, default=1000, help="lerobot-eval's --seed")
    add("--episodes", type=int, default=50, help="its --eval.n_episodes")
    add("--replays", type=int, default=5, help="demonstrations to replay, from the first recorded on")
    add("--workers", type=int, default=2, help="processes")
    add("--output", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(arguments)
    recorded = recorded_episodes(options.root)
    mine = [(index, seed) for index, (name, seed) in enumerate(recorded) if name == options.task]
    if not mine:
        parser.error(f"{options.root} has no episode of {options.task}")
    chosen = mine[: options.replays]
    actions = episode_actions(options.root)
    mean = tuple(np.concatenate([actions[index] for index, _ in mine]).mean(axis=0).tolist())
    players = [None, *(seed for _, seed in chosen)]
    policies = [Blind(options.task, seed, mean, options.seed, options.episodes) for seed in players]
    played = in_processes(play, [(policy,) for policy in policies], options.workers)
    results = {players[number]: result for number, result in tqdm(played, total=len(policies), unit="policy")}
    replays = [{"episode_index": index, "seed": seed, **results[seed]} for index, seed in chosen]
    seeds = range(options.seed, options.seed + options.episodes)
    write_baselines(options.output, options.task, seeds, mean, results[None], replays)


if __name__ == "__main__":
    main()
