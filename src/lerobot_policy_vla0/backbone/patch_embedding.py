"""The vision tower's first layer as what it is: one matrix product per patch.

Qwen's towers embed patches with a 3-d convolution whose stride is its kernel, so no two outputs share an input. As a
convolution it takes several times as long, on CPUs and in cuDNN alike. Same weight, same name in checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lerobot_policy_vla0.errors import ConfigError


class PatchEmbedding(nn.Module):
    """Embeds flattened patches.

    Args:
        proj: the convolution it stands for; its weight is used where it is.

    Raises:
        ConfigError: if its patches overlap, or it is more than a matrix.
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
    """Let a vision tower embed its patches by a matrix product; changed in place."""
    tower.patch_embed = PatchEmbedding(tower.patch_embed.proj)
