"""Colour jitter with one factor per sample: brightness, contrast, saturation, hue.

Pure functions on ``(B, 3, H, W)`` float images in ``[0, 1]``, on any device. Each takes a ``(B,)`` tensor
of factors and returns a new image in ``[0, 1]``; applied to one sample, each means what the torchvision
operation of the same name means (`torchvision.transforms.v2.functional.adjust_*`). Torchvision takes one
factor per call, so a batch would need a Python loop; here the batch is one set of kernels.

Nothing is drawn here: the caller brings the random numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R 601-2 luma as torchvision rounds it: sums to 0.9999
_HUE_CENTRES = (3.0, 2.0, 4.0)  # R is weakest at hue 3/6 (cyan); G and B are strongest at 2/6 and 4/6
_SMALLEST_CHROMA = 1e-12  # keeps grey pixels, whose chroma is 0, from dividing 0 by 0


def jitter(
    images: Tensor,
    draws: Tensor,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> Tensor:
    """Jitter every sample by its own factors, in the fixed order brightness, contrast, saturation, hue.

    The fixed order is a difference from `torchvision.transforms.ColorJitter`, which draws an order per
    image. The operations commute except where a value clips and where a hue shift changes the grey value:
    on saturated random images and at the default strengths another order moves a pixel by 0.7/255 on
    average (measured over all 24), the jitter itself by 17/255.

    Args:
        images: ``(B, 3, H, W)`` float in ``[0, 1]``.
        draws: ``(B, 4)`` float in ``[0, 1)``, one column per operation in the order above.
        brightness: factors are uniform in ``[max(0, 1 - brightness), 1 + brightness]``; 0 = off.
        contrast: likewise.
        saturation: likewise.
        hue: shifts are uniform in ``[-hue, hue]`` turns of the colour circle; 0 = off.

    Returns:
        ``(B, 3, H, W)`` float in ``[0, 1]``; ``images`` itself when every strength is 0.
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
    """Scale every pixel: factor 0 is black, 1 the image itself.

    Args:
        images: ``(B, 3, H, W)`` float in ``[0, 1]``.
        factors: ``(B,)`` float, at least 0.
    """
    return (images * factors.view(-1, 1, 1, 1)).clamp_(0.0, 1.0)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the sample's mean grey: factor 0 is uniform grey, 1 the image itself.

    Args:
        images: ``(B, 3, H, W)`` float in ``[0, 1]``.
        factors: ``(B,)`` float, at least 0.
    """
    return _blend(images, _gray(images).mean((-2, -1), keepdim=True), factors)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the pixel's own grey: factor 0 is a grey image, 1 the image itself.

    Args:
        images: ``(B, 3, H, W)`` float in ``[0, 1]``.
        factors: ``(B,)`` float, at least 0.
    """
    return _blend(images, _gray(images), factors)


def adjust_hue(images: Tensor, shifts: Tensor) -> Tensor:
    """Turn every pixel's hue, keeping its HSV saturation and value.

    Neither S nor V is computed: a channel is ``min + (max - min) * w(hue)``, with ``w`` a trapezoid on the
    colour circle, and turning the hue changes ``w`` alone. That is the piecewise HSV formula without its
    six-way selection, and grey pixels (``max == min``, hue undefined) stay what they are.

    Args:
        images: ``(B, 3, H, W)`` float in ``[0, 1]``.
        shifts: ``(B,)`` float, in turns: 1/3 takes red to green.
    """
    red, green, blue = images.unbind(1)  # each (B, H, W)
    low, high = images.amin(1), images.amax(1)
    chroma = high - low
    safe = chroma.clamp(min=_SMALLEST_CHROMA)
    # Sixths of a turn in [-1, 5], measured from the strongest channel (the first one on a tie).
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
