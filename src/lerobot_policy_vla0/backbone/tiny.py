"""Builds a tiny random Qwen2.5-VL with a byte-level tokenizer, without a download.

``--policy.vlm_model_name=tiny`` selects it. It uses the same transformers classes as the 3B model, so training,
decoding, saving and loading run the same code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lerobot_policy_vla0.configuration_vla0 import TINY

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from lerobot_policy_vla0.configuration_vla0 import TinyVLMConfig

_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def build_tiny_tokenizer() -> PreTrainedTokenizerBase:
    """Return a byte-level tokenizer with Qwen's special tokens and no merges (263 tokens).

    Each byte is one token. Digits and spaces are single tokens in the real tokenizer too; letters are not.
    """
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, *_SPECIAL_TOKENS])}
    tokenizer: PreTrainedTokenizerBase = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        unk_token="<|endoftext|>",
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(_SPECIAL_TOKENS[1:]),
    )
    tokenizer.name_or_path = TINY
    return tokenizer


def tiny_vlm_config(sizes: TinyVLMConfig, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """Return the transformers config of the tiny model, with the vocabulary and special ids of its tokenizer."""
    from transformers import Qwen2_5_VLConfig

    ids = {token: int(tokenizer.encode(token, add_special_tokens=False)[0]) for token in _SPECIAL_TOKENS}
    half_head = sizes.hidden_size // sizes.num_heads // 2
    # Qwen gives 1/4 of a half-head to time and 3/8 each to rows and columns; the parts must add up.
    time = max(1, half_head // 4)
    rows = (half_head - time) // 2
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_kv_heads,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [time, rows, half_head - time - rows],
        },
    }
    vision: dict[str, Any] = {
        "depth": sizes.vision_layers,
        "hidden_size": sizes.vision_hidden_size,
        "intermediate_size": sizes.vision_intermediate_size,
        "num_heads": sizes.vision_heads,
        "out_hidden_size": sizes.hidden_size,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [sizes.vision_layers - 1],
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
