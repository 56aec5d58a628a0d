"""A LIBERO sample as the protocol writes it: every literal the parity tests compare with, and where it comes from.

Nothing here was produced by the package. Token ids were looked up piece by piece in the vocabulary of Qwen2.5's
``tokenizer.json`` (digit ``d`` is ``15 + d``, a space 220); integers were worked out from the dataset's statistics with
``round((a - min) / (max - min) * 1000)``; the pictures are formulas of row and column.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

IMAGE, WRIST = "observation.images.image", "observation.images.image2"  # LIBERO's cameras in LeRobot
TASK = "put the white mug on the plate"
FPS = 10

#: Of the paper's LIBERO training set.
ACTION_MIN = [-0.9375, -0.9375, -0.9375, -0.258214, -0.375, -0.3675, -1.0]
ACTION_MAX = [0.9375, 0.9375, 0.9375, 0.355714, 0.375, 0.375, 1.0]

# ---------------------------------------------------------------- the prompt

#: The system message with H=8, D=7, H*D=56, B=1000 in it.
SYSTEM = (
    "Analyze the input image and predict robot actions for the next 8 timesteps. Each action has 7 dimensions. Output "
    "a single sequence of 56 integers (0-1000 each), representing the 8 timesteps sequentially. Provide only space "
    "separated numbers. Nothing else."
)

_BEFORE_IMAGE: list[tuple[str, int]] = [
    ("<|im_start|>", 151644), ("system", 8948), ("\n", 198),
    ("An", 2082), ("alyze", 55856), (" the", 279), (" input", 1946), (" image", 2168), (" and", 323),
    (" predict", 7023), (" robot", 12305), (" actions", 6168), (" for", 369), (" the", 279), (" next", 1790),
    (" ", 220), ("8", 23), (" t", 259), ("imesteps", 76632), (".", 13),
    (" Each", 8886), (" action", 1917), (" has", 702), (" ", 220), ("7", 22), (" dimensions", 15336), (".", 13),
    (" Output", 9258), (" a", 264), (" single", 3175), (" sequence", 8500), (" of", 315),
    (" ", 220), ("5", 20), ("6", 21), (" integers", 25780),
    (" (", 320), ("0", 15), ("-", 12), ("1", 16), ("0", 15), ("0", 15), ("0", 15), (" each", 1817), ("),", 701),
    (" representing", 14064), (" the", 279), (" ", 220), ("8", 23), (" t", 259), ("imesteps", 76632),
    (" sequentially", 94559), (".", 13),
    (" Provide", 39565), (" only", 1172), (" space", 3550), (" separated", 18663), (" numbers", 5109), (".", 13),
    (" Nothing", 12064), (" else", 770), (".", 13), ("<|im_end|>", 151645), ("\n", 198),
    ("<|im_start|>", 151644), ("user", 872), ("\n", 198),
    ("<|vision_start|>", 151652),
]  # fmt: skip
_AFTER_IMAGE: list[tuple[str, int]] = [
    ("<|vision_end|>", 151653),
    ("put", 628), (" the", 279), (" white", 4158), (" mug", 51489), (" on", 389), (" the", 279), (" plate", 11968),
    ("<|im_end|>", 151645), ("\n", 198),
    ("<|im_start|>", 151644), ("assistant", 77091), ("\n", 198),
]  # fmt: skip

#: 448 x 224 pixels are 32 x 16 patches of 14 pixels; 2 x 2 of them are one token: 16 x 8 = 128.
PROMPT: list[tuple[str, int]] = [*_BEFORE_IMAGE, *[("<|image_pad|>", 151655)] * 128, *_AFTER_IMAGE]
#: One image of 224 x 224 per camera: 8 x 8 tokens each.
PROMPT_UNTILED: list[tuple[str, int]] = [
    *_BEFORE_IMAGE, *[("<|image_pad|>", 151655)] * 64, ("<|vision_end|>", 151653),
    ("<|vision_start|>", 151652), *[("<|image_pad|>", 151655)] * 64, *_AFTER_IMAGE,
]  # fmt: skip

# ---------------------------------------------------------------- the answer

#: One step per row: the action in the robot's units, the integers, and their ids without the separator.
STEPS: list[tuple[list[float], str, list[int]]] = [
    ([0.0, 0.375, -0.375, 0.0, 0.0, 0.0, -1.0],
     "500 700 300 421 500 495 0",
     [20, 15, 15, 220, 22, 15, 15, 220, 18, 15, 15, 220, 19, 17, 16, 220, 20, 15, 15, 220, 19, 24, 20, 220, 15]),
    ([0.9375, -0.9375, 0.1, 0.355714, 0.15, 0.375, -1.0],
     "1000 0 553 1000 700 1000 0",
     [16, 15, 15, 15, 220, 15, 220, 20, 20, 18, 220, 16, 15, 15, 15, 220, 22, 15, 15, 220, 16, 15, 15, 15, 220, 15]),
    ([-0.5, 0.05, -0.9, -0.258214, -0.375, -0.3675, -1.0],
     "233 527 20 0 0 0 0",
     [17, 18, 18, 220, 20, 17, 22, 220, 17, 15, 220, 15, 220, 15, 220, 15, 220, 15]),
    ([0.0125, 0.25, -0.01, 0.1, 0.375, 0.1, 1.0],
     "507 633 495 583 1000 630 1000",
     [20, 15, 22, 220, 21, 18, 18, 220, 19, 24, 20, 220, 20, 23, 18, 220, 16, 15, 15, 15, 220, 21, 18, 15, 220,
      16, 15, 15, 15]),
    ([0.7, -0.93, 0.0, -0.2, -0.3, -0.1, 1.0],
     "873 4 500 95 100 360 1000",
     [23, 22, 18, 220, 19, 220, 20, 15, 15, 220, 24, 20, 220, 16, 15, 15, 220, 18, 21, 15, 220, 16, 15, 15, 15]),
    ([0.1, 0.1, 0.1, 0.05, 0.03, 0.07, 1.0],
     "553 553 553 502 540 589 1000",
     [20, 20, 18, 220, 20, 20, 18, 220, 20, 20, 18, 220, 20, 15, 17, 220, 20, 19, 15, 220, 20, 23, 24, 220,
      16, 15, 15, 15]),
    ([0.0, 0.0, 0.0, -0.255, -0.36, -0.36, -1.0],
     "500 500 500 5 20 10 0",
     [20, 15, 15, 220, 20, 15, 15, 220, 20, 15, 15, 220, 20, 220, 17, 15, 220, 16, 15, 220, 15]),
    ([0.375, -0.5, 0.7, 0.3, 0.0099, 0.2, -1.0],
     "700 233 873 909 513 764 0",
     [22, 15, 15, 220, 17, 18, 18, 220, 23, 22, 18, 220, 24, 15, 24, 220, 20, 16, 18, 220, 22, 21, 19, 220, 15]),
]  # fmt: skip

#: What the integers above mean: ``min + integer / 1000 * (max - min)``, to the seventh digit.
DECODED: list[list[float]] = [
    [0.0000000, 0.3750000, -0.3750000, 0.0002497, 0.0000000, 0.0000375, -1.0000000],
    [0.9375000, -0.9375000, 0.0993750, 0.3557140, 0.1500000, 0.3750000, -1.0000000],
    [-0.5006250, 0.0506250, -0.9000000, -0.2582140, -0.3750000, -0.3675000, -1.0000000],
    [0.0131250, 0.2493750, -0.0093750, 0.0997060, 0.3750000, 0.1002750, 1.0000000],
    [0.6993750, -0.9300000, 0.0000000, -0.1998908, -0.3000000, -0.1002000, 1.0000000],
    [0.0993750, 0.0993750, 0.0993750, 0.0499779, 0.0300000, 0.0698325, 1.0000000],
    [0.0000000, 0.0000000, 0.0000000, -0.2551444, -0.3600000, -0.3600750, -1.0000000],
    [0.3750000, -0.5006250, 0.6993750, 0.2998466, 0.0097500, 0.1997700, -1.0000000],
]  # fmt: skip

SPACE, END, NEWLINE, HIDDEN, PADDING = 220, 151645, 198, 30, 151643


def answer_of(steps: list[int]) -> list[int]:
    """The ids of a chunk made of some of the steps above, closed by the end of the turn."""
    ids: list[int] = []
    for step in steps:
        ids += [*STEPS[step][2], SPACE]
    return [*ids[:-1], END, NEWLINE]


def text_of(steps: list[int]) -> str:
    """The same as text, without the end."""
    return " ".join(STEPS[step][1] for step in steps)


# ---------------------------------------------------------------- pictures


def third_person(side: int = 256) -> np.ndarray[Any, Any]:
    """``(side, side, 3)`` uint8: red is the row, green the column."""
    rows, columns = np.mgrid[:side, :side]
    return np.stack([rows % 256, columns % 256, np.full_like(rows, 7)], axis=-1).astype(np.uint8)


def wrist(side: int = 256) -> np.ndarray[Any, Any]:
    """``(side, side, 3)`` uint8: green is 255 minus the column, blue the row."""
    rows, columns = np.mgrid[:side, :side]
    return np.stack([np.full_like(rows, 200), 255 - columns % 256, rows % 256], axis=-1).astype(np.uint8)


def scene(height: int, width: int, seed: int) -> np.ndarray[Any, Any]:
    """``(height, width, 3)`` uint8: smooth colours with noise on them."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    smooth = coarse.resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.integers(-20, 21, (height, width, 3))
    return (np.asarray(smooth).astype(np.int64) + noise).clip(0, 255).astype(np.uint8)


def crop_and_shrink(picture: np.ndarray[Any, Any], top: int, left: int, size: tuple[int, int]) -> Image.Image:
    """Cut ``size`` (height, width) at (top, left) and resize it to 224 x 224 as the protocol does, with Pillow.

    ``Image.transform`` interpolates between the four nearest pixels, without antialias (``Image.resize`` has it), and
    truncates to uint8.
    """
    height, width = size
    cut = Image.fromarray(picture).crop((left, top, left + width, top + height))
    return cut.transform((224, 224), Image.Transform.EXTENT, (0, 0, width, height), Image.Resampling.BILINEAR)


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """The first picture left."""
    canvas = Image.new("RGB", (224 * len(pictures), 224))
    for index, picture in enumerate(pictures):
        canvas.paste(picture, (224 * index, 0))
    return canvas


# ---------------------------------------------------------------- transformers' own processor, and its pixels


def qwen_processor(folder: Path, tokenizer: Any) -> Any:
    """transformers' ``Qwen2_5_VLProcessor`` with the published settings, on Pillow images."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    # Limits given here as well: without, the constructor writes the file's into a dictionary all processors share.
    size = {"shortest_edge": 3136, "longest_edge": 12845056}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessorPil.from_pretrained(folder, size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=(folder / "chat_template.jinja").read_text(),
    )


def levels(pixel_values: Any) -> torch.Tensor:
    """Undo the normalisation: ``(patches, 3, 392)`` int64 levels in 0..255 (CLIP's mean and deviation)."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=torch.float64).view(1, 3, 1)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=torch.float64).view(1, 3, 1)
    exact = (torch.as_tensor(pixel_values).double().view(-1, 3, 392) * deviation + mean) * 255
    assert (exact - exact.round()).abs().max() < 1e-3, "not the image of whole levels"
    return exact.round().long()
