"""Which stored tensor of a Hugging Face Qwen-VL, old or new, becomes which tensor of a policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lerobot_policy_vla0.checkpoints.policy_folder import match_tensors
from lerobot_policy_vla0.checkpoints.weight_stream import ShardReader, TensorSource

if TYPE_CHECKING:
    from lerobot_policy_vla0.modeling_vla0 import VLA0Policy

#: The policy's own buffer: seed and number of training steps.
AUGMENTATION_STATE = "augmentation.state"


def plan_weights(skeleton: VLA0Policy, reader: ShardReader, model: Path) -> dict[str, TensorSource]:
    """Return where each tensor of the policy's file comes from; see `policy_folder.match_tensors`.

    ``skeleton`` is the policy on the ``meta`` device, ``model`` the folder of the stored tensors, for messages.
    """
    tensors = match_tensors(
        skeleton, reader, model, rename=policy_name, without=frozenset({AUGMENTATION_STATE})
    )
    # Augmentation starts at step 0 of seed 0, so that importing twice gives the same file.
    buffer = skeleton.state_dict()[AUGMENTATION_STATE]
    start = torch.zeros(buffer.shape, dtype=buffer.dtype, device="cpu")
    tensors[AUGMENTATION_STATE] = TensorSource(tuple(start.shape), start.dtype, lambda: start)
    return tensors


def policy_name(name: str) -> str:
    """Return a policy's name for a tensor of a Hugging Face Qwen-VL checkpoint.

    transformers before 4.52 had the language model directly under ``model`` and the vision tower beside it,
    and later versions still write files that way.

    >>> policy_name("visual.blocks.0.norm1.weight")
    'vlm.model.model.visual.blocks.0.norm1.weight'
    >>> policy_name("model.embed_tokens.weight")
    'vlm.model.model.language_model.embed_tokens.weight'
    >>> policy_name("lm_head.weight")
    'vlm.model.lm_head.weight'
    """
    if name.startswith("visual."):
        name = f"model.{name}"
    elif name.startswith("model.") and not name.startswith(("model.language_model.", "model.visual.")):
        name = f"model.language_model.{name.removeprefix('model.')}"
    return f"vlm.model.{name}"
