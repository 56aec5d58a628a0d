"""The arguments of ``vla0 serve``: a policy for many robots, or LeRobot's policy server for one."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.commands import shared
from lerobot_policy_vla0.tools.interruption import until_interrupted

_EXAMPLES = """\
for many robots: openpi's clients at ws://localhost:8000, vla-eval at ws://localhost:8000/vla-eval, LeRobot's robot
clients at localhost:8080; /health and /metrics at http://localhost:8000
  vla0 serve --policy.path=outputs/train/checkpoints/last/pretrained_model

for one robot, whose client (LeRobot's) says which policy to load
  vla0 serve
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of LeRobot's server, with its names and defaults, and those for many robots."""
    parser.epilog = _EXAMPLES
    shared.add_policy_options(parser, path_required=False)
    for name, kind, what in (
        ("host", str, "address to listen on (default localhost: this machine only)"),
        ("port", int, "TCP port of LeRobot's protocol (default 8080)"),
        ("fps", int, "control steps per second, for the time stamps of actions (default 30)"),
        ("inference_latency", float, "seconds a request for actions takes at least (default 1/30)"),
        ("obs_queue_timeout", float, "seconds to wait for an observation (default 2)"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS, help=what)
    add = parser.add_argument_group("with --policy.path").add_argument
    add(
        "--websocket-port",
        type=int,
        metavar="PORT",
        help="TCP port for openpi's and vla-eval's clients (8000)",
    )
    add("--max-batch", type=int, metavar="N", help="robots answered in one decode (16)")
    add("--max-robots", type=int, metavar="N", help="websockets at a time, and as many LeRobot clients (64)")
    add("--query-timeout", type=float, metavar="S", help="seconds a robot waits for an answer at most (10)")
    add(
        "--camera",
        action="append",
        type=shared.camera_pair,
        metavar="NAME=KEY",
        dest="cameras",
        help="the policy's image key of a camera that clients call NAME; repeat it",
    )
    add("--no-grpc", action="store_true", help="do not serve LeRobot's protocol, which needs pickle")


def run(arguments: argparse.Namespace) -> None:
    """Serve until interrupted."""
    given = {
        name: value
        for name, value in vars(arguments).items()
        if value is not None and value is not False and not name.startswith("policy.")
    }
    settings: dict[str, Any] = {
        name: given[name]
        for name in ("host", "port", "fps", "inference_latency", "obs_queue_timeout")
        if name in given
    }
    if arguments.policy_path is None:
        _serve_one(arguments, given, settings)
    else:
        _serve_many(arguments, given, settings)
    print("# ended")


def _serve_one(arguments: argparse.Namespace, given: dict[str, Any], settings: dict[str, Any]) -> None:
    needed = [
        name
        for name in ("websocket_port", "max_batch", "max_robots", "query_timeout", "cameras", "no_grpc")
        if name in given
    ]
    options = [f"--{name.replace('_', '-')}" for name in needed] + [
        "--policy." + option[2:] for option in shared.policy_overrides(arguments)
    ]
    if options:
        raise ConfigError(f"{' '.join(options)} needs --policy.path: without it a client names the policy.")
    # The import needs grpcio and creates a folder for LeRobot's logs, so only a server that runs imports it.
    from lerobot_policy_vla0.tools.serving.policy_server import make_settings, serve

    served = make_settings(**settings)
    _warn(served)
    with until_interrupted() as done:
        serve(served, done)


def _serve_many(arguments: argparse.Namespace, given: dict[str, Any], settings: dict[str, Any]) -> None:
    try:
        from lerobot_policy_vla0.tools.serving.fleet import FleetOptions, serve_fleet
        from lerobot_policy_vla0.tools.serving.websocket_server import Limits
    except ImportError as error:
        raise ConfigError(
            f"serving many robots needs an extra ({error}): pip install 'lerobot_policy_vla0[serve]'."
        ) from error
    grpc = None
    if not arguments.no_grpc:
        from lerobot_policy_vla0.tools.serving.policy_server import make_settings

        grpc = make_settings(**settings)
        _warn(grpc)
    renamed = {
        "websocket_port": "websocket_port",
        "max_batch": "max_batch",
        "query_timeout": "query_timeout_s",
    }
    options = FleetOptions(
        policy=arguments.policy_path,
        overrides=shared.policy_overrides(arguments),
        host=settings.get("host", "localhost"),
        cameras=dict(arguments.cameras or []),
        limits=Limits(robots=_at_least_one(given.get("max_robots", Limits.robots))),
        grpc=grpc,
        **{field: given[name] for name, field in renamed.items() if name in given},
    )
    with until_interrupted() as done:
        serve_fleet(options, done.is_set, lambda line: print(line, flush=True))


def _warn(settings: Any) -> None:
    from lerobot_policy_vla0.tools.serving.policy_server import exposure_warning

    warning = exposure_warning(settings.host, settings.port)
    if warning is not None:
        print(warning, file=sys.stderr, flush=True)


def _at_least_one(robots: int) -> int:
    if robots < 1:
        raise ConfigError(f"--max-robots={robots} must be at least 1.")
    return robots
