"""Tensors on their way from a backbone's files to a policy's: each finds its place, one at a time is in memory."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import toy_env  # noqa: F401 - registers --env.type=toy
from helpers.official_checkpoint import (
    FIRST,
    SECOND,
    old_name,
    write_json,
)
from lerobot.configs.types import FeatureType, PolicyFeature
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lerobot_policy_vla0 import VLA0Config, VLA0Policy
from lerobot_policy_vla0.checkpoints.policy_folder import left_out
from lerobot_policy_vla0.checkpoints.weight_stream import ShardReader, TensorSource, find_shards, write_stream
from lerobot_policy_vla0.errors import CheckpointError
from lerobot_policy_vla0.tools.importing.tensors import plan_weights

# ---------------------------------------------------------------------- tensors


def test_every_tensor_of_the_3b_model_finds_its_place(qwen_folder: Path, tmp_path: Path) -> None:
    """Names and shapes only: Qwen2.5-VL-3B as published, in the old layout."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    for file in qwen_folder.iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    write_json(tmp_path / "config.json", QWEN_3B)
    config = VLA0Config(device="cpu")
    config.input_features = {"observation.images.image": PolicyFeature(FeatureType.VISUAL, (3, 256, 256))}
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (7,))}
    reader: Any = ShardReader([])
    with torch.device("meta"):
        skeleton = VLA0Policy(config, stored_vlm=tmp_path)
        model: Any = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(tmp_path))
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":
            shape = tuple(tensor.shape)
            reader.tensors[old_name(name)] = TensorSource(shape, torch.bfloat16, lambda: torch.empty(0))
    planned = plan_weights(skeleton, reader, tmp_path)
    del planned["augmentation.state"]
    assert len(planned) == 824
    assert sum(source.n_bytes for source in planned.values()) == 2 * 3_754_622_976
    assert left_out(skeleton) == {
        "vlm.model.model.language_model.embed_tokens.weight": "vlm.model.lm_head.weight"
    }


QWEN_3B = {
    "model_type": "qwen2_5_vl",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "patch_size": 14,
    },
}


# ---------------------------------------------------------------------- copying


def test_one_tensor_at_a_time_is_in_memory(source: Path, tmp_path: Path) -> None:
    alive: set[int] = set()
    most = 0

    def counted(read: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def count() -> Tensor:
            nonlocal most
            tensor = read()
            key = len(seen)
            seen.append(key)
            alive.add(key)
            weakref.finalize(tensor, alive.discard, key)
            most = max(most, len(alive))
            return tensor

        return count

    seen: list[int] = []
    gc.disable()  # what lives on must not be swept away unnoticed
    try:
        with ShardReader(find_shards(source / "model_last")) as reader:
            sources = {
                name: TensorSource(tensor.shape, tensor.dtype, counted(tensor.read))
                for name, tensor in reader.tensors.items()
            }
            write_stream(tmp_path / "copy.safetensors", sources, {"format": "pt"})
    finally:
        gc.enable()
    copy = load_file(tmp_path / "copy.safetensors")
    assert len(seen) == len(copy) > 20
    assert most == 1
    assert not alive
    original = {k: v for name in (FIRST, SECOND) for k, v in load_file(source / "model_last" / name).items()}
    assert copy.keys() == original.keys()
    assert all(torch.equal(copy[name], original[name]) for name in copy)


def test_a_tensor_that_changes_under_the_copy_is_noticed(tmp_path: Path) -> None:
    changed = TensorSource((2, 2), torch.float32, lambda: torch.zeros(3))
    with pytest.raises(CheckpointError, match=r"announced as \(2, 2\).*read as \(3,\)"):
        write_stream(tmp_path / "x.safetensors", {"x": changed}, {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_streamed_files_are_what_safetensors_writes(dtype: torch.dtype, tmp_path: Path) -> None:
    held = {
        "b.scalar": torch.tensor(3, dtype=dtype),
        "a": torch.arange(6, dtype=dtype).reshape(2, 3),
        "é": torch.zeros(0, 4, dtype=dtype),
    }
    sources = {n: TensorSource(tuple(t.shape), t.dtype, lambda t=t: t) for n, t in held.items()}
    write_stream(tmp_path / "ours.safetensors", sources, {"k": "v"})
    read = load_file(tmp_path / "ours.safetensors")
    assert all(torch.equal(read[name], tensor) and read[name].dtype == dtype for name, tensor in held.items())
    with safe_open(tmp_path / "ours.safetensors", "pt") as file:
        assert file.metadata() == {"k": "v"}
