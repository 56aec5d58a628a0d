"""Colour jitter with one factor per sample: brightness, contrast, saturation, hue.

All functions take ``(B, 3, H, W)`` float images in ``[0, 1]`` and a ``(B,)`` tensor of factors, and return new images
in ``[0, 1]``. For one sample, each does what `torchvision.transforms.v2.functional.adjust_*` does; torchvision takes
one factor per call, so a batch would need a Python loop.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R 601-2 luma as torchvision rounds it: sums to 0.9999
_HUE_CENTRES = (3.0, 2.0, 4.0)  # R is lowest at hue 3/6; G and B are highest at 2/6 and 4/6
_SMALLEST_CHROMA = 1e-12  # avoids 0/0 at grey pixels


def jitter(
    images: Tensor,
    draws: Tensor,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> Tensor:
    """Jitter every sample by its own factors, in the order brightness, contrast, saturation, hue.

    `torchvision.transforms.ColorJitter` draws an order per image instead. The difference is small: at the default
    strengths, on saturated random images, another order changes a pixel by 0.7/255 on average, the jitter by 17/255.

    Args:
        images: ``(B, 3, H, W)`` float in ``[0, 1]``.
        draws: ``(B, 4)`` float in ``[0, 1)``, one column per operation in the order above.
        brightness: factors are uniform in ``[max(0, 1 - brightness), 1 + brightness]``; 0 = off.
        contrast: as brightness.
        saturation: as brightness.
        hue: shifts are uniform in ``[-hue, hue]`` turns of the colour circle; 0 = off.

    Returns:
        ``(B, 3, H, W)`` float in ``[0, 1]``; ``images`` itself if every strength is 0.
    """
    if brightness:
        images = adjust_brightness(images, _around_one(draws[:, 0], brightness))
    if contrast:
        images = adjust_contrast(images, _around_one(draws[:, 1], contrast))
    if saturation:
        images = adjust_saturation(images, _around_one(draws[:, 2], saturation))
    if hue:
        images = adjust_hue(images, (2.0 * draws[:, 3] - 1.0) * hue)
    return images


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Scale every pixel by a factor of at least 0: 0 gives black, 1 the image itself."""
    return (images * factors.view(-1, 1, 1, 1)).clamp_(0.0, 1.0)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the sample's mean grey, by a factor of at least 0: 0 gives uniform grey, 1 the image itself."""
    return _blend(images, _gray(images).mean((-2, -1), keepdim=True), factors)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the pixel's own grey, by a factor of at least 0: 0 gives a grey image, 1 the image itself."""
    return _blend(images, _gray(images), factors)


def adjust_hue(images: Tensor, shifts: Tensor) -> Tensor:
    """Shift every pixel's hue in turns (1/3 turns red into green), and keep its HSV saturation and value.

    A channel is ``min + (max - min) * w(hue)``, where ``w`` is a trapezoid on the colour circle. A shift changes only
    ``w``, so S and V need not be computed. Grey pixels (``max == min``, hue undefined) do not change.
    """
    red, green, blue = images.unbind(1)  # each (B, H, W)
    low, high = images.amin(1), images.amax(1)
    chroma = high - low
    safe = chroma.clamp(min=_SMALLEST_CHROMA)
    # Hue in sixths of a turn, in [-1, 5], from the strongest channel (the first one on a tie).
    sixths = torch.where(
        red == high,
        (green - blue).div_(safe),
        torch.where(green == high, (blue - red).div_(safe).add_(2.0), (red - green).div_(safe).add_(4.0)),
    )
    sixths = sixths.add_(6.0 * shifts.view(-1, 1, 1)).remainder_(6.0)
    weights = torch.empty_like(images)  # (B, 3, H, W)
    for channel, centre in enumerate(_HUE_CENTRES):
        torch.sub(sixths, centre, out=weights[:, channel]).abs_()
    weights[:, 0].sub_(1.0)
    weights[:, 1:].neg_().add_(2.0)
    return weights.clamp_(0.0, 1.0).mul_(chroma.unsqueeze(1)).add_(low.unsqueeze(1)).clamp_(0.0, 1.0)


def _around_one(draws: Tensor, strength: float) -> Tensor:
    """Map ``[0, 1)`` to the factors ``[max(0, 1 - strength), 1 + strength)``."""
    low = max(0.0, 1.0 - strength)
    return low + draws * (1.0 + strength - low)


def _gray(images: Tensor) -> Tensor:
    """Return the luma: ``(B, 3, H, W) -> (B, 1, H, W)``."""
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    w_red, w_green, w_blue = _GRAY_WEIGHTS
    return (red * w_red).add_(green, alpha=w_green).add_(blue, alpha=w_blue)


def _blend(images: Tensor, other: Tensor, factors: Tensor) -> Tensor:
    """Return ``factor * images + (1 - factor) * other``, clamped to ``[0, 1]``."""
    factors = factors.view(-1, 1, 1, 1)
    return (images * factors).add_((1.0 - factors) * other).clamp_(0.0, 1.0)
