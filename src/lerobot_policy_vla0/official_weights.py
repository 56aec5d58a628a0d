"""Which stored tensor of a Hugging Face Qwen-VL becomes which tensor of a policy.

Knows both ways transformers has named them; knows nothing about files, settings or layouts.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from lerobot_policy_vla0.checkpoint import shown
from lerobot_policy_vla0.errors import CheckpointError
from lerobot_policy_vla0.weight_stream import ShardReader, TensorSource

#: The policy's own buffer: seed and number of training steps.
AUGMENTATION_STATE = "augmentation.state"


def plan_weights(
    skeleton: nn.Module, reader: ShardReader, model: Path
) -> tuple[dict[str, TensorSource], dict[str, str]]:
    """Match the stored tensors with those of the policy.

    Args:
        skeleton: the policy on the ``meta`` device.
        reader: the stored tensors.
        model: their folder, for messages.

    Returns:
        Where each tensor of the policy's file comes from, and the file's metadata: tied tensors that are left
        out, with the name they are stored under, as `safetensors.torch.save_model` writes it.

    Raises:
        CheckpointError: naming missing, unexpected and misshapen tensors, or tied ones that differ.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    stored: dict[str, str] = {}
    for name in reader.tensors:
        twin = stored.setdefault(policy_name(name), name)
        if twin != name:
            raise CheckpointError(
                f"{model} holds one tensor under two names: {twin} and {name}. Remove stale files."
            )
    groups: dict[int, list[str]] = {}
    for name, parameter in skeleton.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)

    tensors: dict[str, TensorSource] = {}
    metadata: dict[str, str] = {}
    missing = []
    for group in map(sorted, groups.values()):
        present = [name for name in group if name in stored]
        if not present:
            missing += group
            continue
        for other in present[1:]:
            _check_equal(reader, stored[present[0]], stored[other], model)
        tensors[group[0]] = reader.tensors[stored[present[0]]]
        metadata |= dict.fromkeys(group[1:], group[0])
    unexpected = [stored[name] for name in stored.keys() - expected.keys()]
    wrong = [
        f"{name} is {source.shape}, expected {expected[name]}"
        for name, source in tensors.items()
        if source.shape != expected[name]
    ]
    if missing or unexpected or wrong:
        raise CheckpointError(
            f"the weights in {model} do not fit its config.json. Missing tensors: {shown(missing)}. Unexpected "
            f"tensors: {shown(unexpected)}. Wrong shapes: {shown(wrong)}. The download is incomplete, or the files "
            "belong to different models (LoRA adapters must be merged first)."
        )
    buffers = {name: buffer for name, buffer in skeleton.named_buffers() if name in expected}
    assert list(buffers) == [AUGMENTATION_STATE], list(buffers)
    # Augmentation starts at step 0 of seed 0, so that importing twice gives the same file.
    start = torch.zeros(
        buffers[AUGMENTATION_STATE].shape, dtype=buffers[AUGMENTATION_STATE].dtype, device="cpu"
    )
    tensors[AUGMENTATION_STATE] = TensorSource(tuple(start.shape), start.dtype, lambda: start)
    return tensors, metadata


def policy_name(name: str) -> str:
    """Return a policy's name for a tensor of a Hugging Face Qwen-VL checkpoint, old or new.

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


def _check_equal(reader: ShardReader, first: str, second: str, model: Path) -> None:
    """Refuse to drop one of two tied tensors that are not equal."""
    if reader.tensors[first].shape != reader.tensors[second].shape or not all(
        torch.equal(a, b) for a, b in zip(reader.rows(first), reader.rows(second), strict=True)
    ):
        raise CheckpointError(
            f"{model}: {first} and {second} are one tensor according to config.json (tie_word_embeddings), but the "
            "files hold different values. Set tie_word_embeddings in config.json as the weights were trained."
        )
