"""A policy for the emulated SO-100 without training, and LeRobot's rollout of it in this process."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature

from helpers.patience import be_patient
from helpers.tiny import make_config, make_restless, make_stats
from helpers.waiting import LONG
from lerobot_policy_vla0 import VLA0Policy, make_vla0_pre_post_processors
from lerobot_policy_vla0.tools.so100_emulator import BusLog, CameraSettings, SO100Emulator

TOP = "observation.images.top"
#: Range of every joint, in degrees (percent for the gripper).
LOW, HIGH = 0.0, 60.0
#: Signals that LeRobot's rollout handles.
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


#: Degrees per encoder step.
STEP = 360 / 4095


def save_policy(
    folder: Path,
    *,
    joints: int = 6,
    cameras: tuple[str, ...] = (TOP,),
    restless: bool = False,
    states: tuple[float, float] = (-100.0, 100.0),
    **options: Any,
) -> Path:
    """Write a checkpoint of random weights, as trained on pictures of 64x48 pixels.

    Args:
        folder: where.
        joints: dimensions of action and state.
        cameras: image keys.
        restless: let every picture have another answer, all over the range.
        states: the range of every joint in the training data.
        **options: of the config.
    """
    torch.manual_seed(0)
    config = make_config(action_dim=joints, cameras=cameras, **options)
    assert config.input_features is not None
    for camera in cameras:
        config.input_features[camera] = PolicyFeature(FeatureType.VISUAL, (3, 48, 64))
    policy = VLA0Policy(config)
    if restless:
        make_restless(policy)
    policy.save_pretrained(folder)
    stats = make_stats(joints, low=LOW, high=HIGH)
    stats["observation.state"] = make_stats(joints, *states)["action"]
    for pipeline in make_vla0_pre_post_processors(config, stats):
        pipeline.save_pretrained(folder)
    return folder


class Rollout:
    """Runs `lerobot-rollout` in this process on an emulated arm, and keeps what was said and told.

    Attributes:
        log: what the arm was told, the first of two.
        other: what the second arm was told; None with one.
        said: warnings and news of the policy and of LeRobot, one per line.
        torque: whether the arm was under torque at the end.
    """

    log: BusLog
    other: BusLog | None
    torque: bool

    def __init__(self, folder: Path) -> None:
        pytest.importorskip("scservo_sdk", reason="pip install 'lerobot[feetech]'")
        pytest.importorskip("zmq", reason="pip install pyzmq")
        self._folder = folder
        self._lines: list[str] = []

    @property
    def said(self) -> str:
        return "\n".join(self._lines)

    def __call__(
        self,
        policy: Path,
        *arguments: str,
        camera: CameraSettings | None = None,
        task: str = "wave",
        goals: int = 3,
        pair: str | None = None,
    ) -> None:
        """Run it, and interrupt it after so many goals: how long they take depends on the machine.

        With the name of a ``pair`` the robot is two arms.
        """
        from lerobot.scripts.lerobot_rollout import main

        be_patient()
        self._lines.clear()
        # LeRobot's commands leave their own handlers behind.
        handlers = {number: signal.getsignal(number) for number in HANDLED}
        listener = logging.Handler(logging.INFO)
        listener.emit = lambda record: self._lines.append(record.getMessage())  # type: ignore[method-assign]
        # LeRobot replaces the root logger's handlers.
        loggers = [logging.getLogger(name) for name in ("lerobot", "lerobot_policy_vla0")]
        with (
            SO100Emulator(
                self._folder,
                cameras=[camera or CameraSettings("top", 64, 48, 30)],
                followers=(f"{pair}_left", f"{pair}_right") if pair else ("follower",),
            ) as emulator,
            BusLog(emulator.followers[0]) as self.log,
            BusLog(emulator.followers[1]) if pair else nullcontext() as self.other,
            pytest.MonkeyPatch.context() as patch,
        ):
            options = [
                "--strategy.type=base",
                f"--policy.path={policy}",
                *emulator.robot_options(pair),
                f"--duration={LONG}",
                "--fps=10",
                "--return_to_initial_position=false",
                "--play_sounds=false",
                *([f"--task={task}"] if task else []),
                *arguments,
            ]
            patch.setattr(sys, "argv", ["lerobot-rollout", *options])
            for logger in loggers:
                logger.addHandler(listener)
            over = threading.Event()
            interrupt = threading.Thread(target=self._interrupt, args=(over, goals))
            interrupt.start()
            try:
                main()
            finally:
                over.set()
                interrupt.join()
                for number, handler in handlers.items():
                    signal.signal(number, handler)
                for logger in loggers:
                    logger.removeHandler(listener)
            self.torque = emulator.followers[0].torque()

    def _interrupt(self, over: threading.Event, goals: int) -> None:
        """Press Ctrl-C once."""
        while not over.wait(0.01):
            if len(self.log.goals) >= goals:
                return os.kill(os.getpid(), signal.SIGINT)
