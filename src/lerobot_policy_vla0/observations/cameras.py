"""Which images of a batch the policy reads, and whether they can be read.

Names and shapes are checked when cameras are picked; values only measured (`image_problems`), so that an
accelerator is waited for once per step, with everything else there is to check (`raise_for_problems`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lerobot_policy_vla0.errors import CameraError, ImageError

CAMERA_PREFIX = "observation.image"  # LeRobot's OBS_IMAGE; also the start of "observation.images.<name>"
_PAD_SUFFIX = "_is_pad"  # LeRobot's marker of frames repeated at an episode's end: flags, not pixels

RANGE_TOLERANCE = 1e-3
"""How far a float pixel may lie outside [0, 1]: resizing and decoding overshoot by rounding errors."""


def select_cameras(
    batch: Mapping[str, Any], cameras: Sequence[str], known: Collection[str] = ()
) -> list[Tensor]:
    """Pick a batch's camera images in the policy's order, after checking names and shapes.

    Keys that start with ``observation.image`` count as cameras; ``*_is_pad`` flags do not. Values are not
    looked at (that would wait for the device): see `image_problems`.

    Args:
        batch: key to value, as a LeRobot policy receives it.
        cameras: keys the policy looks at, in the order it shows them to the model.
        known: further keys that may be present and are ignored on purpose.

    Returns:
        One ``(B, 3, H, W)`` tensor per camera, as given: float in ``[0, 1]`` or uint8. Sizes may differ.

    Raises:
        CameraError: no camera is asked for, one is missing, or the batch holds one that is neither in
            ``cameras`` nor ``known``; names both sets and the fix.
        ImageError: an image has the wrong type, shape or batch size; names the key, what was given and what
            was expected.
    """
    given = sorted(key for key in batch if key.startswith(CAMERA_PREFIX) and not key.endswith(_PAD_SUFFIX))
    missing = [key for key in cameras if key not in given]
    unexpected = [key for key in given if key not in cameras and key not in known]
    if missing or unexpected or not cameras:
        raise CameraError(
            f"The policy reads the cameras {list(cameras)} and the batch has {given} "
            f"(missing: {missing}, unexpected: {unexpected}). Name the cameras alike: rename the batch's "
            'keys (--rename_map=\'{"<key in the batch>": "<key of the policy>"}\'), plug in the missing '
            "camera, take an unexpected one out of --robot.cameras, or train a policy with these cameras."
        )
    images = [_checked(key, batch[key]) for key in cameras]
    sizes = {key: image.shape[0] for key, image in zip(cameras, images, strict=True)}
    if len(set(sizes.values())) > 1:
        raise ImageError(
            f"The cameras have different batch sizes: {sizes}. Every camera needs one image per sample."
        )
    return images


def image_problems(images: Sequence[Tensor]) -> Tensor:
    """Measure what `raise_for_problems` judges, without waiting for the device.

    Args:
        images: ``n`` camera images, float or uint8, any shape with at least one value.

    Returns:
        ``(n, 2)`` float32 on the images' device: lowest and highest value, NaN where any value is NaN.
        uint8 images cannot be out of range and are not read: ``(0, 1)``.
    """
    rows = []
    for image in images:
        if image.dtype == torch.uint8:
            low = torch.zeros((), device=image.device)
            high = torch.ones((), device=image.device)
        else:
            low, high = torch.aminmax(image.detach())  # both propagate NaN
        rows.append(torch.stack([low, high]).float())
    return torch.stack(rows)


def raise_for_problems(problems: Sequence[Sequence[float]], names: Sequence[str]) -> None:
    """Refuse NaN, infinity and pixel values outside ``[0, 1]``.

    Args:
        problems: ``image_problems(images).tolist()``, the step's one transfer.
        names: the cameras' keys, in the same order.

    Raises:
        ImageError: names the first such camera, the range seen and the likely cause.
    """
    for name, (low, high) in zip(names, problems, strict=True):
        if low >= -RANGE_TOLERANCE and high <= 1.0 + RANGE_TOLERANCE:  # false for NaN
            continue
        seen = f"{name}: pixel values lie in [{low:g}, {high:g}], expected [0, 1]. "
        if math.isnan(low) or math.isnan(high):
            raise ImageError(
                f"{name}: pixel values contain NaN, expected [0, 1]. Look for a frame that was never filled "
                "or a division by zero in an earlier step."
            )
        if math.isinf(low) or math.isinf(high):
            raise ImageError(seen + "Look for a division by zero in an earlier step.")
        if low < -RANGE_TOLERANCE:
            raise ImageError(
                seen + "The image looks normalised by mean and standard deviation already: turn that off "
                "(normalization_mapping: VISUAL: IDENTITY), the policy normalises images itself."
            )
        if high > 2.0:
            raise ImageError(
                seen + "The image looks like 0..255 in floating point: divide it by 255, or pass it as uint8."
            )
        raise ImageError(seen + "An earlier transform overshoots: clamp its result to [0, 1].")


def _checked(name: str, image: object) -> Tensor:
    """Return the image if its type and shape are right."""
    expected = "expected (B, 3, H, W), float in [0, 1] or uint8"
    if not isinstance(image, Tensor):
        raise ImageError(f"{name}: given {type(image).__name__}, {expected}: convert it to a tensor.")
    given = f"{name}: given {tuple(image.shape)} {str(image.dtype).removeprefix('torch.')}, {expected}"
    if image.ndim == 3:
        raise ImageError(f"{given}: add the batch dimension with image.unsqueeze(0).")
    if image.ndim == 5:
        raise ImageError(f"{given}: the policy looks at one frame per camera; use n_obs_steps=1.")
    if image.ndim == 4 and image.shape[1] != 3 and image.shape[-1] == 3:
        raise ImageError(f"{given}: move the channels with image.permute(0, 3, 1, 2).")
    if image.ndim != 4 or image.shape[1] != 3:
        raise ImageError(f"{given}: give RGB images, without depth or alpha.")
    if image.numel() == 0:
        raise ImageError(f"{given}: the image is empty.")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ImageError(f"{given}: convert 0..255 integers with image.to(torch.uint8).")
    return image
