"""Base models as the Hub has them, small and random."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from helpers.tiny import SMALL
from lerobot_policy_vla0 import TinyVLMConfig, VLA0Policy
from lerobot_policy_vla0.backbone.tiny import build_tiny_tokenizer, tiny_vlm_config


def backbone_config(tokenizer: Any, vocabulary: int) -> Any:
    """Return the config of a small Qwen2.5-VL with any tokenizer."""
    config: Any = tiny_vlm_config(TinyVLMConfig(**SMALL), build_tiny_tokenizer())
    for name in ("image", "video"):
        setattr(config, f"{name}_token_id", tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>"))
    for name in ("start", "end"):
        setattr(config, f"vision_{name}_token_id", tokenizer.convert_tokens_to_ids(f"<|vision_{name}|>"))
    config.text_config.vocab_size = vocabulary
    config.text_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    config.text_config.pad_token_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    return config


def save_backbone(folder: Path, tokenizer: Any, vocabulary: int, seed: int = 5) -> Path:
    """Write a base model as the Hub has them: config, weights and tokenizer, nothing of ours."""
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(backbone_config(tokenizer, vocabulary))
    model.generation_config.repetition_penalty = 1.05  # what the real one ships with
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def text_sizes(**changes: Any) -> dict[str, Any]:
    """The tiny model's text options, which all families share."""
    config: Any = tiny_vlm_config(TinyVLMConfig(**SMALL), build_tiny_tokenizer())
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "max_position_embeddings", "eos_token_id", "pad_token_id")
    text = {name: getattr(config.text_config, name) for name in names}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    text["bos_token_id"] = None
    return {**text, **changes}


def special_ids() -> dict[str, int]:
    config: Any = tiny_vlm_config(TinyVLMConfig(**SMALL), build_tiny_tokenizer())
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return {name: getattr(config, name) for name in names}


def qwen2_5_vl(*, tied: bool, **text: Any) -> Any:
    from transformers import Qwen2_5_VLConfig

    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "out_hidden_size": 64,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    return Qwen2_5_VLConfig(
        text_config=text_sizes(tie_word_embeddings=tied, **text),
        vision_config=vision,
        tie_word_embeddings=tied,
        **special_ids(),
    )


def qwen2_vl(*, tied: bool, **text: Any) -> Any:
    from transformers import Qwen2VLConfig

    vision = {"depth": 2, "embed_dim": 64, "hidden_size": 64, "mlp_ratio": 2, "num_heads": 2}
    return Qwen2VLConfig(
        text_config=text_sizes(tie_word_embeddings=tied, **text),
        vision_config=vision,
        tie_word_embeddings=tied,
        **special_ids(),
    )


#: As released: the 2B and 3B models tie embedding and head, the larger ones do not; all share key/value heads.
FAMILIES: dict[str, Callable[[], Any]] = {
    "Qwen2.5-VL-3B": lambda: qwen2_5_vl(tied=True, num_key_value_heads=1),
    "Qwen2.5-VL-7B": lambda: qwen2_5_vl(tied=False, num_key_value_heads=1),
    "Qwen2-VL-2B": lambda: qwen2_vl(tied=True, num_key_value_heads=1),
    "Qwen2-VL-7B": lambda: qwen2_vl(tied=False, num_key_value_heads=1),
}


def save_random_backbone(folder: Path, config: Any) -> Path:
    """Write a random base model as the Hub has them: config, weights, tokenizer."""
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    build_tiny_tokenizer().save_pretrained(folder)
    return folder


def wake_up(policy: VLA0Policy) -> None:
    """Enlarge random weights until answers differ between pictures and are no ties."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.vlm.model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=3.0 * parameter[0].numel() ** -0.5)
