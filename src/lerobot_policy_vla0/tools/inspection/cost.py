"""Computes from a backbone's shapes what fine-tuning it costs: memory and arithmetic. Nothing is measured here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lerobot_policy_vla0.backbone.loading import load_description
from lerobot_policy_vla0.backbone.tiny import build_tiny_tokenizer, tiny_vlm_config
from lerobot_policy_vla0.configuration_vla0 import TINY, VLA0Config
from lerobot_policy_vla0.training.loss import MAX_LOGITS

if TYPE_CHECKING:
    from tokenizers import Tokenizer


LORA_RANK = 16
THREE_B = "Qwen/Qwen2.5-VL-3B-Instruct"


@dataclass(frozen=True)
class BackboneFacts:
    """What is known of a backbone without its weights."""

    config: Any  # transformers' config, None if it could not be read
    tokenizer: Tokenizer | None  # None if it could not be read
    missing: str = ""  # why something could not be read


def backbone_facts(config: VLA0Config) -> BackboneFacts:
    """Look up a policy's backbone. The shapes of the 3B default are known here, so that it needs no network."""
    if config.vlm_model_name == TINY:
        tokenizer = build_tiny_tokenizer()
        backend: Any = tokenizer
        return BackboneFacts(tiny_vlm_config(config.tiny, tokenizer), backend.backend_tokenizer)
    try:
        vlm_config, tokenizer = load_description(config)
    except OSError as error:  # transformers: not cached, and no network
        reason = (
            f"{config.vlm_model_name} is not on this machine and was not downloaded ({type(error).__name__})"
        )
        known = vlm_config_3b(build_tiny_tokenizer()) if config.vlm_model_name == THREE_B else None
        return BackboneFacts(known, None, reason)
    backend = tokenizer
    return BackboneFacts(vlm_config, backend.backend_tokenizer)


def vlm_config_3b(tokenizer: Any) -> Any:
    """Return Qwen2.5-VL-3B's shapes, with the special ids of another tokenizer."""
    from transformers import Qwen2_5_VLConfig

    text = {
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "intermediate_size": 11_008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128_000,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }

    def id_of(token: str) -> int:
        return int(tokenizer.encode(token, add_special_tokens=False)[0])

    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=id_of("<|image_pad|>"),
        video_token_id=id_of("<|video_pad|>"),
        vision_start_token_id=id_of("<|vision_start|>"),
        vision_end_token_id=id_of("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def memory_table(
    batch: int, length: int = 413, patches: int = 512, vlm_config: Any = None
) -> dict[str, dict[str, float]]:
    """Compute what fine-tuning a backbone takes on one GPU, in GB (1e9 bytes).

    Counts weights, gradients, AdamW's two moments, autocast's bfloat16 copies of float32 weights, and activations with
    gradient checkpointing: each block's input, one decoder layer recomputed, one chunk of logits (twice in float32,
    once in bfloat16, and their gradient). Not counted: fragmentation, the CUDA context, workspaces.

    Args:
        batch: samples per GPU.
        length: tokens per sample (208 of prompt and image, 205 of answer).
        patches: image patches per sample.
        vlm_config: the backbone's shapes; None is Qwen2.5-VL-3B.
    """
    config = vlm_config or vlm_config_3b(build_tiny_tokenizer())
    model = _without_weights(config)
    text, vision = config.text_config, config.vision_config
    total = sum(p.numel() for p in model.parameters())
    linears = _linears(model.model.language_model.layers)
    decoder = sum(m.weight.numel() for m in linears)
    lora = sum(LORA_RANK * (m.in_features + m.out_features) for m in linears)

    tokens = batch * length
    layer = 2 * tokens * (3 * text.intermediate_size + 6 * text.hidden_size)
    logits = min(tokens * text.vocab_size, MAX_LOGITS) * (2 + 3 * 4)

    inputs = (
        tokens * text.hidden_size * text.num_hidden_layers
        + batch * patches * vision.hidden_size * vision.depth
    )

    def activations(residual_bytes: int) -> int:
        return int(residual_bytes * inputs + layer + logits)

    # Bytes: (weights, copies for autocast, gradients, moments, activations)
    ways = {
        "full, float32 master": (4 * total, 2 * total, 4 * total, 8 * total, activations(4)),
        "full, bfloat16": (2 * total, 0, 2 * total, 4 * total, activations(2)),
        "LoRA, bfloat16 base": (2 * total + 4 * lora, 0, 4 * lora, 8 * lora, activations(2)),
        # NF4: 4 bits, and 8 + 32/256 bits per block of 64 weights with double quantisation.
        "QLoRA, NF4 base": (
            2 * (total - decoder) + decoder * (0.5 + (1 + 4 / 256) / 64) + 4 * lora,
            0,
            4 * lora,
            8 * lora,
            activations(2),
        ),
    }
    names = ("weights", "autocast_copies", "gradients", "moments", "activations")
    table = {}
    for way, parts in ways.items():
        row = {name: round(value / 1e9, 4) for name, value in zip(names, parts, strict=True)}
        table[way] = {**row, "total": round(sum(parts) / 1e9, 4)}
    return table


def training_flops(
    vlm_config: Any, *, length: int, answer: int, patches: int, checkpointing: bool, vision_frozen: bool
) -> float:
    """Estimate the floating-point operations of training on one sample.

    A forward pass is two operations per weight of a linear layer and position, plus attention in the language model
    (causal: half of all pairs) and the vocabulary at the answer's positions. The backward pass is twice that, and
    checkpointing computes the forward pass once more. Not counted: attention in the vision tower, norms, the optimizer,
    and what `shared_prefix` saves.

    Args:
        vlm_config: the backbone's shapes.
        length: tokens per sample, image and answer included.
        answer: tokens of the answer among them.
        patches: image patches per sample.
        checkpointing: whether activations are recomputed.
        vision_frozen: whether the vision tower only runs forward.
    """
    model = _without_weights(vlm_config)
    text = vlm_config.text_config
    decoder = sum(m.weight.numel() for m in _linears(model.model.language_model.layers))
    vision = sum(m.weight.numel() for m in _linears(model.model.visual.blocks))
    language = (
        2 * decoder * length
        + 2 * text.num_hidden_layers * text.hidden_size * length**2
        + 2 * text.vocab_size * text.hidden_size * answer
    )
    picture = 2 * vision * patches
    passes = 4 if checkpointing else 3
    return float(passes * language + (1 if vision_frozen else passes) * picture)


def _without_weights(vlm_config: Any) -> Any:
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(vlm_config)


def _linears(module: Any) -> list[Any]:
    return [m for m in module.modules() if isinstance(m, torch.nn.Linear)]
