"""The paper's training step as one would first write it: the yardstick of `train_step.py`, used nowhere else.

Sample by sample: PIL images through torchvision, transformers' image processor, the chat template rendered and
tokenised, a loop that hides characters; then the model's own forward with labels, which projects every position onto
the vocabulary. Written from the paper (arXiv 2510.13054).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, ColorJitter, RandomCrop, Resize
from torchvision.transforms.functional import to_pil_image
from transformers import Qwen2VLImageProcessor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionPatchEmbed

from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.backbone.shared_prefix import base_attention
from lerobot_policy_vla0.text.prompt import IMAGE_TOKEN

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
)


class PlainStep:
    """Computes the loss of raw batches on a policy's model.

    Args:
        policy: gives the model and the options; nothing of its own code is used.
        low: per action dimension, the smallest value in the data.
        high: the largest.
    """

    def __init__(self, policy: VLA0Policy, low: Tensor, high: Tensor) -> None:
        self.config = policy.config
        self.model = policy.vlm.model
        self.tokenizer: Any = policy.vlm.tokenizer
        self.low, self.high = low, high
        side = self.config.image_size[0] * self.config.image_size[1]
        self.processor = Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=side * 64)
        self.jitter = ColorJitter(
            self.config.brightness, self.config.contrast, self.config.saturation, self.config.hue
        )

    @contextmanager
    def stock_model(self) -> Iterator[None]:
        """Run transformers' model as it is, forward and backward: its own modules, its layers not compiled."""
        config, tower = self.model.model.language_model.config, self.model.model.visual
        own, embedding = config._attn_implementation, tower.patch_embed
        config._attn_implementation = base_attention(own)
        sizes = tower.config
        tower.patch_embed = Qwen2_5_VisionPatchEmbed(
            sizes.patch_size, sizes.temporal_patch_size, sizes.in_channels, sizes.hidden_size
        )
        tower.patch_embed.proj = embedding.proj
        try:
            with torch.compiler.set_stance("force_eager"):
                yield
        finally:
            config._attn_implementation, tower.patch_embed = own, embedding

    def picture(self, batch: dict[str, Any], row: int, augment: bool) -> Image.Image:
        """Return the cameras of a sample side by side."""
        height, width = self.config.image_size
        tiled = Image.new("RGB", (width * len(self.config.camera_keys), height))
        for place, key in enumerate(self.config.camera_keys):
            image = to_pil_image(batch[key][row].cpu())
            crop = [round(self.config.crop_ratio * side) for side in (image.height, image.width)]
            image = (RandomCrop(crop) if augment else CenterCrop(crop))(image)
            image = Resize((height, width))(image)
            tiled.paste(self.jitter(image) if augment else image, (place * width, 0))
        return tiled

    def sample(self, batch: dict[str, Any], row: int, augment: bool) -> dict[str, Any]:
        """Return ids, labels, pixels and grid of one sample."""
        image = self.processor(images=[self.picture(batch, row, augment)], return_tensors="pt")
        n_image_tokens = int(image["image_grid_thw"][0].prod()) // self.processor.merge_size**2
        unit = (batch["action"][row].cpu() - self.low) / (self.high - self.low)
        answer = " ".join(str(int(value)) for value in (unit * self.config.n_bins).round().flatten().tolist())
        messages = [
            {"role": "system", "content": [{"type": "text", "text": self.config.filled_system_prompt}]},
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": batch["task"][row]}],
            },
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
        text = self.tokenizer.apply_chat_template(messages, chat_template=TEMPLATE, tokenize=False)
        text = text.replace(IMAGE_TOKEN, IMAGE_TOKEN * n_image_tokens)
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        start = len(ids) - len(answer) - 2  # one token per character; the end token and the newline follow
        labels = [-100] * start + ids[start:]
        if augment and random.random() >= self.config.action_mask_skip_prob:
            hidden = self.tokenizer.encode("?", add_special_tokens=False)[0]
            ratio = random.uniform(0, self.config.action_mask_max_ratio)
            for place in random.sample(range(start, len(ids) - 2), int(ratio * len(answer))):
                ids[place], labels[place] = hidden, -100
        return {"ids": ids, "labels": labels, **image}

    def loss(self, batch: dict[str, Any], *, augment: bool = True) -> Tensor:
        """Return the loss of a raw batch, images in [0, 1] and actions in the robot's units."""
        rows = [self.sample(batch, row, augment) for row in range(len(batch["task"]))]
        width = max(len(row["ids"]) for row in rows)
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([row["ids"] + [pad] * (width - len(row["ids"])) for row in rows])
        labels = torch.tensor([row["labels"] + [-100] * (width - len(row["labels"])) for row in rows])
        mask = torch.tensor([[1] * len(row["ids"]) + [0] * (width - len(row["ids"])) for row in rows])
        device = next(self.model.parameters()).device
        output = self.model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            labels=labels.to(device),
            pixel_values=torch.cat([row["pixel_values"] for row in rows]).to(device),
            image_grid_thw=torch.cat([row["image_grid_thw"] for row in rows]).to(device),
            mm_token_type_ids=(ids == self.model.config.image_token_id).int().to(device),
        )
        loss: Tensor = output.loss
        return loss
