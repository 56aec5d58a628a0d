"""The backbone: loads or builds a Qwen-VL with its tokenizer, unmodified, and runs it.

Knows dtype, attention, freezing and checkpointing; knows nothing about actions, robots or LeRobot's
batches. A backbone is one of: a Hub repo or local folder with weights, the ``tiny`` random model, or
the ``vlm/`` folder of a saved policy (config and tokenizer; the policy's own file holds the weights).
Which families of models fit, and why others do not, is in `FAMILIES` and `check_family`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
)

from lerobot_policy_vla0.attention import PrefixLayout, can_share_prefix, use_own_attention
from lerobot_policy_vla0.codec import ActionTokens
from lerobot_policy_vla0.errors import CheckpointError, ConfigError
from lerobot_policy_vla0.patch_embedding import use_matrix_product
from lerobot_policy_vla0.prompt import IMAGE_TOKEN, rope_positions
from lerobot_policy_vla0.shared_prefix import PackedBatch, pack
from lerobot_policy_vla0.testing.tiny_vlm import TINY, build_tiny_tokenizer, tiny_vlm_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from lerobot_policy_vla0.configuration_vla0 import VLA0Config

#: Folder inside a policy checkpoint that makes it independent of the base model's repo.
VLM_FOLDER = "vlm"

#: transformers' ``model_type`` of the families that fit, of any size, with their names.
FAMILIES = {"qwen2_vl": "Qwen2-VL", "qwen2_5_vl": "Qwen2.5-VL"}


@dataclass(frozen=True)
class Backbone:
    """What the prompt needs to know about a backbone before its weights are loaded.

    Attributes:
        patch_size: side of a patch in pixels.
        merge_size: patches along each side of one image token.
        pad_token_id: id for padding.
        tokenizer_json: the tokenizer's ``tokenizer.json``.
    """

    patch_size: int
    merge_size: int
    pad_token_id: int
    tokenizer_json: str


def check_family(vlm_config: PretrainedConfig, name: str) -> None:
    """Refuse a backbone that this package's prompt, images and decoders were not made for.

    Qwen3-VL is one: its decoder layers also take features from inside the vision tower (DeepStack), which passes over a
    static cache would have to carry, and it normalises pixels otherwise.

    Args:
        vlm_config: of the backbone.
        name: what the user called it, for the message.

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
        stored: the ``vlm/`` folder of a checkpoint, which then wins over the name.
        revision: Hub revision of the backbone; None is the newest.

    Raises:
        CheckpointError: if ``stored`` lacks its files.
        ConfigError: if the backbone is of a family that does not fit.
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
    """Return what the prompt step needs of the backbone named by a policy config."""
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
    """Return what transformers needs to load the language model's linear layers in 4 bits; nothing if it is off.

    The vision tower, embeddings and norms keep ``param_dtype``: they are small, and images suffer first.

    Args:
        config: its ``quantization``.
        stored: the ``vlm/`` folder of a checkpoint, if weights come from there.

    Raises:
        ConfigError: without CUDA or bitsandbytes, or for weights that are not a backbone's.
    """
    if config.quantization is None:
        return {}
    what = f"quantization={config.quantization!r}"
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
            llm_int8_skip_modules=["visual", "lm_head"],  # transformers' name for 4 bits too
        ),
    }


class VLM(nn.Module):
    """A vision-language model, its token ids, and the three ways the policy uses it.

    Args:
        model: transformers' model, as loaded or built.
        tokenizer: its tokenizer, saved along with a checkpoint.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.model: Any = model
        self.tokenizer = tokenizer
        self.tokens = ActionTokens.from_tokenizer(tokenizer)
        self.image_token_id = int(tokenizer.encode(IMAGE_TOKEN, add_special_tokens=False)[0])
        # Backbones ship sampling settings and a repetition penalty; decoding takes every setting from
        # the policy's config instead.
        self.model.generation_config = GenerationConfig()

    # ------------------------------------------------------------------ building

    @classmethod
    def from_config(cls, config: VLA0Config, stored: Path | None = None, revision: str | None = None) -> VLM:
        """Build the backbone a policy config asks for.

        Args:
            config: names the backbone, its precision, attention and freezing.
            stored: the ``vlm/`` folder of a checkpoint; then nothing is downloaded and the weights are
                left for the caller to load.
            revision: Hub revision of the backbone; None is the newest.

        Raises:
            CheckpointError: if ``stored`` lacks a file.
            ConfigError: if the family of models does not fit, the attention is not installed, or ``quantization``
                cannot be done here, or not to these weights.
        """
        dtype = getattr(torch, config.param_dtype)
        quantized = quantization_options(config, stored)
        vlm_config, tokenizer = load_description(config, stored, revision)
        options: dict[str, Any] = {"dtype": dtype, "attn_implementation": config.attn_implementation}
        try:
            if stored is not None or config.vlm_model_name == TINY:
                with torch.random.fork_rng(devices=[]):  # building must not disturb the training seed
                    torch.manual_seed(config.tiny.seed)
                    model = AutoModelForImageTextToText.from_config(vlm_config, **options)
            else:
                model = AutoModelForImageTextToText.from_pretrained(
                    config.vlm_model_name, revision=revision or "main", **options, **quantized
                )
        except (ImportError, ValueError) as error:
            if "flash" not in config.attn_implementation:
                raise
            raise ConfigError(
                f"attn_implementation={config.attn_implementation!r} cannot be used here: {error} Install it, or set "
                "attn_implementation to 'sdpa', which needs nothing."
            ) from error
        vlm = cls(model, tokenizer)
        use_own_attention(model.model.language_model.config)
        use_matrix_product(vlm.vision_tower)
        if config.gradient_checkpointing:
            vlm.model.gradient_checkpointing_enable({"use_reentrant": False})
        if config.freeze_vision_encoder:
            vlm.vision_tower.requires_grad_(False)
        if config.compile_model:
            vlm._compile_layers()
        return vlm

    def save_description(self, folder: Path) -> None:
        """Write config and tokenizer (not the weights) to ``folder``, for loading without the base model.

        Only ``*.json`` files are written, because LeRobot uploads no others.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.model.config.save_pretrained(folder)
        template, self.tokenizer.chat_template = self.tokenizer.chat_template, None
        try:
            self.tokenizer.save_pretrained(folder)
        finally:
            self.tokenizer.chat_template = template

    def _compile_layers(self) -> None:
        """Compile every layer on its first call: they are alike, so what one compiles to serves all.

        In place: names of weights do not change. Prompts and answers differ in length from batch to batch, hence
        symbolic sizes from the start. `decoding` runs the layers as they are (see `VLA0Policy._predict`).
        """
        tower: Any = self.vision_tower
        for layer in (*tower.blocks, *self.model.model.language_model.layers):
            layer.compile(dynamic=True)

    # ------------------------------------------------------------------ parts

    @property
    def vision_tower(self) -> nn.Module:
        """The image encoder."""
        tower: nn.Module = self.model.model.visual
        return tower

    @property
    def vocabulary(self) -> tuple[nn.Module, nn.Module]:
        """The token embedding and the vocabulary projection, which share their weights in most backbones."""
        return self.model.get_input_embeddings(), self.model.lm_head

    @property
    def revision(self) -> str | None:
        """The Hub commit the weights came from; None for a local folder, a checkpoint or the tiny model."""
        commit: str | None = getattr(self.model.config, "_commit_hash", None)
        return commit

    @property
    def layer_classes(self) -> tuple[str, str]:
        """Class names of the decoder layers and of the image encoder's blocks: what FSDP shards one by one."""
        tower: Any = self.vision_tower
        return (
            type(self.model.model.language_model.layers[0]).__name__,
            type(tower.blocks[0]).__name__,
        )

    @property
    def tied_names(self) -> list[str]:
        """Names in the model of weights that the vocabulary projection shares with the embedding, all but its own."""
        tied: dict[str, str] = self.model.all_tied_weights_keys  # the sharing name to the source's
        return sorted(set(tied.values()))

    @property
    def vocabulary_size(self) -> int:
        """Rows of the vocabulary projection."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def patch_size(self) -> int:
        """Side of one patch in pixels."""
        return int(self.model.config.vision_config.patch_size)

    @property
    def merge_size(self) -> int:
        """Patches along each side that are merged into one image token."""
        return int(self.model.config.vision_config.spatial_merge_size)

    # ------------------------------------------------------------------ running

    def hidden_states(
        self, ids: Tensor, mask: Tensor, pixel_values: Tensor, grid_thw: Tensor, *, first: int = 0
    ) -> Tensor:
        """Return the last hidden states of whole sequences, without the vocabulary projection.

        What all rows begin with is computed once, if no state of it is asked for.

        Args:
            ids: ``(B, L)`` int64, prompt and answer.
            mask: ``(B, L)`` bool, false on padding.
            pixel_values: ``(patches, C*t*p*p)`` float.
            grid_thw: ``(images, 3)`` int64; all images have one size.
            first: the first column whose state is wanted.

        Returns:
            ``(B, L - first, hidden)``.
        """
        merge = self.merge_size
        _, height, width = grid_thw[0].tolist()
        positions, _ = rope_positions(
            ids, mask, image_token_id=self.image_token_id, grid=(height // merge, width // merge)
        )
        if can_share_prefix(self.model.model.language_model.config):
            packed = pack(ids, mask, positions, stop=self.image_token_id)
            if packed is not None and packed.has_columns(first):
                states = self._packed_states(packed, pixel_values, grid_thw)
                return packed.columns(states, first, ids.shape[1])
        output = self.model.model(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=positions,
            pixel_values=pixel_values,
            image_grid_thw=grid_thw,
            use_cache=False,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden[:, first:]

    def _packed_states(self, packed: PackedBatch, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
        """Return the last hidden states of a packed batch: ``(P + B*S, hidden)``."""
        model = self.model.model
        embeddings = model.language_model.embed_tokens(packed.ids)
        features = model.get_image_features(pixel_values, grid_thw).pooler_output
        pictures = torch.cat(list(features)).to(embeddings.dtype)
        is_image = packed.ids == self.image_token_id
        embeddings = embeddings.masked_scatter(is_image.unsqueeze(-1), pictures)
        output = model.language_model(
            inputs_embeds=embeddings,
            attention_mask={"full_attention": None},  # the layout says it all
            position_ids=packed.positions,
            use_cache=False,
            prefix_layout=PrefixLayout(packed.prefix, len(packed.begins)),
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Project hidden states ``(..., hidden)`` onto the vocabulary ``(..., V)``."""
        out: Tensor = self.model.lm_head(hidden)
        return out
