"""A small policy as `vla0 serve` serves it, observations for it, and what it answers by itself."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.policies import make_pre_post_processors

from helpers.tiny import make_config, make_stats
from helpers.waiting import LONG, free_port
from lerobot_policy_vla0 import VLA0Policy, make_vla0_pre_post_processors
from lerobot_policy_vla0.tools.serving.fleet import FleetOptions, serve_fleet

IMAGE, WRIST = "observation.images.image", "observation.images.image2"
ACTION_DIM, SIDE = 2, 40


def save_policy(folder: Path, **options: Any) -> Path:
    """Write a policy with LIBERO's two cameras, a state of two numbers and random weights; return its folder."""
    settings = {"chunk_size": 4, "n_action_steps": 2, "ensemble_n_chunks": 2, **options}
    config = make_config(action_dim=ACTION_DIM, cameras=(IMAGE, WRIST), image=SIDE, **settings)
    VLA0Policy(config).save_pretrained(folder)
    for processor in make_vla0_pre_post_processors(config, make_stats(ACTION_DIM)):
        processor.save_pretrained(folder)
    return folder


def picture(seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def openpi_message(seed: int) -> dict[str, Any]:
    """An observation as openpi's LIBERO client sends it."""
    return {
        "observation/image": picture(seed),
        "observation/wrist_image": picture(seed + 1000),
        "observation/state": np.full(ACTION_DIM, 0.1),
        "prompt": f"push button {seed % 3}",
    }


def vla_eval_message(seed: int) -> dict[str, Any]:
    """The same observation as vla-eval's LIBERO sends it."""
    return {
        "images": {"agentview": picture(seed), "wrist": picture(seed + 1000)},
        "states": np.full(ACTION_DIM, 0.1),
        "task_description": f"push button {seed % 3}",
    }


class Alone:
    """The policy by itself, in this process, as LeRobot's commands run it: what a served robot has to get."""

    def __init__(self, checkpoint: Path) -> None:
        self.policy = VLA0Policy.from_pretrained(checkpoint)
        self.preprocess, self.postprocess = make_pre_post_processors(
            self.policy.config, pretrained_path=str(checkpoint)
        )

    def action(self, seed: int) -> np.ndarray[Any, Any]:
        return np.asarray(self.postprocess(self.policy.select_action(self._batch(seed)))[0])

    def chunk(self, seed: int) -> np.ndarray[Any, Any]:
        return np.asarray(self.postprocess(self.policy.predict_action_chunk(self._batch(seed)))[0])

    def _batch(self, seed: int) -> dict[str, Any]:
        message = openpi_message(seed)
        return dict(
            self.preprocess(
                {
                    IMAGE: torch.from_numpy(message["observation/image"]).permute(2, 0, 1)[None],
                    WRIST: torch.from_numpy(message["observation/wrist_image"]).permute(2, 0, 1)[None],
                    "observation.state": torch.full((1, ACTION_DIM), 0.1),
                    "task": message["prompt"],
                }
            )
        )


@contextlib.contextmanager
def serving(checkpoint: Path, token: str | None = None, **options: Any) -> Iterator[int]:
    """Serve a policy in this process; yields the websockets' port."""
    port, done, ready = free_port(), threading.Event(), threading.Event()
    failed: list[BaseException] = []
    settings = FleetOptions(
        **{"policy": str(checkpoint), "host": "127.0.0.1", "websocket_port": port, "max_batch": 4} | options
    )

    def run() -> None:
        try:
            serve_fleet(settings, done.is_set, lambda _: ready.set())
        except BaseException as error:
            failed.append(error)
            ready.set()

    before = os.environ.pop("VLA0_SERVE_TOKEN", None)
    if token is not None:
        os.environ["VLA0_SERVE_TOKEN"] = token
    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(LONG)
        if failed:
            raise failed[0]
        yield port
    finally:
        done.set()
        thread.join(timeout=LONG)
        os.environ.pop("VLA0_SERVE_TOKEN", None)
        if before is not None:
            os.environ["VLA0_SERVE_TOKEN"] = before
    assert not thread.is_alive()
