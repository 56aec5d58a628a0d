"""Memory of a training step: measured on this process or accelerator, computed for the 3B model."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import torch

from lerobot_policy_vla0.testing import build_tiny_tokenizer
from lerobot_policy_vla0.training import MAX_LOGITS

LORA_RANK = 16


def reset_peak(device: torch.device) -> None:
    """Forget the peak so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak of the resident set


def peak_mb(device: torch.device) -> int:
    """Return the peak since `reset_peak` in MiB: allocated on the accelerator, or resident in this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated()) // 2**20
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


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


def memory_table(batch: int, length: int = 413, patches: int = 512) -> dict[str, dict[str, float]]:
    """Compute what fine-tuning the 3B model takes on one GPU, in GB (1e9 bytes).

    Counts weights, gradients, AdamW's two moments, autocast's bfloat16 copies of float32 weights, and activations with
    gradient checkpointing: each block's input, one decoder layer recomputed, one chunk of logits (twice in float32,
    once in bfloat16, and their gradient). Not counted: fragmentation, the CUDA context, workspaces.

    Args:
        batch: samples per GPU.
        length: tokens per sample (208 of prompt and image, 205 of answer).
        patches: image patches per sample.
    """
    from transformers import AutoModelForImageTextToText

    config = vlm_config_3b(build_tiny_tokenizer())
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    text, vision = config.text_config, config.vision_config
    total = sum(p.numel() for p in model.parameters())
    linears = [m for m in model.model.language_model.layers.modules() if isinstance(m, torch.nn.Linear)]
    decoder = sum(m.weight.numel() for m in linears)
    lora = sum(LORA_RANK * (m.in_features + m.out_features) for m in linears)

    tokens = batch * length
    layer = 2 * tokens * (3 * text.intermediate_size + 6 * text.hidden_size)
    logits = MAX_LOGITS * (2 + 3 * 4)

    def activations(residual: int) -> float:
        kept = residual * (
            tokens * text.hidden_size * text.num_hidden_layers
            + batch * patches * vision.hidden_size * vision.depth
        )
        return kept + layer + logits

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
        row = {name: round(value / 1e9, 2) for name, value in zip(names, parts, strict=True)}
        table[way] = {**row, "total": round(sum(parts) / 1e9, 1)}
    return table
