"""Policies to export, and what a client of an engine sends: pictures as PNG files, and messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.io import encode_png

from helpers.tiny import make_batch, make_config, make_stats
from lerobot_policy_vla0 import VLA0Config, VLA0Policy, make_vla0_pre_post_processors
from lerobot_policy_vla0.observations.images import tile, transform

CAMERAS = ("observation.images.side", "observation.images.wrist")
TASK = "push the button"


def two_cameras(**options: Any) -> VLA0Config:
    """Return the config of a policy with two cameras, side by side, and the reference decoder."""
    return make_config(
        **{"cameras": CAMERAS, "chunk_size": 2, "n_action_steps": 2, "decoder": "reference", **options}
    )


def train_by_heart(policy: VLA0Policy, batch: dict[str, Any], steps: int = 120) -> VLA0Policy:
    """Teach a policy the answers of one batch, so that it writes them without a grammar; returns the policy."""
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=3e-3)
    policy.eval()  # no crops, jitter and masks
    for _ in range(steps):
        loss, _ = policy.forward(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return policy


def save_policy(policy: VLA0Policy, folder: Path) -> Path:
    """Save a policy and its processors as ``lerobot-train`` does; returns ``folder``."""
    policy.save_pretrained(folder)
    for pipeline in make_vla0_pre_post_processors(policy.config, make_stats(policy.config.action_dim)):
        pipeline.save_pretrained(folder)
    return folder


def save_trained(folder: Path) -> Path:
    """Save a policy that knows the answers to ``make_batch(two_cameras())``; returns ``folder``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = train_by_heart(VLA0Policy(two_cameras()), make_batch(two_cameras()))
    with torch.no_grad():
        policy.augmentation.state[1] = 120
    return save_policy(policy, folder)


def sent_pictures(config: VLA0Config, batch: dict[str, Any]) -> list[list[Tensor]]:
    """Return the pictures of each sample as they are sent: ``(3, H, W)`` uint8."""
    images = transform([batch[key] for key in config.camera_keys], config.image_settings(), None)
    images = [tile(images)] if config.tile_images else images
    return [[image[row] for image in images] for row in range(len(images[0]))]


def write_png(picture: Tensor, file: Path) -> Path:
    """Write a picture ``(3, H, W)`` uint8 losslessly; returns ``file``."""
    file.write_bytes(encode_png(picture).numpy().tobytes())
    return file


def messages(
    config: VLA0Config, n_pictures: int, *, state: str = "", task: str = TASK
) -> list[dict[str, Any]]:
    """Return the chat that asks for actions, as this package's client sends it, with places for pictures."""
    content: list[dict[str, Any]] = []
    for number in range(1, n_pictures + 1):
        if config.add_vision_id:
            content.append({"type": "text", "text": f"Picture {number}: "})
        content.append({"type": "image"})
    content.append({"type": "text", "text": f"State: {state}\n{task}" if state else task})
    system = [{"type": "text", "text": config.filled_system_prompt}]
    return [{"role": "system", "content": system}, {"role": "user", "content": content}]
