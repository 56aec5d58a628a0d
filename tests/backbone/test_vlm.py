"""The backbone: built tiny, loaded from a folder, kept in the precision and state the config asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.backbones import save_backbone
from helpers.tiny import SMALL, make_batch, make_config
from transformers import Qwen2_5_VLForConditionalGeneration

from lerobot_policy_vla0 import TinyVLMConfig, VLA0Policy
from lerobot_policy_vla0.backbone.tiny import build_tiny_tokenizer
from lerobot_policy_vla0.backbone.vlm import VLM
from lerobot_policy_vla0.errors import CheckpointError


def test_the_tiny_model_is_the_same_for_the_same_seed() -> None:
    one, two = (VLM.from_config(make_config()) for _ in range(2))
    other = VLM.from_config(make_config(tiny=TinyVLMConfig(**{**SMALL, "seed": 1})))
    weight = "model.lm_head.weight"
    assert torch.equal(one.state_dict()[weight], two.state_dict()[weight])
    assert not torch.equal(one.state_dict()[weight], other.state_dict()[weight])


def test_building_the_model_leaves_the_training_seed_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    VLM.from_config(make_config())
    assert torch.equal(torch.rand(3), expected)


def test_a_local_base_model_is_loaded_with_its_weights(tmp_path: Path) -> None:
    tokenizer = build_tiny_tokenizer()
    folder = save_backbone(tmp_path / "base", tokenizer, len(tokenizer))
    policy = VLA0Policy(make_config(vlm_model_name=str(folder))).eval()
    source = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).state_dict()
    for name, tensor in policy.vlm.model.state_dict().items():
        assert torch.equal(tensor, source[name]), name
    # The base model's generation settings must not act behind the config's back.
    assert policy.vlm.model.generation_config.repetition_penalty in (None, 1.0)


def test_the_real_tokenizer_gives_the_same_pipeline(tmp_path: Path, qwen_tokenizer: Any) -> None:
    folder = save_backbone(tmp_path / "base", qwen_tokenizer, 151_936)
    policy = VLA0Policy(make_config(vlm_model_name=str(folder))).eval()
    assert policy.vlm.tokens.digits == tuple(range(15, 25))
    assert (policy.vlm.tokens.space, policy.vlm.tokens.end, policy.vlm.tokens.mask) == (220, 151_645, 30)
    batch = make_batch(policy.config)
    loss, _ = policy(batch)
    assert torch.isfinite(loss)
    chunk = policy.predict_action_chunk(batch)
    policy.save_pretrained(tmp_path / "policy")
    for file in sorted(folder.rglob("*")):
        file.unlink()  # the checkpoint stands alone
    again = VLA0Policy.from_pretrained(tmp_path / "policy")
    assert torch.equal(again.predict_action_chunk(batch), chunk)


def test_gradients_are_the_same_with_checkpointing() -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        policy = VLA0Policy(make_config(gradient_checkpointing=checkpointing)).train()
        policy(make_batch(policy.config))[0].backward()
        gradients.append({n: p.grad for n, p in policy.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


def test_a_frozen_vision_tower_is_not_trained() -> None:
    policy = VLA0Policy(make_config(freeze_vision_encoder=True)).train()
    policy(make_batch(policy.config))[0].backward()
    tower = {id(p) for p in policy.vlm.vision_tower.parameters()}
    assert all(p.grad is None for p in policy.vlm.vision_tower.parameters())
    assert not any(id(p) in tower for p in policy.get_optim_params())
    assert len(policy.get_optim_params()) == sum(1 for p in policy.parameters() if id(p) not in tower)


def test_weights_are_held_in_the_precision_asked_for(tmp_path: Path) -> None:
    policy = VLA0Policy(make_config(dtype="bfloat16", param_dtype="bfloat16")).eval()
    assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
    batch = make_batch(policy.config)
    assert torch.isfinite(policy(batch)[0])
    chunk = policy.predict_action_chunk(batch)
    policy.save_pretrained(tmp_path)
    assert torch.equal(VLA0Policy.from_pretrained(tmp_path).predict_action_chunk(batch), chunk)


def test_autocast_is_used_in_training_and_inference() -> None:
    torch.manual_seed(0)
    exact = VLA0Policy(make_config(dtype="float32")).eval()
    torch.manual_seed(0)
    rounded = VLA0Policy(make_config(dtype="bfloat16")).eval()
    batch = make_batch(exact.config)
    assert {p.dtype for p in rounded.parameters()} == {torch.float32}
    assert exact(batch)[0] != rounded(batch)[0]
    torch.testing.assert_close(exact(batch)[0], rounded(batch)[0], rtol=0.02, atol=0.02)


def test_attention_implementations_agree() -> None:
    losses = []
    for name in ("sdpa", "eager"):
        torch.manual_seed(0)
        policy = VLA0Policy(make_config(attn_implementation=name)).eval()
        assert policy.vlm.model.config._attn_implementation == name
        losses.append(policy(make_batch(policy.config))[0])
    torch.testing.assert_close(losses[0], losses[1])


def test_a_checkpoint_without_its_backbone_description_is_refused(tmp_path: Path) -> None:
    VLA0Policy(make_config()).save_pretrained(tmp_path)
    (tmp_path / "vlm" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no vlm/tokenizer\.json"):
        VLA0Policy.from_pretrained(tmp_path)
