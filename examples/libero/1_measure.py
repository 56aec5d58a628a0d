"""Step 1: how often the scripted experts succeed, from random placements, without rendering.

    python examples/libero/1_measure.py --episodes 20 --workers 2 --output outputs/libero/experts.json

Success is LIBERO's own predicate. `--task` (may be repeated) measures some tasks only; `--noise` disturbs the hand.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from episodes import Placed
from tasks import TASKS
from tqdm import tqdm
from workers import Job, play_all

from lerobot_policy_vla0.tools.evaluation.statistics import wilson_interval


def summary(results: list[Placed]) -> dict[str, object]:
    """Return the success rate of one task with its 95 % Wilson interval, and the lengths of its episodes."""
    placed = [result for result in results if not result.thrown]
    solved = [result.steps for result in results if result.success]
    return {
        "suite": TASKS[results[0].task].suite,
        "solved": len(solved),
        "episodes": len(placed),
        "wilson_95": [round(limit, 3) for limit in wilson_interval(len(solved), len(placed))],
        "mean_steps": round(float(np.mean(solved)), 1) if solved else None,
        "max_steps": max(solved, default=None),
        "failed_seeds": sorted(result.seed for result in placed if not result.success),
        "thrown_seeds": sorted(result.seed for result in results if result.thrown),
        "nearest_fixed_start_mm": round(1000 * min(result.start_distance for result in placed), 2),
    }


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--task", action="append", choices=TASKS, metavar="NAME", help="LIBERO's name; all by default"
    )
    parser.add_argument("--episodes", type=int, default=20, help="placements per task")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first placement")
    parser.add_argument("--noise", type=float, default=0.0, help="std of the disturbance, action units")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--output", type=Path, help="JSON file for the table")
    options = parser.parse_args()
    tasks = options.task or list(TASKS)
    seeds = range(options.seed, options.seed + options.episodes)
    began = time.perf_counter()
    jobs = [Job(task, seed, noise=options.noise) for task in tasks for seed in seeds]
    results = list(tqdm(play_all(jobs, options.workers), total=len(jobs), unit="episode"))
    table = {task: summary([result for result in results if result.task == task]) for task in tasks}
    for task, row in table.items():
        low, high = (round(100 * limit) for limit in row["wilson_95"])
        print(
            f"{row['solved']:>3} of {row['episodes']} ({low} to {high} %)  {row['mean_steps']} steps  {task}"
        )
    report = {
        "noise": options.noise,
        "first_seed": options.seed,
        "seconds": round(time.perf_counter() - began),
        "tasks": table,
    }
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({"episodes": len(jobs), "solved": sum(result.success for result in results)}))


if __name__ == "__main__":
    main()
