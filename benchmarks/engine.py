"""A policy through an inference server beside its own decoders: same answers? how fast, for 1, 4 and 16 robots at once?

    vla0 export CHECKPOINT --out served && vllm serve served --served-model-name vla0 ...
    python benchmarks/engine.py --policy CHECKPOINT --dataset ROOT --engine http://localhost:8000/v1 [--output FILE]

Asks the reference decoder and the engine about the same frames of recorded episodes, and compares the answers symbol by
symbol. A difference is a near-tie if the reference preferred its own symbol by less than 0.01 (log-probability). Then
times batches of robots in turns: a row of a batch is a request of its own to the engine. Prints a table and, last, one
line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hardware import hardware
from lerobot.datasets import LeRobotDataset

from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.tools.loading import load_config, load_with_processors

NEAR_TIE = 0.01
ROBOTS = (1, 4, 16)


def load(path: Path, *options: str) -> tuple[VLA0Policy, Any]:
    """Return a policy in float32 and its pre-processor."""
    config = load_config(path, ["--device=cpu", "--dtype=float32", *options])
    policy, preprocess, _ = load_with_processors(path, config)
    policy.reset()  # warms up, or connects
    return policy, preprocess


def batch_of(frames: list[dict[str, Any]], policy: VLA0Policy, preprocess: Any) -> dict[str, Any]:
    """Return frames of a data set as one batch."""
    keys = [key for key in (*policy.config.camera_keys, "observation.state") if key in frames[0]]
    observation = {key: torch.stack([frame[key] for frame in frames]) for key in keys}
    return dict(preprocess({**observation, "task": [frame["task"] for frame in frames]}))


def compare(own: VLA0Policy, other: VLA0Policy, batches: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how many answers are equal, and how close the first difference of the others was."""
    margins: list[float] = []
    probability = 0.0
    for batch in batches:
        own.predict_action_chunk(batch)
        other.predict_action_chunk(batch)
        expected, got = own.last_decode, other.last_decode
        assert expected is not None and got is not None
        ours, theirs = expected.traces[0], got.traces[0]
        if ours.symbols == theirs.symbols:
            gap = np.abs(expected.number_probability - got.number_probability)
            probability = max(probability, float(gap.max()))
            continue
        place = next(
            k for k, pair in enumerate(zip(ours.symbols, theirs.symbols, strict=False)) if pair[0] != pair[1]
        )
        scores = ours.scores[place]
        margins.append(
            float("inf")
            if scores is None
            else float(scores[ours.symbols[place]] - scores[theirs.symbols[place]])
        )
    return {
        "answers": len(batches),
        "equal": len(batches) - len(margins),
        "near_ties": sum(margin < NEAR_TIE for margin in margins),
        "margins": margins,
        "largest_probability_difference": probability,
    }


def throughput(
    policies: dict[str, tuple[VLA0Policy, Any]], frames: Any, repeats: int
) -> list[dict[str, Any]]:
    """Return chunks per second of batches, the policies in turns."""
    rows = []
    for robots in ROBOTS:
        times: dict[str, list[float]] = {name: [] for name in policies}
        for repeat in range(repeats + 1):
            chosen = [frames(repeat * robots + k) for k in range(robots)]
            for name, (policy, preprocess) in policies.items():
                batch = batch_of(chosen, policy, preprocess)
                began = time.perf_counter()
                policy.predict_action_chunk(batch)
                times[name].append(time.perf_counter() - began)
        seconds = {name: statistics.median(values[1:]) for name, values in times.items()}
        rows.append(
            {"robots": robots, "chunks_per_second": {name: robots / s for name, s in seconds.items()}}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", type=Path, required=True)
    parser.add_argument("--dataset", type=Path, required=True, help="folder of recorded demonstrations")
    parser.add_argument(
        "--engine", required=True, help="address of the server, which serves the policy's export"
    )
    parser.add_argument("--answers", type=int, default=100, help="to compare")
    parser.add_argument("--repeats", type=int, default=5, help="batches to time, per number of robots")
    parser.add_argument("--output", type=Path, help="write the JSON here too")
    arguments = parser.parse_args()

    data = LeRobotDataset("local/benchmark", root=arguments.dataset)
    order = np.random.default_rng(0).permutation(len(data))

    def frame(number: int) -> dict[str, Any]:
        chosen: dict[str, Any] = data[int(order[number % len(order)])]
        return chosen

    reference = load(arguments.policy, "--decoder=reference")
    engine = load(arguments.policy, f"--engine={arguments.engine}", "--engine_timeout_s=120")
    batches = [batch_of([frame(k)], *reference) for k in range(arguments.answers)]
    same = compare(reference[0], engine[0], batches)
    print(
        f"{same['equal']} of {same['answers']} answers equal, {same['near_ties']} of the others near-ties; "
        f"probabilities of numbers differ by {same['largest_probability_difference']:.1e} at most"
    )
    fast = load(arguments.policy)  # drafts are of other frames here: no help, as on an episode's first step
    policies = {"reference": reference, "own": fast, "engine": engine}
    rows = throughput(policies, frame, arguments.repeats)
    print("robots  " + "".join(f"{name:>12}" for name in policies) + "   chunks per second")
    for row in rows:
        print(
            f"{row['robots']:>6}  " + "".join(f"{row['chunks_per_second'][name]:>12.2f}" for name in policies)
        )
    result = {
        "benchmark": "engine",
        **hardware(),
        "engine": engine[0].last_decode.decoder,
        **same,
        "rows": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
