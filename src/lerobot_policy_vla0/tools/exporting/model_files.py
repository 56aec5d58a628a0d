"""The files beside the weights that make a folder a transformers model: config, generation config, processor, template.

The picture that a client sends is already cropped, resized and tiled. The processor's limits on pixels are such that it
does not resize that picture again.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lerobot_policy_vla0.output_files import write_json, write_text

if TYPE_CHECKING:
    from lerobot_policy_vla0.configuration_vla0 import VLA0Config
    from lerobot_policy_vla0.modeling_vla0 import VLA0Policy

CHAT_TEMPLATE_FILE = "chat_template.jinja"
PREPROCESSOR_FILE = "preprocessor_config.json"

#: Renders `text.prompt.chat_text` from messages: contents one after the other, with nothing between or trimmed.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'text' -%}
                {{- part['text'] -}}
            {%- elif part['type'] in ('image', 'image_url') -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- else -%}
                {{- raise_exception('this model reads text and images, not ' + part['type']) -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def write_model_files(
    folder: Path, skeleton: VLA0Policy, config: VLA0Config, description: Path, dtype: torch.dtype
) -> None:
    """Write everything but the weights of a transformers model.

    Args:
        folder: gets the files.
        skeleton: the policy on the ``meta`` device.
        config: the policy's options.
        description: the policy's folder with config and tokenizer of its backbone.
        dtype: precision of the weights.
    """
    write_config(folder, skeleton, dtype)
    for file in description.iterdir():
        if file.name != "config.json":
            shutil.copyfile(file, folder / file.name)
    write_generation_config(folder, skeleton, config)
    write_processor(folder, skeleton, config)


def write_config(folder: Path, skeleton: VLA0Policy, dtype: torch.dtype) -> None:
    """Write ``config.json`` as transformers does beside weights: with their precision and the model's class."""
    model = skeleton.vlm.model
    described: Any = copy.deepcopy(model.config)
    described.architectures = [type(model).__name__]
    for part in (described, described.text_config, described.vision_config):
        part.dtype = dtype  # engines read the first that they find
    described.save_pretrained(folder)


def write_generation_config(folder: Path, skeleton: VLA0Policy, config: VLA0Config) -> None:
    """Write the sampling that engines take if a request says nothing: the policy's, not the base model's."""
    write_json(
        folder / "generation_config.json",
        {
            "do_sample": config.temperature > 0,
            "temperature": config.temperature,
            "repetition_penalty": config.repetition_penalty,
            # Qwen's own settings end a text with <|endoftext|> too. An engine's grammar would then let that token cut
            # the last number of an answer short. In this package's grammar only <|im_end|> ends it.
            "eos_token_id": skeleton.vlm.tokens.end,
            "pad_token_id": skeleton.vlm.tokens.pad,
        },
    )


def write_processor(folder: Path, skeleton: VLA0Policy, config: VLA0Config) -> None:
    """Write the settings of the image processor, and the chat template."""
    images = skeleton.image_settings
    height, width = picture_size(config)
    write_json(
        folder / PREPROCESSOR_FILE,
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "patch_size": images.patch_size,
            "merge_size": images.merge_size,
            "temporal_patch_size": images.temporal_patch_size,
            "image_mean": list(images.image_mean),
            "image_std": list(images.image_std),
            # The policy's picture passes unchanged. Engines reserve memory for the largest picture, which it is.
            "min_pixels": (images.patch_size * images.merge_size) ** 2,
            "max_pixels": height * width,
        },
    )
    write_text(folder / CHAT_TEMPLATE_FILE, CHAT_TEMPLATE)


def picture_size(config: VLA0Config) -> tuple[int, int]:
    """Return height and width of one picture as it is sent, in pixels."""
    height, width = config.image_size
    return height, width * len(config.camera_keys) if config.tile_images else width
