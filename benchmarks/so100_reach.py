"""Does a VLA learn to look? A small one is trained from scratch to bring an emulated SO-100's gripper to a ball.

    python benchmarks/so100_reach.py [--folder outputs/so100_reach] [--output FILE]

Demonstrations are written in simulated time, `lerobot-train` trains on them, and the policy is asked in closed loop
from start poses and ball positions that no demonstration had, beside baselines that see nothing. The ball's place is
in the picture only. A few of the episodes run again in real time: `lerobot-rollout` on the emulated servo bus. Prints
a table and, last, one line of JSON. What is done is kept in the folder and not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hardware import hardware
from reach import demonstrations, wire
from reach.controllers import Expert, PolicyController, Replay
from reach.episodes import Outcome, run
from reach.task import FPS, INSTRUCTION, STEPS, TOLERANCE, Case, draw_case, expert, make_scene

from lerobot_policy_vla0.tools.so100_emulator import JOINTS

HELD_OUT = 2_000_000  # seeds of cases from here on; demonstrations have those from 0
REPLAYS = 5  # demonstrations that are replayed blindly


def wilson(successes: int, n: int) -> list[float]:
    """Return the 95 % interval of a success rate (Wilson's score interval).

    >>> wilson(18, 20)
    [0.699, 0.972]
    """
    z, p = 1.96, successes / n
    middle = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [round((middle + sign * half) / (1 + z * z / n), 3) for sign in (-1, 1)]


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return what is reported of a number of episodes."""
    successes, n = sum(outcome.success for outcome in outcomes), len(outcomes)
    return {
        "success": successes,
        "episodes": n,
        "rate": round(successes / n, 3),
        "wilson_95": wilson(successes, n),
        "touched_in_passing_or_held": sum(outcome.touched for outcome in outcomes),
        "median_end_distance_cm": round(100 * statistics.median(o.distances[-1] for o in outcomes), 2),
    }


def train(folder: Path, steps: int) -> tuple[Path, float]:
    """Train, or go on training, and return the checkpoint and the seconds it took."""
    output, clock = folder / "train", folder / "train_seconds.json"
    last = output / "checkpoints" / "last" / "pretrained_model"
    before: list[float] = json.loads(clock.read_text()) if clock.exists() else []
    if last.is_dir() and int((output / "checkpoints" / "last").resolve().name) >= steps:
        return last, sum(before)
    command: list[str | Path] = [Path(sys.executable).with_name("lerobot-train")]
    if last.is_dir():
        command += [f"--config_path={last / 'train_config.json'}", "--resume=true"]
    else:
        command += [
            f"--config_path={Path(__file__).parent / 'reach' / 'train.yaml'}",
            f"--dataset.root={folder / 'dataset'}",
            f"--output_dir={output}",
            f"--steps={steps}",
            f"--save_freq={min(300, steps)}",
        ]
    began = time.monotonic()
    try:
        with (folder / "train.log").open("a") as log:
            subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)
    finally:
        clock.write_text(json.dumps([*before, round(time.monotonic() - began, 1)]))
    return train(folder, steps)


def first_actions(policy: PolicyController, cases: Sequence[Case]) -> dict[str, dict[str, float]]:
    """Return how the first motion the policy wants compares with the expert's, per joint that moves."""
    scenes = [make_scene(case.ball) for case in cases]
    pictures = np.stack(
        [
            scene.render(case.start, wire.CAMERA.width, wire.CAMERA.height)
            for scene, case in zip(scenes, cases, strict=True)
        ]
    )
    poses = np.array([case.start for case in cases])
    policy.reset()
    asked = policy(pictures, poses) - poses
    right = np.array([expert(case.ball) for case in cases]) - poses
    return {
        joint: {
            "correlation": round(float(np.corrcoef(asked[:, i], right[:, i])[0, 1]), 3),
            "mean_error_degrees": round(float(np.abs(asked - right)[:, i].mean()), 2),
        }
        for i, joint in enumerate(JOINTS[:4])
    }


def baselines(cases: Sequence[Case]) -> dict[str, list[Outcome]]:
    """Return how those fare that see nothing, and the demonstrator."""
    shown = [
        np.stack([frame["action"] for frame in demonstrations.demonstrate(seed)]) for seed in range(REPLAYS)
    ]
    replays = [run(cases, Replay(goals)) for goals in shown]
    mean = np.concatenate(shown).mean(axis=0, keepdims=True)
    return {
        "demonstrations, replayed blindly": [outcome for replay in replays for outcome in replay],
        "the best of these": max(replays, key=lambda outcomes: sum(o.success for o in outcomes)),
        "constant: the mean action": run(cases, Replay(mean)),
        "the expert, who knows where the ball is": run(cases, Expert(cases)),
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do what is left to do and return all figures."""
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"demonstrations": arguments.demonstrations, "train_steps": arguments.steps}
    kept = folder / "settings.json"
    if kept.exists() and json.loads(kept.read_text()) != settings:
        raise SystemExit(
            f"error: {folder} was begun with {json.loads(kept.read_text())}, not {settings}: choose another --folder"
        )
    kept.write_text(json.dumps(settings))

    print(f"1/4 {arguments.demonstrations} demonstrations", flush=True)
    frames = demonstrations.record(folder / "dataset", arguments.demonstrations, first_seed=0)
    print(
        f"2/4 {arguments.steps} steps of training on {frames} frames, log in {folder}/train.log", flush=True
    )
    checkpoint, seconds = train(folder, arguments.steps)

    cases = [draw_case(seed) for seed in range(HELD_OUT, HELD_OUT + arguments.cases)]
    print(f"3/4 {len(cases)} held-out cases in simulated time", flush=True)
    policy = PolicyController(checkpoint)
    probe = first_actions(policy, cases)
    policy.reset()
    rows = {"the policy": run(cases, policy)}
    policy.reset()
    # The pictures show the ball where the next case has it: a policy that looks goes there.
    elsewhere = [case.ball for case in [*cases[1:], cases[0]]]
    rows["the policy, shown a ball elsewhere"] = run(cases, policy, shown=elsewhere)
    rows |= baselines(cases)

    print(f"4/4 {arguments.wire} episodes in real time through lerobot-rollout", flush=True)
    real = [wire.rollout(checkpoint, case) for case in cases[: arguments.wire]]
    config = policy.policy.config
    return {
        "task": INSTRUCTION,
        **settings,
        "frames": frames,
        "train_seconds": round(seconds),
        "parameters": sum(p.numel() for p in policy.policy.parameters()),
        "chunk_size": config.chunk_size,
        "n_action_steps": config.n_action_steps,
        "episode_seconds": STEPS / FPS,
        "tolerance_cm": 100 * TOLERANCE,
        "first_held_out_seed": HELD_OUT,
        "first_motion": probe,
        "results": {name: summary(outcomes) for name, outcomes in rows.items()},
        "real_time": {
            "command": "lerobot-rollout --inference.type=sync",
            "success": sum(outcome.success for outcome in real),
            "episodes": len(real),
            "end_distance_cm": [round(100 * outcome.distance, 2) for outcome in real],
            "hertz": [round(outcome.hertz, 2) for outcome in real],
        },
    }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    print(f"\n{'who decides':<42}{'success':>10}{'95 %':>16}{'ever there':>12}{'end, median':>13}")
    for name, row in result["results"].items():
        low, high = row["wilson_95"]
        print(
            f"{name:<42}{row['success']:>4} of {row['episodes']:<3}{low:>9.2f} to {high:.2f}"
            f"{row['touched_in_passing_or_held']:>12}{row['median_end_distance_cm']:>10.1f} cm"
        )
    print(f"\n{'first motion, held out':<42}{'correlation':>12}{'mean error':>14}")
    for joint, row in result["first_motion"].items():
        print(f"{joint:<42}{row['correlation']:>12.3f}{row['mean_error_degrees']:>10.2f} deg")
    real = result["real_time"]
    print(f"\nin real time, {real['command']}: {real['success']} of {real['episodes']}")
    print(f"  end distances {real['end_distance_cm']} cm, control at {real['hertz']} Hz\n")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("outputs/so100_reach"), help="for data and policy"
    )
    parser.add_argument("--demonstrations", type=int, default=600)
    parser.add_argument("--steps", type=int, default=1800, help="of training, 32 samples each")
    parser.add_argument("--cases", type=int, default=50, help="held-out start poses and ball positions")
    parser.add_argument("--wire", type=int, default=10, help="of them also in real time, half a minute each")
    parser.add_argument("--output", type=Path, help="write the JSON line to this file too")
    parsed = parser.parse_args(arguments)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ.setdefault(name, "1")  # nothing is downloaded
    result = {"benchmark": "so100_reach", **hardware(), **measure(parsed)}
    show(result)
    line = json.dumps(result)
    if parsed.output:
        parsed.output.write_text(line + "\n")
    print(line)
    return result


if __name__ == "__main__":
    main()
