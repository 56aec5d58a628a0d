"""How often the scripted expert lifts the cube.

python examples/so101/measure.py --episodes 40
"""

from __future__ import annotations

import argparse
import json

from record import play_all
from tqdm import tqdm

from lerobot_policy_vla0.tools.evaluation.statistics import wilson_interval


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--episodes", type=int, default=40, help="starts")
    add("--seed", type=int, default=0, help="of the first start")
    add("--noise", type=float, default=0.0, help="std of the disturbance of the joints' goals, degrees")
    add("--workers", type=int, default=2, help="processes")
    options = parser.parse_args(arguments)
    seeds = range(options.seed, options.seed + options.episodes)
    played = play_all(
        [(seed, None) for seed in seeds], image_size=None, noise=options.noise, workers=options.workers
    )
    results = list(tqdm(played, total=len(seeds), unit="episode"))
    lifted = [result.steps for result in results if result.success]
    report = {
        "lifted": len(lifted),
        "episodes": len(results),
        "wilson_95": [round(limit, 3) for limit in wilson_interval(len(lifted), len(results))],
        "mean_steps": round(sum(lifted) / len(lifted), 1) if lifted else None,
        "max_steps": max(lifted, default=None),
        "failed_seeds": sorted(result.seed for result in results if not result.success),
        "noise_degrees": options.noise,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
