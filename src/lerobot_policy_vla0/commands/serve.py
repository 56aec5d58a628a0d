"""``vla0 serve``: LeRobot's asynchronous policy server, for LeRobot's robot client. Arguments only."""

from __future__ import annotations

import argparse
import sys

from lerobot_policy_vla0.interruption import until_interrupted
from lerobot_policy_vla0.serving import exposure_warning, make_settings, serve


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``vla0 serve``: those of LeRobot's server, under its names and with its defaults."""
    settings = make_settings()
    for name, kind, what in (
        ("host", str, "address to listen on"),
        ("port", int, "TCP port"),
        ("fps", int, "control steps per second, for the time stamps of actions"),
        (
            "inference_latency",
            float,
            "a chunk is not sent sooner than this after it was asked for, in seconds",
        ),
        ("obs_queue_timeout", float, "how long to wait for an observation, in seconds"),
    ):
        default = getattr(settings, name)
        shown = round(default, 4) if isinstance(default, float) else default
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{what} (default {shown})")


def run(arguments: argparse.Namespace) -> None:
    """Serve until interrupted.

    Raises:
        ConfigError: for a setting out of range, or an address that cannot be listened on.
    """
    settings = make_settings(
        **{key: value for key, value in vars(arguments).items() if key != "command"},
    )
    warning = exposure_warning(settings.host, settings.port)
    if warning is not None:
        print(warning, file=sys.stderr, flush=True)
    with until_interrupted() as done:
        serve(settings, done)
    print("# ended")
