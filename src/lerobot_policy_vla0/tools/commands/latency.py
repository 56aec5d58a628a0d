"""The arguments of ``vla0 latency``: which chunk, control rate and mode a policy's decoding time allows."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.commands import shared
from lerobot_policy_vla0.tools.latency.budget import PLANNERS, Loop, QueryTime
from lerobot_policy_vla0.tools.latency.report import as_json, as_table, make_lines

_REPEATS = 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments. Those of LeRobot's commands have LeRobot's names."""
    parser.epilog = (
        "Without a dataset frames are made up: drafts fit them badly, and the time is an upper bound."
    )
    shared.add_policy_options(parser, path_required=False)
    shared.add_dataset_options(parser, required=False)
    add = parser.add_argument
    add("--fps", type=float, default=30.0, help="control steps per second (default 30)")
    refused = "fail if one of these is refused (default: if all are)"
    add("--mode", nargs="+", choices=tuple(PLANNERS), help=refused)
    add("--repeats", type=int, help=f"queries to time per figure (default {_REPEATS})")
    add("--latency-ms", type=float, help="plan for queries that take this long, without measuring")
    fixed = "with --latency-ms: of it, what does not grow with the chunk (default 0)"
    add("--fixed-ms", type=float, help=fixed)
    add("--chunk-size", type=int, help="with --latency-ms and no policy")
    add("--n-action-steps", type=int, help="with --chunk-size (default: the whole chunk)")
    for name, kind, whose in (
        ("inference.rtc.execution_horizon", int, "lerobot-rollout's"),
        ("inference.queue_threshold", int, "lerobot-rollout's"),
        ("chunk_size_threshold", float, "the robot client's"),
    ):
        short = name.rpartition(".")[2]
        default = getattr(Loop, short)
        add(f"--{name}", dest=short, type=kind, default=default, help=f"{whose} (default {default})")
    network = "async: an observation's way to the server and back (default 0)"
    add("--network-ms", type=float, default=0.0, help=network)
    add("--json", action="store_true", help="print one JSON object instead of the table")


def run(arguments: argparse.Namespace) -> None:
    """Measure the time or take the one given, print the plan, and refuse what would not move the robot.

    Raises:
        ConfigError: for arguments that contradict each other, or if the modes asked for are refused.
    """
    overrides = shared.policy_overrides(arguments)
    _check(arguments, overrides)
    measurement: Any = None
    if arguments.policy_path is not None:
        from lerobot_policy_vla0.tools.latency.probe import measure
        from lerobot_policy_vla0.tools.loading import load_config

        config = load_config(arguments.policy_path, overrides)
        chunk, steps = config.chunk_size, config.n_action_steps
        if arguments.latency_ms is None:
            repeats = _REPEATS if arguments.repeats is None else arguments.repeats
            recorded = arguments.repo_id is not None or arguments.root is not None
            dataset = shared.dataset_source(arguments).open() if recorded else None
            measurement = measure(arguments.policy_path, config, repeats=repeats, dataset=dataset)
    else:
        chunk = arguments.chunk_size
        steps = chunk if arguments.n_action_steps is None else arguments.n_action_steps
    loop = Loop(
        fps=arguments.fps,
        chunk_size=chunk,
        n_action_steps=steps,
        execution_horizon=arguments.execution_horizon,
        queue_threshold=arguments.queue_threshold,
        chunk_size_threshold=arguments.chunk_size_threshold,
        network_ms=arguments.network_ms,
    )
    if measurement is not None:
        time = measurement.query_time()
    else:
        fixed = arguments.fixed_ms or 0.0
        time = QueryTime(fixed_ms=fixed, per_step_ms=(arguments.latency_ms - fixed) / loop.chunk_size)
    lines = make_lines(time, loop)
    if arguments.json:
        print(json.dumps(as_json(time, loop, lines, measurement)))
    else:
        print(as_table(time, loop, lines, measurement))
    objections: dict[str, str | None] = {}
    for line in lines:  # sync as configured comes before sync with one step
        objections.setdefault(line.plan.mode, line.objection)
    refused = [text for mode in arguments.mode or objections if (text := objections[mode]) is not None]
    if refused and (arguments.mode or len(refused) == len(objections)):
        raise ConfigError(" | ".join(refused))


def _check(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Refuse arguments that would have no effect."""
    if arguments.policy_path is None and arguments.latency_ms is None:
        raise ConfigError("give --policy.path=CHECKPOINT to measure, or --latency-ms to plan without.")
    if arguments.policy_path is None and arguments.chunk_size is None:
        raise ConfigError(
            f"--latency-ms={arguments.latency_ms:g} says nothing without a chunk: add --chunk-size or --policy.path."
        )
    if arguments.latency_ms is not None and not 0 < arguments.latency_ms < math.inf:
        raise ConfigError(f"--latency-ms={arguments.latency_ms:g} must be finite and above 0.")
    if arguments.fixed_ms is not None and arguments.latency_ms is None:
        raise ConfigError(f"--fixed-ms={arguments.fixed_ms:g} has no effect without --latency-ms.")
    if arguments.fixed_ms is not None and not 0 <= arguments.fixed_ms <= arguments.latency_ms:
        raise ConfigError(
            f"--fixed-ms={arguments.fixed_ms:g} is a part of --latency-ms={arguments.latency_ms:g}: give a value "
            "from 0 to it."
        )
    for name in ("repeats", "repo_id", "root", "revision"):
        if arguments.latency_ms is not None and (value := getattr(arguments, name)) is not None:
            option = name if name == "repeats" else f"dataset.{name}"
            raise ConfigError(f"--{option}={value} has no effect with --latency-ms: nothing is measured.")
    if arguments.revision is not None and arguments.repo_id is None:
        raise ConfigError(f"--dataset.revision={arguments.revision} has no effect without --dataset.repo_id.")
    for name in ("chunk_size", "n_action_steps"):
        if arguments.policy_path is not None and getattr(arguments, name) is not None:
            raise ConfigError(
                f"--{name.replace('_', '-')}={getattr(arguments, name)} has no effect with --policy.path: the "
                "checkpoint says it. Change what can be changed with --policy.n_action_steps."
            )
    if arguments.policy_path is None and overrides:
        raise ConfigError(f"{' '.join('--policy.' + o[2:] for o in overrides)} needs --policy.path.")
