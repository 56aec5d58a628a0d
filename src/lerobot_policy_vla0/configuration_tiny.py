"""Sizes of the random backbone that ``vlm_model_name=tiny`` builds; knows nothing about how it is built."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from lerobot_policy_vla0.errors import ConfigError


@dataclass
class TinyVLMConfig:
    """Sizes of the random Qwen2.5-VL that ``vlm_model_name=tiny`` builds (2.4 M parameters as given).

    Attributes:
        hidden_size: width of the language model.
        num_layers: decoder layers of the language model.
        num_heads: attention heads of the language model; the width of one head must be a multiple of 4.
        num_kv_heads: key/value heads, a divisor of ``num_heads``.
        intermediate_size: width of the language model's MLPs.
        vision_hidden_size: width of the vision tower.
        vision_layers: blocks of the vision tower.
        vision_heads: attention heads of the vision tower.
        vision_intermediate_size: width of the vision tower's MLPs.
        seed: seed of the random weights.
    """

    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 4
    intermediate_size: int = 512
    vision_hidden_size: int = 128
    vision_layers: int = 3
    vision_heads: int = 4
    vision_intermediate_size: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name != "seed" and value < 1:
                raise ConfigError(f"tiny.{item.name}={value} must be at least 1.")
        for width, heads, prefix, heads_name in (
            (self.hidden_size, self.num_heads, "", "num_heads"),
            (self.vision_hidden_size, self.vision_heads, "vision_", "vision_heads"),
        ):
            if width % (4 * heads):
                raise ConfigError(
                    f"tiny.{prefix}hidden_size={width} must be a multiple of 4 * tiny.{heads_name}={heads} "
                    "(rotary positions split each head)."
                )
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"tiny.num_kv_heads={self.num_kv_heads} must divide tiny.num_heads={self.num_heads}."
            )
