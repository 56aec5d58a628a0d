"""LeRobot's own `lerobot-rollout` on an arm that exists in software, a process each, for benchmarks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def run_rollout(
    robot: Sequence[str],
    policy: Path,
    *,
    inference: str,
    task: str,
    fps: int,
    seconds: float,
    options: Sequence[str] = (),
) -> None:
    """Let a policy drive an arm; it stays where the policy leaves it.

    Args:
        robot: the options ``--robot...`` of the arm and its cameras.
        policy: a checkpoint.
        inference: ``sync`` or ``rtc``.
        task: the instruction.
        fps: of the control loop.
        seconds: how long.
        options: further ones of `lerobot-rollout`, the policy's device among them.

    Raises:
        RuntimeError: if the command fails; the message ends with what it said.
    """
    finished = subprocess.run(
        [
            Path(sys.executable).with_name("lerobot-rollout"),
            *robot,
            f"--policy.path={policy}",
            "--strategy.type=base",
            f"--inference.type={inference}",
            f"--task={task}",
            f"--fps={fps}",
            f"--duration={seconds}",
            "--return_to_initial_position=false",
            "--play_sounds=false",
            *options,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise RuntimeError(f"lerobot-rollout failed: {finished.stdout[-3000:]}")
