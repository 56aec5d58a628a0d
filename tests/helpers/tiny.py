"""Small policies, batches and datasets for the tests: the real code paths at sizes a CPU enjoys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from torch import Tensor

from lerobot_policy_vla0 import TinyVLMConfig, VLA0Config, VLA0Policy, make_vla0_pre_post_processors

#: The smallest tiny VLM: 64 wide, two layers, one vision block.
SMALL = {
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 2,
    "intermediate_size": 128,
    "vision_hidden_size": 64,
    "vision_layers": 1,
    "vision_heads": 2,
    "vision_intermediate_size": 128,
}
CAMERA = "observation.images.top"
SHORT_PROMPT = "{N} integers 0-{B}"


def make_config(
    *, action_dim: int = 2, cameras: tuple[str, ...] = (CAMERA,), image: int = 64, **options: Any
) -> VLA0Config:
    """Return a float32 CPU config with its features filled in, as `make_policy` would."""
    config = VLA0Config(
        **{
            "vlm_model_name": "tiny",
            "tiny": TinyVLMConfig(**SMALL),
            "device": "cpu",
            "dtype": "float32",
            "chunk_size": 3,
            "n_action_steps": 3,
            "n_bins": 100,
            "image_size": (56, 56),
            "system_prompt": SHORT_PROMPT,
            "push_to_hub": False,
            **options,
        }
    )
    config.input_features = {
        **{name: PolicyFeature(FeatureType.VISUAL, (3, image, image)) for name in cameras},
        "observation.state": PolicyFeature(FeatureType.STATE, (action_dim,)),
    }
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (action_dim,))}
    return config


def make_stats(action_dim: int = 2, low: float = -2.0, high: float = 6.0) -> dict[str, dict[str, Tensor]]:
    """Return dataset statistics whose action range is ``[low, high]`` in every dimension."""
    return {
        "action": {"min": torch.full((action_dim,), low), "max": torch.full((action_dim,), high)},
        "observation.state": {"min": torch.full((action_dim,), -1.0), "max": torch.full((action_dim,), 1.0)},
    }


def make_raw_batch(config: VLA0Config, batch: int = 2, seed: int = 0) -> dict[str, Any]:
    """Return a batch in the robot's units, as the dataset gives it before the pre-processor."""
    generator = torch.Generator().manual_seed(seed)
    images = {
        key: torch.rand(batch, *feature.shape, generator=generator)
        for key, feature in config.image_features.items()
    }
    unit = torch.rand(batch, config.chunk_size, config.action_dim, generator=generator)
    return {
        **images,
        "observation.state": torch.zeros(batch, config.action_dim),
        "action": unit * 8.0 - 2.0,
        "action_is_pad": torch.zeros(batch, config.chunk_size, dtype=torch.bool),
        "task": ["push the button"] * batch,
    }


def make_batch(config: VLA0Config, batch: int = 2, seed: int = 0) -> dict[str, Any]:
    """Return a batch as the policy sees it, after the pre-processor."""
    preprocess, _ = make_vla0_pre_post_processors(config, make_stats(config.action_dim))
    return dict(preprocess(make_raw_batch(config, batch, seed)))


def make_dataset(root: Path, *, episodes: int = 3, frames: int = 8, size: int = 64, fps: int = 10) -> Path:
    """Write a small LeRobotDataset (PNG images) whose actions depend on the picture; returns ``root``."""
    from lerobot.datasets import LeRobotDataset

    dataset = LeRobotDataset.create(
        repo_id="local/tiny",
        root=root,
        fps=fps,
        use_videos=False,
        features={
            CAMERA: {"dtype": "image", "shape": (size, size, 3), "names": ["height", "width", "channels"]},
            "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
            "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
        },
    )
    rng = np.random.default_rng(0)
    for episode in range(episodes):
        for frame in range(frames):
            level = (episode * frames + frame) / (episodes * frames)
            picture = rng.integers(0, 30, (size, size, 3), dtype=np.uint8)
            picture[: int(level * size)] = 200
            dataset.add_frame(
                {
                    CAMERA: picture,
                    "observation.state": np.array([level, 0.5], np.float32),
                    "action": np.array([level * 8 - 2, 1 - level], np.float32),
                    "task": "raise the bar" if episode % 2 else "lower the bar gently",
                }
            )
        dataset.save_episode()
    dataset.finalize()
    return root


def make_restless(policy: VLA0Policy) -> VLA0Policy:
    """Grow a random policy's weights until every picture has another answer, all over the range; returns the policy."""
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.ndim > 1:
                parameter.mul_(25)
    return policy.eval()
