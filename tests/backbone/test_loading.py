"""Loading a policy: what it gives, and that beside the weights nothing of their size is ever in memory."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.paths import REPO
from helpers.tiny import SMALL, make_batch, make_config
from safetensors.torch import load_file, save_file

from lerobot_policy_vla0 import TinyVLMConfig, VLA0Policy
from lerobot_policy_vla0.backbone.tiny import build_tiny_tokenizer, tiny_vlm_config
from lerobot_policy_vla0.checkpoints import files as checkpoint
from lerobot_policy_vla0.errors import CheckpointError

sys.path.insert(0, str(REPO / "benchmarks"))

HEAD, EMBEDDING = "vlm.model.lm_head.weight", "vlm.model.model.language_model.embed_tokens.weight"


def save_backbone(folder: Path, family: str, *, tied: bool) -> Path:
    """Write a random base model of a family, as the Hub has them."""
    from transformers import AutoModelForImageTextToText, Qwen2VLConfig

    tokenizer = build_tiny_tokenizer()
    config: Any = tiny_vlm_config(TinyVLMConfig(**SMALL), tokenizer)
    if family == "qwen2_vl":
        vision = {"depth": 2, "embed_dim": 64, "hidden_size": 64, "mlp_ratio": 2, "num_heads": 2}
        ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        text = config.text_config.to_dict()
        config = Qwen2VLConfig(
            text_config={key: value for key, value in text.items() if key != "model_type"},
            vision_config=vision,
            **{name: getattr(config, name) for name in ids},
        )
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("stored_as", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("family", "tied"), [("qwen2_5_vl", True), ("qwen2_5_vl", False), ("qwen2_vl", True)]
)
def test_a_policy_is_the_one_that_was_built_with_memory_and_overwritten(
    tmp_path: Path, family: str, tied: bool, stored_as: str, frozen: bool
) -> None:
    base = save_backbone(tmp_path / "base", family, tied=tied)
    config = make_config(vlm_model_name=str(base), freeze_vision_encoder=frozen, save_dtype=None)
    folder = tmp_path / "policy"
    VLA0Policy(config).save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    dtype = getattr(torch, stored_as)
    tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    save_file(tensors, file)

    read = VLA0Policy.from_pretrained(folder)
    built = VLA0Policy(config, stored_vlm=folder / "vlm").eval()
    missing, unexpected = built.load_state_dict(tensors, strict=False)
    assert unexpected == []
    assert set(missing) <= ({HEAD, EMBEDDING} if tied else set())

    def described(policy: VLA0Policy) -> list[Any]:
        every = dict(policy.named_parameters(remove_duplicate=False))
        return [(name, p.dtype, p.device, p.requires_grad, p.is_leaf) for name, p in every.items()]

    assert described(read) == described(built)
    assert list(read.state_dict()) == list(built.state_dict())
    for kind in ("named_parameters", "named_buffers"):  # buffers include those that no file holds
        ours, theirs = (dict(getattr(policy, kind)(remove_duplicate=False)) for policy in (read, built))
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype, name
            assert torch.equal(tensor, theirs[name]), name
    assert any(name.endswith("inv_freq") for name, _ in read.named_buffers())
    assert (read.vlm.vocabulary[0].weight is read.vlm.vocabulary[1].weight) is tied
    assert read.vlm.model.training is False
    batch = make_batch(config)
    assert torch.equal(read.predict_action_chunk(batch), built.predict_action_chunk(batch))
    read.train()(batch)[0].backward()
    trained = {name for name, p in read.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in built.named_parameters() if p.requires_grad}


def test_loading_leaves_the_training_seed_alone(tmp_path: Path) -> None:
    VLA0Policy(make_config()).save_pretrained(tmp_path)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    VLA0Policy.from_pretrained(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def remove(folder: Path, name: str) -> None:
    """Take a tensor out of a checkpoint."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file)


def test_what_a_file_lacks_is_initialised_where_that_is_allowed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = "vlm.model.model.language_model.layers.1.mlp.up_proj.weight"
    policy = VLA0Policy(make_config())
    fresh = policy.state_dict()[name].clone()  # drawn from the config's seed
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1)
    policy.save_pretrained(tmp_path)
    remove(tmp_path, name)
    with pytest.raises(CheckpointError, match=rf"Missing tensors: {name}\. Unexpected tensors: none"):
        VLA0Policy.from_pretrained(tmp_path)
    loaded = VLA0Policy.from_pretrained(tmp_path, strict=False)
    assert f"Missing tensors: {name}" in caplog.text
    for key, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, fresh if key == name else policy.state_dict()[key]), key


def test_a_tensor_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_PART", 1000)  # three rows of 64, and one row of more
    policy = VLA0Policy(make_config())
    policy.save_pretrained(tmp_path)
    for name, tensor in VLA0Policy.from_pretrained(tmp_path).state_dict().items():
        assert torch.equal(tensor, policy.state_dict()[name]), name


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resets the peak as Linux does")
@pytest.mark.parametrize(("stored_as", "held_as"), [("bfloat16", "float32"), ("float32", "float32")])
def test_loading_takes_the_weights_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored_as: str, held_as: str
) -> None:
    from memory import peak_mb, reset_peak

    monkeypatch.setattr(checkpoint, "_PART", 2**20)
    large = TinyVLMConfig(
        **{**SMALL, "hidden_size": 512, "num_heads": 4, "intermediate_size": 4096, "num_layers": 8}
    )
    config = make_config(tiny=large, save_dtype=stored_as, param_dtype=held_as)
    policy = VLA0Policy(config)
    weights = sum(p.numel() * p.element_size() for p in policy.parameters()) / 2**20
    policy.save_pretrained(tmp_path)
    del policy
    # A first load for what a process sets up once.
    VLA0Policy.from_pretrained(tmp_path)

    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed could be used again, and would not be counted
    cpu = torch.device("cpu")
    reset_peak(cpu)
    before = peak_mb(cpu)
    policy = VLA0Policy.from_pretrained(tmp_path)
    taken = peak_mb(cpu) - before
    assert {p.dtype for p in policy.parameters()} == {getattr(torch, held_as)}
    assert weights > 200
    assert taken < 1.1 * weights, f"{taken} MiB for weights of {weights:.0f} MiB"
    assert json.loads((tmp_path / "config.json").read_text())["param_dtype"] == held_as
