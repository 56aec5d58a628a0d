"""How steady LeRobot's control loop is with a policy in it: sync and RTC, on emulated SO-100 arms.

    python benchmarks/so100_control_loop.py [--policy CHECKPOINT] [--fps 30] [--seconds 20] [--output FILE]

Runs the real `lerobot-rollout` in a process of its own against an emulated arm and camera, and looks at the servo bus:
the times of the commands the arm gets. Without ``--policy``, the policy is a random one of 0.2 million parameters. The
floor is the schedule: a command every 1/fps seconds. Prints a table and, last, one line of JSON. The arm, its camera
and the policy share the machine's cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hardware import hardware
from lerobot.configs.types import FeatureType, PolicyFeature
from rollouts import run_rollout

from lerobot_policy_vla0 import TinyVLMConfig, VLA0Config, VLA0Policy, make_vla0_pre_post_processors
from lerobot_policy_vla0.tools.so100_emulator import JOINTS, BusLog, CameraSettings, SO100Emulator

CAMERA = CameraSettings("top", 160, 120, 30)


def random_policy(folder: Path, chunk_size: int) -> Path:
    """Write a policy of random weights for the emulated arm, with a range of 80 degrees (percent) per joint."""
    config = VLA0Config(
        vlm_model_name="tiny",
        tiny=TinyVLMConfig(
            hidden_size=64,
            num_layers=2,
            num_heads=2,
            num_kv_heads=2,
            intermediate_size=128,
            vision_hidden_size=64,
            vision_layers=1,
            vision_heads=2,
            vision_intermediate_size=128,
        ),
        device="cpu",
        dtype="float32",
        chunk_size=chunk_size,
        n_action_steps=chunk_size,
        n_bins=100,
        image_size=(56, 56),
        system_prompt="{N} integers 0-{B}",
        push_to_hub=False,
    )
    joints = len(JOINTS)
    config.input_features = {
        f"observation.images.{CAMERA.name}": PolicyFeature(
            FeatureType.VISUAL, (3, CAMERA.height, CAMERA.width)
        ),
        "observation.state": PolicyFeature(FeatureType.STATE, (joints,)),
    }
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (joints,))}
    torch.manual_seed(0)
    VLA0Policy(config).save_pretrained(folder)
    stats: dict[str, dict[str, Any]] = {
        "action": {"min": torch.full((joints,), 0.0), "max": torch.full((joints,), 80.0)}
    }
    for pipeline in make_vla0_pre_post_processors(config, stats):
        pipeline.save_pretrained(folder)
    return folder


def measure(
    folder: Path, policy: Path, inference: str, *, fps: int, seconds: float, warm_up: float, threshold: int
) -> dict[str, Any]:
    """Run one rollout and return what the bus saw after the warm-up."""
    with SO100Emulator(folder, cameras=[CAMERA]) as emulator, BusLog(emulator.followers[0]) as log:
        options = [f"--policy.device={'cuda' if torch.cuda.is_available() else 'cpu'}"]
        if inference == "rtc":
            options.append(f"--inference.queue_threshold={threshold}")
        try:
            run_rollout(
                emulator.robot_options(),
                policy,
                inference=inference,
                task="wave",
                fps=fps,
                seconds=seconds + warm_up,
                options=options,
            )
        except RuntimeError as error:
            raise SystemExit(f"not measured: {error}") from None
    intervals = sorted(1e3 * seconds for seconds in log.intervals(warm_up))
    if len(intervals) < fps:
        raise SystemExit(
            f"not measured: {len(intervals)} commands in {seconds} s; is a chunk computed before it is over?"
        )
    return {
        "commands": len(intervals),
        "hz": round(1e3 / statistics.mean(intervals), 2),
        "mean_ms": round(statistics.mean(intervals), 2),
        "sd_ms": round(statistics.stdev(intervals), 2),
        "p95_ms": round(intervals[int(0.95 * (len(intervals) - 1))], 2),
        "p99_ms": round(intervals[int(0.99 * (len(intervals) - 1))], 2),
        "max_ms": round(intervals[-1], 2),
        "idle_ticks": log.idle_ticks(fps, warm_up),
        "largest_change": round(max(max(change) for change in log.changes(warm_up)), 2),
    }


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--policy", type=Path, help="checkpoint trained on the emulated arm (default: a random one)"
    )
    parser.add_argument("--fps", type=int, default=30, help="control steps per second (default: 30)")
    parser.add_argument("--chunk-size", type=int, default=30, help="of the random policy (default: 30)")
    parser.add_argument(
        "--threshold",
        type=int,
        default=15,
        help="RTC: ask for a chunk when so many steps are left (default: 15)",
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="measured time per mode (default: 20)")
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds left out before (default: 3)")
    parser.add_argument("--output", type=Path, help="write the JSON line to this file too")
    arguments = parser.parse_args()
    results = {}
    load = round(os.getloadavg()[0], 1)  # of others, before this one begins
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        policy = arguments.policy or random_policy(folder / "policy", arguments.chunk_size)
        for inference in ("sync", "rtc"):
            results[inference] = measure(
                folder / inference,
                policy,
                inference,
                fps=arguments.fps,
                seconds=arguments.seconds,
                warm_up=arguments.warm_up,
                threshold=arguments.threshold,
            )
    print(f"load before: {load} on {os.cpu_count()} cores; with more load than cores the figures say little")
    print(f"floor: a command every {1e3 / arguments.fps:.2f} ms ({arguments.fps} Hz), standard deviation 0")
    names = list(results["sync"])
    print(f"{'':<16}" + "".join(f"{inference:>10}" for inference in results))
    for name in names:
        print(f"{name:<16}" + "".join(f"{row[name]:>10}" for row in results.values()))
    line = json.dumps(
        {
            "benchmark": "so100_control_loop",
            **hardware(),
            "policy": str(arguments.policy.name) if arguments.policy else "random 0.2 M",
            "load_before": load,
            "fps": arguments.fps,
            "chunk_size": arguments.chunk_size if not arguments.policy else None,
            "threshold": arguments.threshold,
            "seconds": arguments.seconds,
            **results,
        }
    )
    if arguments.output:
        arguments.output.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
