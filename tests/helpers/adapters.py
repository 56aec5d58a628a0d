"""Adapters as `lerobot-train` saves them, with random numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from helpers.tiny import make_stats
from lerobot_policy_vla0 import VLA0Policy, make_vla0_pre_post_processors


def save_adapter(policy: VLA0Policy, folder: Path, base: Path | str, peft_config: Any = None) -> Path:
    """Put an adapter of random numbers on a policy and save it as ``lerobot-train`` does; returns ``folder``."""
    config = policy.config
    wrapped: Any = policy.wrap_with_peft(
        peft_config, None if peft_config is not None else {"method_type": "LORA", "r": 4, "lora_alpha": 8}
    )
    generator = torch.Generator().manual_seed(5)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    wrapped.save_pretrained(folder)
    config.save_pretrained(folder)
    for pipeline in make_vla0_pre_post_processors(config, make_stats()):
        pipeline.save_pretrained(folder)
    return folder
