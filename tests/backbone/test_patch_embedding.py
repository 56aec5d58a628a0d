"""Patches embedded by a matrix product: what the convolution computes, with its weight."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny import make_config
from torch import nn

from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.backbone.patch_embedding import PatchEmbedding
from lerobot_policy_vla0.errors import ConfigError


def test_it_is_the_convolution() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv3d(3, 32, (2, 14, 14), stride=(2, 14, 14), bias=False)
    patches = torch.randn(5, 3 * 2 * 14 * 14)
    expected = convolution(patches.view(-1, 3, 2, 14, 14)).view(-1, 32)
    (own_gradient,) = torch.autograd.grad(expected.square().sum(), convolution.weight)
    embedded = PatchEmbedding(convolution)(patches)
    torch.testing.assert_close(embedded, expected, rtol=1e-5, atol=1e-5)
    embedded.square().sum().backward()
    torch.testing.assert_close(convolution.weight.grad, own_gradient, rtol=1e-4, atol=1e-4)


def test_the_policys_tower_uses_it_under_the_name_checkpoints_have() -> None:
    policy = VLA0Policy(make_config())
    assert isinstance(policy.vlm.vision_tower.patch_embed, PatchEmbedding)
    names = [name for name, _ in policy.named_parameters() if "patch_embed" in name]
    assert names == ["vlm.model.model.visual.patch_embed.proj.weight"]
    assert policy.state_dict()[names[0]].ndim == 5


@pytest.mark.parametrize("options", [{"bias": True}, {"stride": (1, 14, 14)}, {"padding": 1}])
def test_another_convolution_is_refused(options: dict[str, object]) -> None:
    arguments = {"kernel_size": (2, 14, 14), "stride": (2, 14, 14), "bias": False, **options}
    with pytest.raises(ConfigError, match="which is no matrix product"):
        PatchEmbedding(nn.Conv3d(3, 8, **arguments))  # type: ignore[arg-type]
