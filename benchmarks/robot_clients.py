"""`vla0 serve` and LeRobot's own robot client on an arm that exists in software, for benchmarks."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

START = 180.0  # seconds that a server has for starting

#: LeRobot's module as it is run, and the arm, whose package LeRobot's client has no option to find.
CLIENT = """import runpy, lerobot_policy_vla0.tools.so101
runpy.run_module("lerobot.async_inference.robot_client", run_name="__main__")"""


@contextmanager
def policy_server(latency_s: float, fps: int) -> Iterator[int]:
    """Run LeRobot's policy server, whose answers take at least ``latency_s``; yields its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with TemporaryFile("w+") as log:
        server = subprocess.Popen(
            [
                Path(sys.executable).with_name("vla0"),
                "serve",
                "--host=127.0.0.1",
                f"--port={port}",
                f"--fps={fps}",
                f"--inference_latency={latency_s}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait(lambda: _listens(port), server, log, START)
            yield port
        finally:
            server.kill()
            server.wait()


def run_robot_client(
    robot: Sequence[str],
    policy: Path,
    port: int,
    *,
    task: str,
    fps: int,
    actions_per_chunk: int,
    done: Callable[[], bool],
    seconds: float,
) -> None:
    """Let a server's policy drive an arm until ``done``, then kill the client: it has no option for how long.

    Args:
        robot: the options ``--robot...`` of the arm and its cameras.
        policy: a checkpoint, which the server loads on its CPU.
        port: of the server on this machine.
        task: the instruction.
        fps: of the control loop.
        actions_per_chunk: that the client asks for.
        done: asked ten times a second.
        seconds: how long it may take, loading included.

    Raises:
        RuntimeError: if the client ends before, or time is up; the message ends with what it said.
    """
    with TemporaryFile("w+") as log:
        client = subprocess.Popen(
            [
                sys.executable,
                "-c",
                CLIENT,
                *(option for option in robot if not option.startswith("--robot.discover_packages_path=")),
                f"--task={task}",
                f"--server_address=127.0.0.1:{port}",
                "--policy_type=vla0",
                f"--pretrained_name_or_path={policy}",
                f"--actions_per_chunk={actions_per_chunk}",
                "--policy_device=cpu",
                "--aggregate_fn_name=latest_only",
                f"--fps={fps}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait(done, client, log, seconds)
        finally:
            client.kill()
            client.wait()


def _wait(done: Callable[[], bool], process: subprocess.Popen[bytes], log: IO[str], seconds: float) -> None:
    """Wait until ``done``; raise what a process said if it ends before, or takes longer than ``seconds``."""
    end = time.monotonic() + seconds
    while not done():
        if process.poll() is not None or time.monotonic() > end:
            log.seek(0)
            ended = process.returncode is not None
            what = f"ended with {process.returncode}" if ended else f"was not done after {seconds:.0f} s"
            raise RuntimeError(f"{process.args[0]} {what}; it said: {log.read()[-3000:]}")
        time.sleep(0.1)


def _listens(port: int) -> bool:
    with socket.socket() as there:
        return there.connect_ex(("127.0.0.1", port)) == 0
