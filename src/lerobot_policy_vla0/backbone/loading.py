"""Decides which backbones fit, and reads a backbone's config and tokenizer before its weights are loaded.

A backbone is a Hub repo or local folder with weights, the random ``tiny`` model, or the ``vlm/`` folder of a saved
policy, which holds config and tokenizer only.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig

from lerobot_policy_vla0.backbone.quantization import check_inference_quantization, quantizes_for_inference
from lerobot_policy_vla0.backbone.tiny import build_tiny_tokenizer, tiny_vlm_config
from lerobot_policy_vla0.configuration_vla0 import TINY, VLA0Config
from lerobot_policy_vla0.errors import CheckpointError, ConfigError
from lerobot_policy_vla0.text.codec import ActionTokens

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


#: Folder of a checkpoint with the backbone's config and tokenizer: loading needs no Hub repo.
VLM_FOLDER = "vlm"

#: transformers' ``model_type`` of the supported families, with the names that users know.
FAMILIES = {"qwen2_vl": "Qwen2-VL", "qwen2_5_vl": "Qwen2.5-VL"}


@dataclass(frozen=True)
class Backbone:
    """What the prompt needs to know about a backbone.

    Attributes:
        patch_size: side of a patch in pixels.
        merge_size: patches along each side of one image token.
        pad_token_id: id for padding.
        tokenizer_json: the content of ``tokenizer.json``.
    """

    patch_size: int
    merge_size: int
    pad_token_id: int
    tokenizer_json: str


def check_family(vlm_config: PretrainedConfig, name: str) -> None:
    """Refuse a backbone that this package does not support.

    Qwen3-VL does not fit: its decoder layers also take features from inside the vision tower (DeepStack), which the
    decoders would have to pass on, and it normalises pixels differently.

    Raises:
        ConfigError: naming the family, or the sliding-window layers, and what is supported.
    """
    supported = " and ".join(FAMILIES.values())
    family = str(vlm_config.model_type)
    if family not in FAMILIES:
        raise ConfigError(
            f"vlm_model_name={name!r} is a {family!r} model, which is not supported: expected {supported}, of any "
            "size. Use e.g. Qwen/Qwen2.5-VL-3B-Instruct."
        )
    text: Any = vlm_config.get_text_config()
    if "sliding_attention" in (getattr(text, "layer_types", None) or ()):
        raise ConfigError(
            f"vlm_model_name={name!r} has layers with sliding-window attention (use_sliding_window=true in its "
            "config), which the decoders do not mask. The released models have none; set use_sliding_window to false."
        )


def load_description(
    config: VLA0Config, stored: Path | None = None, revision: str | None = None
) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Return the transformers config and the tokenizer of a policy's backbone, without its weights.

    Args:
        config: names the backbone.
        stored: the ``vlm/`` folder of a checkpoint; it is read instead of ``vlm_model_name``.
        revision: Hub revision of the backbone; None is the newest.

    Raises:
        CheckpointError: if a file is missing in ``stored``.
        ConfigError: if the family is not supported.
    """
    if stored is not None:
        for name in ("config.json", "tokenizer.json"):
            if not (stored / name).is_file():
                raise CheckpointError(
                    f"the checkpoint has no {VLM_FOLDER}/{name} (looked in {stored}); it was not saved by this "
                    "package or is incomplete. Re-download it, or start from a backbone with --policy.type=vla0."
                )
        vlm_config = AutoConfig.from_pretrained(stored)
        check_family(vlm_config, str(stored))
        return vlm_config, AutoTokenizer.from_pretrained(stored)
    if config.vlm_model_name == TINY:
        tokenizer = build_tiny_tokenizer()
        return tiny_vlm_config(config.tiny, tokenizer), tokenizer
    vlm_config = AutoConfig.from_pretrained(config.vlm_model_name, revision=revision or "main")
    check_family(vlm_config, config.vlm_model_name)
    return vlm_config, AutoTokenizer.from_pretrained(config.vlm_model_name, revision=revision or "main")


def describe_backbone(config: VLA0Config) -> Backbone:
    """Return what the prompt step needs to know about the backbone of a policy config."""
    vlm_config, tokenizer = load_description(config)
    tokens = ActionTokens.from_tokenizer(tokenizer)
    backend: Any = tokenizer
    return Backbone(
        patch_size=int(vlm_config.vision_config.patch_size),
        merge_size=int(vlm_config.vision_config.spatial_merge_size),
        pad_token_id=tokens.pad,
        tokenizer_json=backend.backend_tokenizer.to_str(),
    )


def quantization_options(config: VLA0Config, stored: Path | None = None) -> dict[str, Any]:
    """Return transformers' options that load the language model's linear layers in 4 bits; empty if it is off.

    The vision tower, embeddings and norms keep ``param_dtype``: they are small, and the vision tower loses most
    by quantization. A quantisation for inference is only checked: it comes after the weights of a policy are loaded.

    Raises:
        ConfigError: without CUDA or bitsandbytes, or if the weights are not a backbone's (``stored``, ``tiny``). For
            inference: if the weights are a backbone's, or as `check_inference_quantization`.
    """
    if config.quantization is None:
        return {}
    what = f"quantization={config.quantization!r}"
    if quantizes_for_inference(config):
        if stored is None:
            raise ConfigError(
                f"{what} is for the inference of a trained policy, which is quantised when it is loaded, but this one "
                f"is new (vlm_model_name={config.vlm_model_name!r}). Load a checkpoint (--policy.path=...), or leave "
                "quantization unset; 'nf4' is for training an adapter."
            )
        check_inference_quantization(config)
        return {}
    if stored is not None or config.vlm_model_name == TINY:
        raise ConfigError(
            f"{what} reads the weights of a backbone from the Hub or a folder, but these come from "
            + ("a trained policy" if stored is not None else f"vlm_model_name={TINY!r}")
            + ". Leave quantization unset here."
        )
    if not str(config.device).startswith("cuda"):
        raise ConfigError(
            f"{what} needs CUDA, but device={config.device!r}. Set quantization to null to use this device; an adapter "
            "trained on a 4-bit base also runs on the base in full precision."
        )
    if find_spec("bitsandbytes") is None:
        raise ConfigError(f"{what} needs bitsandbytes: pip install bitsandbytes.")
    return {
        "device_map": {"": config.device},
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=config.quantization,
            bnb_4bit_compute_dtype=getattr(torch, config.dtype),
            bnb_4bit_use_double_quant=True,
            llm_int8_skip_modules=["visual", "lm_head"],  # also applies to 4 bits
        ),
    }
