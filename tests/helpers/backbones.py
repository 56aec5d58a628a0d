"""Base models as the Hub has them, small and random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from helpers.tiny import SMALL
from lerobot_policy_vla0 import TinyVLMConfig
from lerobot_policy_vla0.backbone.tiny import build_tiny_tokenizer, tiny_vlm_config


def save_backbone(folder: Path, tokenizer: Any, vocabulary: int, seed: int = 5) -> Path:
    """Write a base model as the Hub has them: config, weights and tokenizer, nothing of ours."""
    config = tiny_vlm_config(TinyVLMConfig(**SMALL), build_tiny_tokenizer())
    for name in ("image", "video"):
        setattr(config, f"{name}_token_id", tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>"))
    for name in ("start", "end"):
        setattr(config, f"vision_{name}_token_id", tokenizer.convert_tokens_to_ids(f"<|vision_{name}|>"))
    config.text_config.vocab_size = vocabulary
    config.text_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    config.text_config.pad_token_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.repetition_penalty = 1.05  # what the real one ships with
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
