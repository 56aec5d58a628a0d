"""Turns camera images into the patches that Qwen2.5-VL reads.

::

    (B, 3, H, W) per camera, any H and W          batches.select_cameras: names and shapes checked
      ─ crop_box ─ random or centre crop ─ bilinear resize ─ colour jitter ─ truncation ─▶
    (B, 3, h, w) uint8 per camera                 transform
      ─ side by side ─▶ (B, 3, h, n*w) uint8      tile
      ─ rescale, normalise, reorder ─▶            patchify
    pixel_values (patches, 1176) float32, grid_thw (images, 3) int64

The functions run on the images' device. The number of kernels does not depend on the batch size, and nothing waits for
the device: random numbers and constants are copied without blocking, and `batches.image_problems` checks values later.

The steps and their order follow VLA-0 (arXiv 2510.13054); the patch layout follows Qwen2-VL's image processor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lerobot_policy_vla0.errors import ConfigError, ImageError
from lerobot_policy_vla0.observations.color_jitter import jitter

TRUNCATION_SLACK = 1e-3
"""Added (on the 0..255 scale) before truncation to uint8.

The protocol truncates, it does not round. Truncation turns the smallest negative rounding error of the
resize or jitter into a whole level: 128/255 that comes back as 127.99999/255 must stay 128. Float32 errors
here are below 1e-3 of a level; only one value in a thousand is lifted that exact arithmetic would not lift.
"""

_N_DRAWS = 6  # uniform numbers per sample and camera: crop row, crop column, four jitter factors


@dataclass(frozen=True)
class ImageSettings:
    """How camera images become patches; the defaults are VLA-0's LIBERO protocol with Qwen2.5-VL.

    Attributes:
        image_size: height and width of one camera after the resize, in pixels; multiples of
            ``patch_size * merge_size``.
        crop_box: region ``(x0, y0, x1, y1)`` in fractions of width and height, cut out first, in training and
            evaluation; None keeps the whole frame.
        crop_ratio: share of each side that the random (training) or centre (evaluation) crop keeps, in ``(0, 1]``.
        antialias: filter while shrinking; the protocol does not.
        brightness: strength of the brightness jitter, at least 0; training only; 0 = off.
        contrast: as brightness.
        saturation: as brightness.
        hue: largest hue shift in turns, in ``[0, 0.5]``; training only; 0 = off.
        tile: join the cameras of a sample side by side into one image.
        patch_size: side of a vision patch, in pixels.
        merge_size: patches merged per side into one image token.
        temporal_patch_size: frames per patch; a still image is repeated.
        image_mean: per-channel mean of pixels in ``[0, 1]`` (CLIP's, as in Qwen2-VL).
        image_std: per-channel standard deviation.

    Raises:
        ConfigError: if a value is out of range, or the image size is no multiple of a merged patch; names the
            option, the value and the limit.
    """

    image_size: tuple[int, int] = (224, 224)
    crop_box: tuple[float, float, float, float] | None = None
    crop_ratio: float = 0.875
    antialias: bool = False
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05
    tile: bool = True
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        for name in ("patch_size", "merge_size", "temporal_patch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}, expected at least 1: use the base model's.")
        factor = self.patch_size * self.merge_size
        if len(self.image_size) != 2 or any(side < factor or side % factor for side in self.image_size):
            nearest = tuple(max(factor, round(side / factor) * factor) for side in self.image_size)
            raise ConfigError(
                f"image_size={self.image_size}, expected (height, width) in multiples of {factor} pixels "
                f"(patch_size {self.patch_size} x merge_size {self.merge_size}): use e.g. {nearest[:2]}."
            )
        if self.crop_box is not None:
            x0, y0, x1, y1 = self.crop_box
            if not (0.0 <= x0 < x1 <= 1.0 and 0.0 <= y0 < y1 <= 1.0):
                raise ConfigError(
                    f"crop_box={self.crop_box}, expected (x0, y0, x1, y1) with 0 <= x0 < x1 <= 1 and "
                    "0 <= y0 < y1 <= 1: give fractions of width and height, not pixels, left and top first."
                )
        if not 0.0 < self.crop_ratio <= 1.0:
            raise ConfigError(
                f"crop_ratio={self.crop_ratio}, expected above 0 and at most 1: "
                "it is the share of each side that is kept; use 1.0 to switch the crop off."
            )
        for name in ("brightness", "contrast", "saturation"):
            strength = getattr(self, name)
            if not (strength >= 0.0 and math.isfinite(strength)):
                raise ConfigError(
                    f"{name}={strength}, expected a finite number, at least 0: use 0 to switch it off."
                )
        if not 0.0 <= self.hue <= 0.5:
            raise ConfigError(
                f"hue={self.hue}, expected 0 to 0.5: it is a share of the colour circle, and 0.5 already "
                "reaches the opposite colour; use 0 to switch it off."
            )
        if len(self.image_mean) != 3 or len(self.image_std) != 3 or not min(self.image_std) > 0.0:
            raise ConfigError(
                f"image_mean={self.image_mean}, image_std={self.image_std}, expected three numbers each and "
                "image_std above 0: use the base model's preprocessor_config.json."
            )


def whole_picture(settings: ImageSettings) -> ImageSettings:
    """Return the settings of a question's pictures, which show all that the camera gave.

    They are neither cropped nor, outside of training, jittered. A filter runs while they shrink, because the base
    model's own processor has one, and fine print is worth a question. Size and tiling stay the policy's: the size of a
    prompt then does not depend on the camera, and fine-tuned weights see the size they know.
    """
    return replace(settings, crop_box=None, crop_ratio=1.0, antialias=True)


@torch.no_grad()
def transform(
    images: Sequence[Tensor], settings: ImageSettings, generator: torch.Generator | None
) -> list[Tensor]:
    """Crop, resize, jitter and truncate each camera's images.

    In training, every sample of every camera draws its own crop and jitter factors. The draws depend only on the
    generator, the number of cameras and the batch size: switching jitter off does not move the crops.

    Args:
        images: ``(B, 3, H, W)`` per camera, float in ``[0, 1]`` or uint8; sizes may differ between cameras.
        settings: see `ImageSettings`.
        generator: the random generator for training, on the CPU (same draws on every device) or on the images'
            device; None for evaluation, with a centre crop and no jitter.

    Returns:
        ``(B, 3, h, w)`` uint8 per camera, with ``(h, w) = settings.image_size``.
    """
    draws: Tensor | None = None
    if generator is not None and images:
        shape = (len(images), images[0].shape[0], _N_DRAWS)
        draws = torch.rand(shape, generator=generator, device=generator.device)
        draws = draws.to(images[0].device, non_blocking=True)
    return [
        _transform_camera(image, settings, None if draws is None else draws[index])
        for index, image in enumerate(images)
    ]


def tile(images: Sequence[Tensor]) -> Tensor:
    """Join ``n`` cameras ``(B, 3, H, W)`` side by side, the first one on the left: ``(B, 3, H, n * W)``."""
    return torch.cat(list(images), dim=-1)


@torch.no_grad()
def patchify(image: Tensor, settings: ImageSettings) -> Tensor:
    """Normalise an image and cut it into patches, with the same values as Qwen2-VL's image processor.

    The patches of one image token (a ``merge x merge`` block) are neighbours; blocks go row by row. The values of a
    patch are ordered by channel, frame, row and column.

    Args:
        image: ``(B, 3, H, W)`` uint8, sides multiples of ``patch_size * merge_size``.
        settings: gives the patch layout, mean and standard deviation.

    Returns:
        ``(B, H/patch * W/patch, 3 * temporal * patch * patch)`` float32.
    """
    batch, channels, height, width = image.shape
    patch, merge, frames = settings.patch_size, settings.merge_size, settings.temporal_patch_size
    # Mean and std are scaled to 0..255, in float32, as the processor does: the results are equal to the bit.
    scale = torch.tensor([settings.image_mean, settings.image_std]) * 255.0
    mean, std = scale.to(image.device, non_blocking=True).view(2, 3, 1, 1)
    pixels = image.float().sub_(mean).div_(std)
    block = merge * patch
    pixels = pixels.view(batch, channels, height // block, merge, patch, width // block, merge, patch)
    pixels = pixels.permute(0, 2, 5, 3, 6, 1, 4, 7)  # (B, rows, columns, merge, merge, C, patch, patch)
    pixels = pixels.unsqueeze(6).expand(*pixels.shape[:6], frames, patch, patch)
    return pixels.reshape(batch, (height // patch) * (width // patch), channels * frames * patch * patch)


def make_pictures(
    images: Sequence[Tensor], settings: ImageSettings, generator: torch.Generator | None
) -> list[Tensor]:
    """Turn camera images into the pictures that the model sees: `transform`, `tile` if set.

    Args:
        images: ``(B, 3, H, W)`` per camera, from `select_cameras`.
        settings: see `ImageSettings`.
        generator: see `transform`.

    Returns:
        ``(B, 3, h, w)`` uint8 for each image of the prompt.

    Raises:
        ImageError: if there is no image.
    """
    if not images:
        raise ImageError("No image was given: the policy needs at least one camera.")
    pictures = transform(images, settings, generator)
    return [tile(pictures)] if settings.tile else pictures


def encode_images(
    images: Sequence[Tensor], settings: ImageSettings, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Turn camera images into Qwen2.5-VL's inputs: `make_pictures`, `patchify`.

    Args:
        images: ``(B, 3, H, W)`` per camera, from `select_cameras`.
        settings: see `ImageSettings`.
        generator: see `transform`.

    Returns:
        ``pixel_values``, ``(patches, 3 * temporal * patch * patch)`` float32, ordered by sample and then by
        image, and ``grid_thw``, ``(B * images per sample, 3)`` int64, both on the images' device.

    Raises:
        ImageError: if there is no image.
    """
    pictures = make_pictures(images, settings, generator)
    patches = torch.stack([patchify(picture, settings) for picture in pictures], dim=1)  # (B, n, P, D)
    grid = torch.tensor(grid_size(settings, len(images)), dtype=torch.int64).repeat(patches.shape[0], 1)
    return patches.flatten(0, 2), grid.to(patches.device, non_blocking=True)


def grid_size(settings: ImageSettings, n_cameras: int) -> list[tuple[int, int, int]]:
    """Return the patch grid ``(frames, rows, columns)`` of each image of one sample.

    >>> grid_size(ImageSettings(image_size=(224, 224), tile=True), n_cameras=2)
    [(1, 16, 32)]
    >>> grid_size(ImageSettings(image_size=(224, 224), tile=False), n_cameras=2)
    [(1, 16, 16), (1, 16, 16)]
    """
    height, width = settings.image_size
    rows, columns = height // settings.patch_size, width // settings.patch_size
    return [(1, rows, columns * n_cameras)] if settings.tile else [(1, rows, columns)] * n_cameras


def _transform_camera(image: Tensor, settings: ImageSettings, draws: Tensor | None) -> Tensor:
    """Transform one camera's images; ``draws`` is ``(B, 6)`` in ``[0, 1)``, or None for evaluation."""
    image = _cut_box(image, settings.crop_box)
    height, width = image.shape[-2:]
    crop_h, crop_w = (max(1, round(settings.crop_ratio * side)) for side in (height, width))
    if (crop_h, crop_w) != (height, width):
        if draws is None:
            top, left = _centre(height, crop_h), _centre(width, crop_w)
            image = image[..., top : top + crop_h, left : left + crop_w]
        else:
            # With u < 1 and n < 2**24, u * n < n holds in float32 too, so every offset is valid.
            tops = (draws[:, 0] * (height - crop_h + 1)).long()
            lefts = (draws[:, 1] * (width - crop_w + 1)).long()
            image = _crop_each(image, tops, lefts, crop_h, crop_w)
    pixels = image.float().div_(255.0) if image.dtype == torch.uint8 else image.float()
    if (crop_h, crop_w) != settings.image_size:
        pixels = F.interpolate(
            pixels, settings.image_size, mode="bilinear", align_corners=False, antialias=settings.antialias
        )
    if draws is not None:
        pixels = jitter(
            pixels,
            draws[:, 2:],
            brightness=settings.brightness,
            contrast=settings.contrast,
            saturation=settings.saturation,
            hue=settings.hue,
        )
    return (pixels.clamp(0.0, 1.0) * 255.0).add_(TRUNCATION_SLACK).to(torch.uint8)  # the cast truncates


def evaluation_window(height: int, width: int, settings: ImageSettings) -> tuple[int, int, int, int]:
    """Return the window of an image that the model sees in evaluation: ``(top, left, height, width)`` in pixels.

    >>> evaluation_window(100, 200, ImageSettings(crop_box=(0.5, 0.0, 1.0, 1.0), crop_ratio=0.5))
    (25, 125, 50, 50)
    """
    top, left, height, width = box_window(height, width, settings.crop_box)
    crop_h, crop_w = (max(1, round(settings.crop_ratio * side)) for side in (height, width))
    return top + _centre(height, crop_h), left + _centre(width, crop_w), crop_h, crop_w


def box_window(
    height: int, width: int, box: tuple[float, float, float, float] | None
) -> tuple[int, int, int, int]:
    """Return the window of a ``crop_box``: ``(top, left, height, width)`` in pixels, at least 1x1."""
    if box is None:
        return 0, 0, height, width
    x0, y0, x1, y1 = box
    left, top = min(round(x0 * width), width - 1), min(round(y0 * height), height - 1)
    right, bottom = max(round(x1 * width), left + 1), max(round(y1 * height), top + 1)
    return top, left, bottom - top, right - left


def _centre(side: int, crop: int) -> int:
    return round((side - crop) / 2)  # rounds halves to even, as torchvision's CenterCrop


def _cut_box(image: Tensor, box: tuple[float, float, float, float] | None) -> Tensor:
    rows, columns = image.shape[-2:]
    top, left, height, width = box_window(rows, columns, box)
    return image[..., top : top + height, left : left + width]


def _crop_each(image: Tensor, tops: Tensor, lefts: Tensor, height: int, width: int) -> Tensor:
    """Cut a window at its own place out of each sample: ``(B, 3, H, W) -> (B, 3, height, width)``.

    Indexing a strided view of all windows copies only the selected ones: on a CPU this is 7 to 9 times as fast as
    indexing with row and column numbers. A loop over slices would wait for the device to read the offsets.
    """
    windows = image.unfold(2, height, 1).unfold(3, width, 1)  # (B, 3, tops, lefts, height, width), a view
    samples = torch.arange(image.shape[0], device=image.device)
    return windows[samples, :, tops, lefts]
