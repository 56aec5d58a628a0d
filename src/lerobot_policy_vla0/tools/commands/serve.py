"""The arguments of ``vla0 serve``, LeRobot's asynchronous policy server for LeRobot's robot client."""

from __future__ import annotations

import argparse
import sys

from lerobot_policy_vla0.tools.interruption import until_interrupted


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of LeRobot's server, with its names and defaults."""
    for name, kind, what in (
        ("host", str, "address to listen on (default localhost: this machine only)"),
        ("port", int, "TCP port (default 8080)"),
        ("fps", int, "control steps per second, for the time stamps of actions (default 30)"),
        ("inference_latency", float, "seconds a request for actions takes at least (default 1/30)"),
        ("obs_queue_timeout", float, "seconds to wait for an observation (default 2)"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS, help=what)


def run(arguments: argparse.Namespace) -> None:
    """Serve until interrupted."""
    # The import needs grpcio and creates a folder for LeRobot's logs, so only a server that runs imports it.
    from lerobot_policy_vla0.tools.serving.policy_server import exposure_warning, make_settings, serve

    settings = make_settings(**{key: value for key, value in vars(arguments).items() if key != "command"})
    warning = exposure_warning(settings.host, settings.port)
    if warning is not None:
        print(warning, file=sys.stderr, flush=True)
    with until_interrupted() as done:
        serve(settings, done)
    print("# ended")
