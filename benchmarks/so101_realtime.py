"""Does a policy still lift the cube in real time? The same starts under `lerobot-rollout` and through `vla0 serve`.

    python benchmarks/so101_realtime.py --policy outputs/so101/demo/train/checkpoints/last/pretrained_model
    python benchmarks/so101_realtime.py --policy ... --query-ms 0 100 300   # and with the latency of slower machines

Modes are LeRobot's: ``sync`` stands still during a query, ``rtc`` and ``async`` go on with the chunk before; async asks
a server in a process of its own. Each start is a process: LeRobot's command drives the simulated arm at 30 Hz of the
machine's clock, with the latency that the policy has here, or the one asked for. The arm moves by one step of a 30th of
a second per command, so a command that comes late makes the arm slow, and is counted: idle ticks are 30ths of a second
without a command. Rendering takes time of the same cores. Prints a line per mode and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hardware import hardware
from robot_clients import policy_server, run_robot_client
from rollouts import run_rollout

from lerobot_policy_vla0.tools.evaluation.statistics import wilson_interval
from lerobot_policy_vla0.tools.so101.scene import ENV_ID, cameras

MODES = ("sync", "rtc", "async")
LOADING_S = 120.0  # that a policy and a robot may take for it
FPS = 30
TASK = "Pick up the red cube."
CALIBRATION = Path(__file__).resolve().parents[1] / "examples" / "so101" / "calibration"


def robot_options(seed: int, image_size: int, log: Path) -> list[str]:
    """Return the options of the simulated arm."""
    return [
        "--robot.discover_packages_path=lerobot_policy_vla0.tools.so101",
        "--robot.type=sim_so_follower",
        "--robot.id=simulated",
        f"--robot.calibration_dir={CALIBRATION}",
        f"--robot.env_id={ENV_ID}",
        f"--robot.env_kwargs={{image_size: {image_size}, fps: {FPS}, log: {log}}}",
        f"--robot.seed={seed}",
        f"--robot.cameras={json.dumps(cameras(image_size, FPS))}",
    ]


def steps_of(log: Path) -> list[dict[str, Any]]:
    """Return the steps of the last start in a log."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    starts = [index for index, line in enumerate(lines) if "reset" in line]
    return lines[starts[-1] + 1 :]


def summary(rollouts: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Return success and punctuality of the rollouts of one mode."""
    lifted = [any(step["success"] for step in steps) for steps in rollouts]
    gaps = sorted(1000 * (b["time"] - a["time"]) for steps in rollouts for a, b in pairwise(steps))
    first = [
        next(step["time"] for step in steps if step["success"]) - steps[0]["time"]
        for steps, success in zip(rollouts, lifted, strict=True)
        if success
    ]
    return {
        "lifted": sum(lifted),
        "starts": len(lifted),
        "wilson_95": [round(limit, 3) for limit in wilson_interval(sum(lifted), len(lifted))],
        "median_s_until_lifted": round(statistics.median(first), 2) if first else None,
        "commands": sum(len(steps) for steps in rollouts),
        # A policy that never keeps up sends nothing.
        "interval_ms": {
            f"p{p}": round(gaps[min(len(gaps) - 1, len(gaps) * p // 100)], 1) for p in (50, 95, 99) if gaps
        },
        "idle_ticks": sum(max(0, round(gap * FPS / 1000) - 1) for gap in gaps),
    }


def rollouts(mode: str, query_ms: float, options: argparse.Namespace) -> list[list[dict[str, Any]]]:
    """Return the steps of every start, in one mode and with one latency."""
    starts = []
    with ExitStack() as stack:
        # LeRobot's server has such an option of its own.
        port = stack.enter_context(policy_server(query_ms / 1000, FPS)) if mode == "async" else 0
        for seed in range(options.seed, options.seed + options.starts):
            log = Path(stack.enter_context(TemporaryDirectory())) / "steps.jsonl"
            robot = robot_options(seed, options.image_size, log)
            if mode == "async":
                run_robot_client(
                    robot,
                    options.policy,
                    port,
                    task=TASK,
                    fps=FPS,
                    actions_per_chunk=options.actions_per_chunk,
                    done=partial(lasted, log, options.seconds),
                    seconds=LOADING_S + options.seconds,
                )
            else:
                further = [f"--policy.min_query_ms={query_ms}", "--policy.device=cpu"]
                if mode == "rtc":
                    further.append(f"--inference.queue_threshold={options.queue_threshold}")
                run_rollout(
                    robot,
                    options.policy,
                    inference=mode,
                    task=TASK,
                    fps=FPS,
                    seconds=options.seconds,
                    options=further,
                )
            starts.append(steps_of(log))
    return starts


def lasted(log: Path, seconds: float) -> bool:
    """Tell whether the last start in a log began so long ago: by its first step."""
    if not log.exists():
        return False
    steps = steps_of(log)
    return bool(steps) and time.monotonic() - steps[0]["time"] > seconds


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--policy", type=Path, required=True, help="a checkpoint that was trained on the simulated arm")
    add("--starts", type=int, default=10)
    add("--seed", type=int, default=1000, help="of the first start")
    add("--seconds", type=float, default=6.0, help="of a rollout")
    add("--image-size", type=int, default=128, help="as trained with")
    add("--modes", nargs="+", choices=MODES, default=list(MODES))
    add(
        "--query-ms", nargs="+", type=float, default=[0.0], help="a query takes at least so long (default: 0)"
    )
    add("--actions-per-chunk", type=int, default=4, help="of async: the policy's chunk_size")
    add("--queue-threshold", type=int, default=2, help="of RTC: steps left when the next chunk is asked for")
    add("--output", type=Path, help="JSON file")
    options = parser.parse_args(arguments)
    modes: dict[str, dict[str, Any]] = {mode: {} for mode in options.modes}
    report = {
        "benchmark": "so101_realtime",
        **hardware(),
        "fps": FPS,
        "policy": str(options.policy),
        "modes": modes,
    }
    for mode in options.modes:
        for query_ms in options.query_ms:
            result = summary(rollouts(mode, query_ms, options))
            modes[mode][f"{query_ms:g} ms"] = result
            print(f"{mode}, a query of at least {query_ms:g} ms: {json.dumps(result)}", flush=True)
            if options.output:  # every result: an hour of rollouts may be interrupted
                options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
