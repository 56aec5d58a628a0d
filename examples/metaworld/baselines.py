"""Play two policies that see nothing on the seeds `lerobot-eval` uses, to know what a success rate is worth.

    python examples/metaworld/baselines.py --task button-press-topdown-v3 --seeds 200000 --episodes 20 \
        --root outputs/demo/button-press-topdown-v3/dataset --output baselines.json

*constant*: the mean action of the demonstrations, at every step. *blind replay*: the actions of one undisturbed
demonstration, then its last action until the step limit. On some Meta-World tasks blind replay solves
everything, and a policy's success there says nothing about vision. Nothing is rendered.

`lerobot-eval --seed=S --eval.n_episodes=N` resets its episode i with seed S + i, and an environment's start
depends on that seed alone (a test compares the two); so the rows of a report can be compared seed by seed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import rendering

rendering.set_rendering_defaults()

import experts  # noqa: E402
import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from lerobot_policy_vla0.tools.blind_baselines import play_blindly, write_baselines  # noqa: E402
from lerobot_policy_vla0.tools.demonstrations import SETTINGS_FILE  # noqa: E402


class BaselineError(Exception):
    """The baselines cannot be played; the message says what to change."""


def demonstrations(root: Path, task: str) -> dict[int, np.ndarray]:
    """Return the actions of every demonstration of `task`: episode index to float32 (T, 4) in [-1, 1].

    Raises:
        BaselineError: The dataset has no episode with the task's instruction; names those it has.
    """
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset(f"local/{root.name}", root=root)
    description = experts.RawEnv(task).task_description
    wanted = [row["episode_index"] for row in dataset.meta.episodes if row["tasks"] == [description]]
    if not wanted:
        raise BaselineError(
            f"{root} has no episode of {task} ({description!r}); its tasks: {', '.join(dataset.meta.tasks.index)}"
        )
    table = dataset.hf_dataset.with_format(None).select_columns(["action", "episode_index"])
    actions = np.asarray(table["action"], dtype=np.float32)  # (frames, 4)
    episodes = np.asarray(table["episode_index"])  # (frames,)
    return {int(index): actions[episodes == index] for index in wanted}


def check_unseen(root: Path, task: str, seeds: range) -> None:
    """Raise BaselineError if one of `seeds` was recorded as a demonstration of `task`."""
    file = root / SETTINGS_FILE
    if not file.is_file():
        return  # recorded elsewhere: its seeds are not known
    recorded = {seed for name, seed in json.loads(file.read_text())["episodes"] if name == task}
    seen = sorted(recorded & set(seeds))
    if seen:
        raise BaselineError(
            f"evaluation seeds {seeds.start} to {seeds.stop - 1} include {len(seen)} that were recorded as "
            f"demonstrations (the first is {seen[0]}). Choose --seeds outside {min(recorded)} to {max(recorded)}."
        )


def executed_actions(
    env: experts.RawEnv, root: Path, task: str, index: int, recorded: np.ndarray
) -> np.ndarray:
    """Return actions that solve the task when replayed from their own start: float32 (T, 4) in [-1, 1].

    A demonstration recorded with a disturbed arm (`record.py --noise`) holds what the expert asked for, not what
    moved the arm; replaying that would make the baseline look weaker than it is. The expert is then played again
    from the same start, undisturbed.
    """
    file = root / SETTINGS_FILE
    recording = json.loads(file.read_text()) if file.is_file() else {"settings": {"noise": 0.0}}
    if not recording["settings"]["noise"]:
        return recorded
    name, seed = recording["episodes"][index]
    assert name == task, (name, task)
    return experts.run_expert(env, seed, image_size=None).frames["action"]


def play(env: experts.RawEnv, seeds: range, actions: list[np.ndarray]) -> dict[str, Any]:
    """Play the same actions, float32 (4,) in [-1, 1], from every seed; see `play_blindly`."""

    def step(action: np.ndarray) -> bool:
        return bool(env.step(action)[4]["is_success"])

    return play_blindly(seeds, lambda seed: env.reset(seed=seed), step, actions, experts.MAX_EPISODE_STEPS)


def run(task: str, root: Path, seeds: range, n_replays: int, output: Path) -> None:
    """Play both baselines and write them.

    Args:
        task: Task name.
        root: Folder of the demonstrations.
        seeds: Evaluation seeds.
        n_replays: Number of demonstrations to replay, spread evenly over the dataset.
        output: JSON file.
    """
    check_unseen(root, task, seeds)
    episodes = demonstrations(root, task)
    mean = np.concatenate(list(episodes.values())).mean(axis=0)  # (4,)
    indices = list(episodes)
    chosen = [indices[round(i)] for i in np.linspace(0, len(indices) - 1, min(n_replays, len(indices)))]
    env = experts.RawEnv(task)
    constant = play(env, seeds, [mean])
    replays = []
    for index in tqdm(chosen, unit="replay", desc="baselines"):
        actions = executed_actions(env, root, task, index, episodes[index])
        replays.append(
            {"episode_index": index, "demonstration_steps": len(actions), **play(env, seeds, list(actions))}
        )
    about = {"dataset": str(root), "max_steps": experts.MAX_EPISODE_STEPS}
    write_baselines(output, task, seeds, mean, constant, replays, **about)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--task", required=True, type=experts.plain_task, help="task name, e.g. reach-v3")
    parser.add_argument("--root", type=Path, required=True, help="folder of the recorded dataset")
    parser.add_argument(
        "--seeds", type=int, required=True, help="first evaluation seed (lerobot-eval's --seed)"
    )
    parser.add_argument("--episodes", type=int, required=True, help="number of seeds (its --eval.n_episodes)")
    parser.add_argument("--replays", type=int, default=3, help="demonstrations to replay blindly")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(arguments)
    seeds = range(options.seeds, options.seeds + options.episodes)
    try:
        run(options.task, options.root, seeds, options.replays, options.output)
    except BaselineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
