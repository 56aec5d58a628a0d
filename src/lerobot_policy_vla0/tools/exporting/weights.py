"""The backbone's tensors of a policy, by the names that transformers writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lerobot_policy_vla0.checkpoints.weight_stream import TensorSource

if TYPE_CHECKING:
    from lerobot_policy_vla0.modeling_vla0 import VLA0Policy

_BACKBONE = "vlm.model."
_LANGUAGE = "model.language_model."


def split_tensors(
    skeleton: VLA0Policy, tensors: Mapping[str, TensorSource]
) -> tuple[dict[str, TensorSource], dict[str, TensorSource]]:
    """Separate the backbone's tensors from the policy's own.

    A policy stores a tied tensor under the first of its names in the alphabet, transformers under the embedding's.

    Args:
        skeleton: the policy on the ``meta`` device.
        tensors: its tensors, each once.

    Returns:
        The backbone's tensors by transformers' names, and the others by the policy's.
    """
    tied = {
        f"{_BACKBONE}{left_out}": f"{_BACKBONE}{kept}" for left_out, kept in skeleton.vlm.tied_names.items()
    }
    backbone, own = {}, {}
    for name, source in tensors.items():
        if name.startswith(_BACKBONE):
            backbone[model_name(tied.get(name, name))] = source
        else:
            own[name] = source
    return backbone, own


def model_name(name: str) -> str:
    """Return transformers' name, in a file, for one of the backbone's tensors; `policy_name` is the inverse.

    >>> model_name("vlm.model.model.language_model.embed_tokens.weight")
    'model.embed_tokens.weight'
    >>> model_name("vlm.model.model.visual.blocks.0.norm1.weight")
    'model.visual.blocks.0.norm1.weight'
    >>> model_name("vlm.model.lm_head.weight")
    'lm_head.weight'
    """
    name = name.removeprefix(_BACKBONE)
    # Files keep the names of before transformers 4.52, when the language model stood directly under `model`.
    return f"model.{name.removeprefix(_LANGUAGE)}" if name.startswith(_LANGUAGE) else name
