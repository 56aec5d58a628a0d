"""Loads or builds the backbone, a Qwen-VL with its tokenizer, and runs it.

Precision, attention, freezing and gradient checkpointing are set here; `backbones` decides which models fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, GenerationConfig

from lerobot_policy_vla0.backbone import loading as backbones
from lerobot_policy_vla0.backbone.patch_embedding import use_matrix_product
from lerobot_policy_vla0.backbone.quantization import quantize_language_model
from lerobot_policy_vla0.backbone.shared_prefix import (
    PackedBatch,
    PrefixLayout,
    can_share_prefix,
    pack,
    use_own_attention,
)
from lerobot_policy_vla0.configuration_vla0 import TINY, VLA0Config
from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.text.codec import ActionTokens
from lerobot_policy_vla0.text.prompt import IMAGE_TOKEN, rope_positions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class VLM(nn.Module):
    """A vision-language model with its tokenizer and token ids."""

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.model: Any = model
        self.tokenizer = tokenizer
        self.tokens = ActionTokens.from_tokenizer(tokenizer)
        self.image_token_id = int(tokenizer.encode(IMAGE_TOKEN, add_special_tokens=False)[0])
        # Backbones ship sampling settings and a repetition penalty; decoding uses the policy's config only.
        self.model.generation_config = GenerationConfig()

    # ------------------------------------------------------------------ building

    @classmethod
    def from_config(cls, config: VLA0Config, stored: Path | None = None, revision: str | None = None) -> VLM:
        """Build the backbone a policy config asks for.

        Args:
            config: names the backbone, its precision, attention and freezing.
            stored: the ``vlm/`` folder of a checkpoint: nothing is downloaded, and the caller loads the weights.
            revision: Hub revision of the backbone; None is the newest.

        Raises:
            CheckpointError: if a file is missing in ``stored``.
            ConfigError: if the family is not supported, the attention is not installed, or ``quantization`` is not
                possible on this device or with these weights. One for inference is checked here, and applied by
                `quantize` when the caller has loaded the weights.
        """
        dtype = getattr(torch, config.param_dtype)
        quantized = backbones.quantization_options(config, stored)
        vlm_config, tokenizer = backbones.load_description(config, stored, revision)
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

    def quantize(self, config: VLA0Config) -> None:
        """Quantise the language model for inference, see `quantization.quantize_language_model`."""
        quantize_language_model(self.model.model.language_model, config)

    def save_description(self, folder: Path) -> None:
        """Write config and tokenizer to ``folder``, as ``*.json`` files only: LeRobot uploads no others."""
        folder.mkdir(parents=True, exist_ok=True)
        self.model.config.save_pretrained(folder)
        template, self.tokenizer.chat_template = self.tokenizer.chat_template, None
        try:
            self.tokenizer.save_pretrained(folder)
        finally:
            self.tokenizer.chat_template = template

    def _compile_layers(self) -> None:
        """Compile every layer on its first call; all layers share the compiled code.

        This happens in place, so the weights keep their names. Sizes are symbolic because the length of prompts and
        answers differs between batches. Decoding does not use the compiled layers (see `VLA0Policy._predict`).
        """
        tower: Any = self.vision_tower
        for layer in (*tower.blocks, *self.model.model.language_model.layers):
            layer.compile(dynamic=True)

    # ------------------------------------------------------------------ parts

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Ids that end an answer in words, as in the generation settings that Qwen-VL models ship with."""
        text_end = self.tokenizer.encode("<|endoftext|>", add_special_tokens=False)
        return (self.tokens.end, *(int(id_) for id_ in text_end if len(text_end) == 1))

    def text_of(self, ids: Tensor) -> str:
        """Return the text of an answer's ids ``(A,)``, without special tokens."""
        text: str = self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        return text

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
        """Class names of the decoder layers and the image encoder's blocks, which FSDP shards one by one."""
        tower: Any = self.vision_tower
        return (
            type(self.model.model.language_model.layers[0]).__name__,
            type(tower.blocks[0]).__name__,
        )

    @property
    def tied_names(self) -> dict[str, str]:
        """Name of each weight that is shared with another one, and that one's name, as transformers lists them."""
        return dict(self.model.all_tied_weights_keys)

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
        self,
        ids: Tensor,
        mask: Tensor,
        pixel_values: Tensor,
        grid_thw: Tensor,
        *,
        first: int = 0,
        size: tuple[int, int, int] | None = None,
        prefix: Sequence[int] | None = None,
    ) -> Tensor:
        """Return the last hidden states of whole sequences, without the vocabulary projection.

        The common prefix of all rows is computed once, unless ``first`` lies inside it.

        Args:
            ids: ``(B, L)`` int64, prompt and answer.
            mask: ``(B, L)`` bool, false on padding.
            pixel_values: ``(patches, C*t*p*p)`` float.
            grid_thw: ``(images, 3)`` int64; all images have one size.
            first: the first column whose state is returned.
            size: patches of each image along time, height and width; None reads them from ``grid_thw``.
            prefix: `shared_prefix.prefix_facts` of the prompts. What is None is read from the device, for which the
                host waits.

        Returns:
            ``(B, L - first, hidden)``.
        """
        merge = self.merge_size
        _, height, width = grid_thw[0].tolist() if size is None else size
        positions, _ = rope_positions(
            ids, mask, image_token_id=self.image_token_id, grid=(height // merge, width // merge)
        )
        if can_share_prefix(self.model.model.language_model.config):
            packed = pack(ids, mask, positions, stop=self.image_token_id, facts=prefix)
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

    def embed(self, ids: Tensor, is_image: Tensor, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
        """Return the language model's inputs ``(B, L, hidden)``: token embeddings, and image features at placeholders.

        Args:
            ids: ``(B, L)`` int64.
            is_image: ``(B, L)`` bool, true at the placeholders.
            pixel_values: ``(patches, C*t*p*p)`` float, all images in the order of the placeholders.
            grid_thw: ``(images, 3)`` int64.
        """
        embeddings: Tensor = self.model.model.language_model.embed_tokens(ids)
        features = self.model.model.get_image_features(pixel_values, grid_thw).pooler_output
        pictures = torch.cat(list(features)).to(embeddings.dtype)  # (image tokens, hidden)
        return embeddings.masked_scatter(is_image.unsqueeze(-1), pictures)

    def _packed_states(self, packed: PackedBatch, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
        """Return the last hidden states of a packed batch: ``(P + B*S, hidden)``."""
        is_image = packed.ids == self.image_token_id
        output = self.model.model.language_model(
            inputs_embeds=self.embed(packed.ids, is_image, pixel_values, grid_thw),
            attention_mask={"full_attention": None},  # `PrefixLayout` replaces the mask
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
