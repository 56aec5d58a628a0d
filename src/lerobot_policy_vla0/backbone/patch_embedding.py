"""Computes the vision tower's first layer as a matrix product.

Qwen's towers embed patches with a 3-d convolution whose stride is its kernel, so no two outputs share an input. The
matrix product is several times as fast, on CPUs and GPUs. The weight is the same and keeps its name in checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lerobot_policy_vla0.errors import ConfigError


class PatchEmbedding(nn.Module):
    """Embeds flattened patches with the weight of a convolution.

    Raises:
        ConfigError: if the convolution is not a matrix product per patch; names the convolution.
    """

    def __init__(self, proj: nn.Conv3d) -> None:
        super().__init__()
        plain = proj.bias is None and proj.groups == 1 and set(proj.dilation) == {1}
        if not plain or tuple(proj.stride) != tuple(proj.kernel_size) or any(proj.padding):
            raise ConfigError(
                f"the backbone embeds patches with {proj}, which is no matrix product: a convolution without bias, "
                "padding and groups, whose stride is its kernel, was expected. Use a Qwen2.5-VL or Qwen2-VL."
            )
        self.proj = proj

    def forward(self, patches: Tensor) -> Tensor:
        """Return ``(patches, width)`` of ``(patches, C*t*p*p)``."""
        weight = self.proj.weight
        return F.linear(patches.to(weight.dtype), weight.flatten(1))


def use_matrix_product(tower: Any) -> None:
    """Replace a vision tower's patch embedding, in place."""
    tower.patch_embed = PatchEmbedding(tower.patch_embed.proj)
