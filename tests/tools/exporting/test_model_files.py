"""The processor and the chat template of an export give the engine exactly the policy's pictures and prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.backbones import backbone_config
from helpers.exports import messages, two_cameras, write_png
from helpers.tiny import make_raw_batch, make_stats
from PIL import Image
from transformers import AutoProcessor

from lerobot_policy_vla0 import VLA0Config, VLA0Policy, make_vla0_pre_post_processors
from lerobot_policy_vla0.backbone.tiny import build_tiny_tokenizer
from lerobot_policy_vla0.checkpoints.policy_folder import build_skeleton
from lerobot_policy_vla0.observations.images import patchify
from lerobot_policy_vla0.tools.exporting.model_files import picture_size, write_model_files

STATE = "50 50"  # of the raw batch, whose state is in the middle of its range


def load_processor(folder: Path, config: VLA0Config, tokenizer: Any) -> Any:
    """Write the files of an export, without weights, and load them as an engine does."""
    description = folder / "vlm"
    backbone_config(tokenizer, len(tokenizer)).save_pretrained(description)
    tokenizer.save_pretrained(description)
    config.vlm_model_name = str(description)
    skeleton = build_skeleton(VLA0Policy, config, description)
    write_model_files(folder, skeleton, config, description, torch.float32)
    return AutoProcessor.from_pretrained(folder)


def picture(config: VLA0Config, folder: Path, seed: int) -> tuple[torch.Tensor, Image.Image]:
    """Return a random picture as the policy sends it, and as an engine reads it."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (3, *picture_size(config)), dtype=torch.uint8, generator=generator)
    return pixels, Image.open(write_png(pixels, folder / f"{seed}.png"))


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("size", [(28, 28), (56, 56), (112, 112), (224, 448), (448, 28)])
def test_the_engines_pixels_are_the_policys(tmp_path: Path, size: tuple[int, int], tiled: bool) -> None:
    config = two_cameras(image_size=size, tile_images=tiled)
    processor = load_processor(tmp_path, config, build_tiny_tokenizer())
    pixels, image = picture(config, tmp_path, 0)
    given = processor.image_processor(images=[image], return_tensors="pt")
    height, width = pixels.shape[1:]
    assert given["image_grid_thw"].tolist() == [[1, height // 14, width // 14]]
    assert torch.equal(given["pixel_values"], patchify(pixels[None], config.image_settings())[0])


def check_tokens(folder: Path, tokenizer: Any, **options: Any) -> None:
    """Compare an engine's prompt with the policy's, id by id."""
    config = two_cameras(**options)
    processor = load_processor(folder, config, tokenizer)
    raw = make_raw_batch(config, 1)
    raw["task"] = [" Push  the {red} button!\n Now. "]
    preprocess, _ = make_vla0_pre_post_processors(config, make_stats())
    expected = preprocess(raw)["observation.language.tokens"]
    images = [picture(config, folder, seed)[1] for seed in range(1 if config.tile_images else 2)]
    chat = messages(config, len(images), state=STATE if config.state_in_prompt else "", task=raw["task"][0])
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    given = processor(text=[text], images=images, return_tensors="pt")["input_ids"]
    assert given.tolist() == expected.tolist()
    assert (given == processor.image_token_id).sum() == 8

    # An answer that has begun, which a client continues.
    begun = [*chat, {"role": "assistant", "content": [{"type": "text", "text": "12 3"}]}]
    went_on = processor.apply_chat_template(begun, continue_final_message=True)
    assert went_on == f"{text}12 3"


OPTIONS: dict[str, dict[str, Any]] = {
    "tiled": {},
    "not tiled": {"tile_images": False},
    "state": {"state_in_prompt": True},
    "numbered": {"add_vision_id": True, "tile_images": False},
    "all": {"add_vision_id": True, "tile_images": False, "state_in_prompt": True},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_the_engines_prompt_is_the_policys(tmp_path: Path, options: str) -> None:
    check_tokens(tmp_path, build_tiny_tokenizer(), **OPTIONS[options])


def test_the_engines_prompt_is_the_policys_with_the_real_tokenizer(
    tmp_path: Path, qwen_tokenizer: Any
) -> None:
    check_tokens(tmp_path, qwen_tokenizer, **OPTIONS["all"])


def test_the_template_takes_plain_text_and_refuses_what_the_model_cannot_read(tmp_path: Path) -> None:
    tokenizer = load_processor(tmp_path, two_cameras(), build_tiny_tokenizer()).tokenizer
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": " a "}]
    expected = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n a <|im_end|>\n"
    assert tokenizer.apply_chat_template(chat, tokenize=False) == expected
    chat[1] = {"role": "user", "content": [{"type": "audio"}]}  # type: ignore[dict-item]
    with pytest.raises(Exception, match="this model reads text and images, not audio"):
        tokenizer.apply_chat_template(chat, tokenize=False)
