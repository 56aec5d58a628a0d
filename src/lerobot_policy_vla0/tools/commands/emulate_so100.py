"""The arguments of ``vla0 emulate-so100``, which emulates SO-100 arms and a camera for LeRobot's commands.

Lines typed while it runs switch faults on and off and move the ball: see `tools.so100_emulator.console`.
"""

from __future__ import annotations

import argparse
import logging
import os
import select
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.interruption import until_interrupted
from lerobot_policy_vla0.tools.so100_emulator.camera import CameraSettings
from lerobot_policy_vla0.tools.so100_emulator.console import HELP, obey
from lerobot_policy_vla0.tools.so100_emulator.emulator import SO100Emulator, options_file
from lerobot_policy_vla0.tools.so100_emulator.scene import Scene


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    folder = "for ports and calibration (default outputs/so100)"
    add("--folder", type=Path, default=Path("outputs/so100"), help=folder)
    followers = "(default: follower); X_left and X_right are LeRobot's bi_so_follower X too"
    add("--followers", nargs="*", default=["follower"], metavar="NAME", help=followers)
    add("--leaders", nargs="*", default=["leader"], metavar="NAME", help="(default: leader)")
    body = "what moves the first follower: the servos' law of motion (default), or an SO-101 with physics and a cube"
    add("--body", choices=("kinematic", "mujoco"), default="kinematic", help=body)
    add("--seed", type=int, default=0, help="where the cube lies (with --body mujoco)")
    add(
        "--model",
        choices=("so100", "so101"),
        help="LeRobot's name of the arms (default so100; so101 with physics)",
    )
    cameras = "names of the cameras (default top; with physics wrist and side, which are the names there are)"
    add("--camera", nargs="+", metavar="NAME", help=cameras)
    add("--no-camera", action="store_true", help="arms only; needs no pyzmq")
    add("--size", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"))
    add("--fps", type=int, default=30, help="pictures per second (default 30)")
    add("--camera-port", type=int, default=0, help="TCP port on the loopback (default: a free one)")
    add("--ball", type=float, nargs=2, default=(0.24, 0.08), metavar=("X", "Y"), help="metres")
    file = "keep the first arms' options in this file as bash arrays ROBOT and TELEOP, for scripts to source"
    add("--options", type=Path, metavar="FILE", help=file)


def run(arguments: argparse.Namespace) -> None:
    """Start the arms, print LeRobot's options, and serve until interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    width, height = arguments.size
    body = None
    if arguments.body == "mujoco":
        from lerobot_policy_vla0.tools.so101.body import PhysicalArm  # needs so101-nexus

        body = PhysicalArm(arguments.seed)
    names = arguments.camera or (["top"] if body is None else list(body.views))
    first = arguments.camera_port
    # The first camera is on the port asked for, the others on the next ones; or each on a free one.
    ports = range(first, first + len(names)) if first else [0] * len(names)
    cameras = [
        CameraSettings(name, width, height, arguments.fps, port)
        for name, port in zip(names, ports, strict=True)
    ]
    with (
        until_interrupted() as done,
        SO100Emulator(
            arguments.folder,
            followers=arguments.followers,
            leaders=arguments.leaders,
            cameras=() if arguments.no_camera else cameras,
            scene=Scene(ball=tuple(arguments.ball)),
            body=body,
            model=arguments.model or ("so100" if body is None else "so101"),
        ) as emulator,
        options_file(emulator, arguments.options) if arguments.options else nullcontext(),
    ):
        for name in (*arguments.followers, *emulator.pairs):
            print(f"# {name}: for lerobot-record, -replay, -rollout")
            print(" \\\n  ".join(shlex.quote(option) for option in emulator.robot_options(name)))
        for name in arguments.leaders:
            print(f"# {name}: for lerobot-record, -teleoperate")
            print(" \\\n  ".join(shlex.quote(option) for option in emulator.teleop_options(name)))
        print(f"# Ctrl-C ends this. {HELP}", flush=True)
        for line in _typed_lines(done):
            try:
                obey(emulator, line)
            except ConfigError as error:
                print(error, file=sys.stderr, flush=True)
    print("# ended")


def _typed_lines(done: threading.Event) -> Iterator[str]:
    """Yield lines from the standard input until `done` is set, also after the input has ended."""
    # A thread that is blocked in a read can abort the interpreter when it ends, so this one polls.
    typed, descriptor = b"", sys.stdin.fileno()
    while not done.is_set():
        if not select.select([descriptor], [], [], 0.2)[0]:
            continue
        data = os.read(descriptor, 4096)
        if not data:
            while not done.wait(0.2):  # a wait without a limit would not notice the signal
                pass
        *lines, typed = (typed + data).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)
