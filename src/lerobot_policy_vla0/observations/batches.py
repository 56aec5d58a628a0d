"""Reads and checks what the policy needs from LeRobot's batches; `modeling_vla0` lists keys and shapes.

Selecting cameras checks names and shapes at once. Pixel values are measured on the device (`image_problems`) and
judged later (`raise_for_problems`), so the host waits for the device only once per step.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor

from lerobot_policy_vla0.errors import (
    ActionError,
    CameraError,
    ImageError,
    PromptError,
    QuestionError,
    StateError,
)
from lerobot_policy_vla0.text.prompt import PromptEncoder

if TYPE_CHECKING:
    from lerobot_policy_vla0.backbone.vlm import VLM
    from lerobot_policy_vla0.configuration_vla0 import VLA0Config

logger = logging.getLogger(__name__)

ACTION_IS_PAD = f"{ACTION}_is_pad"

#: ``(1, P)`` int64: the prompt of a question. A batch has either this or the prompt of an action, so that nothing can
#: answer the one in place of the other.
QUESTION = "observation.vla0_question"


def n_rows(batch: dict[str, Any]) -> int:
    """Return the number of prompts for actions in a batch, without waiting for the device.

    Raises:
        PromptError: if the batch has none.
        QuestionError: if the batch holds a question.
    """
    if QUESTION in batch:
        raise QuestionError(
            f"the batch holds a question ({QUESTION!r}), and questions are never answered with actions. Pass it to "
            "generate_text; for actions, run the observation through the pre-processor without query_kind."
        )
    if OBS_LANGUAGE_TOKENS not in batch or OBS_LANGUAGE_ATTENTION_MASK not in batch:
        raise PromptError(
            f"the batch has no {OBS_LANGUAGE_TOKENS!r}; it has {sorted(batch)}. Run it through the policy's "
            "pre-processor first (its vla0_prompt step writes the prompt)."
        )
    return len(batch[OBS_LANGUAGE_TOKENS])


def read_prompt(batch: dict[str, Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return prompt ids ``(B, P)`` int64 and their mask ``(B, P)`` bool.

    Raises:
        PromptError: if the batch has none.
        QuestionError: if the batch holds a question.
    """
    n_rows(batch)  # raises if a key is missing
    return batch[OBS_LANGUAGE_TOKENS].to(device), batch[OBS_LANGUAGE_ATTENTION_MASK].to(device)


def read_question(batch: dict[str, Any], device: torch.device) -> Tensor:
    """Return the prompt ids of a question ``(1, P)`` int64.

    Raises:
        QuestionError: if the batch holds no question, or the prompt of an action as well.
    """
    if QUESTION not in batch or OBS_LANGUAGE_TOKENS in batch:
        raise QuestionError(
            "the batch asks for an action, and actions are never answered in words: expected "
            f"{QUESTION!r} and no {OBS_LANGUAGE_TOKENS!r}, got {sorted(batch)}. Set query_kind and query_text before "
            "the pre-processor runs, or pass the batch to select_action."
        )
    ids: Tensor = batch[QUESTION].to(device)
    return ids


def read_images(batch: dict[str, Any], config: VLA0Config, device: torch.device) -> list[Tensor]:
    """Return one ``(B, 3, H, W)`` tensor per camera, in the model's order.

    Raises:
        CameraError: if a camera is missing.
        PromptError: if there are not as many prompts as images.
    """
    images = read_cameras(batch, config, device)
    prompts = n_rows(batch)
    if len(images[0]) != prompts:
        raise PromptError(
            f"the batch has {prompts} task(s) and {len(images[0])} image(s) per camera; every sample needs its "
            "own task text. Pass one task per sample."
        )
    return images


def read_cameras(batch: dict[str, Any], config: VLA0Config, device: torch.device) -> list[Tensor]:
    """Return what `read_images` does, of a batch with or without prompts for actions.

    Raises:
        CameraError: if a camera is missing.
    """
    images = select_cameras(
        batch, config.camera_keys, config.image_features, ignore_others=config.cameras is not None
    )
    return [image.to(device) for image in images]


def check_robot(batch: dict[str, Any], config: VLA0Config) -> None:
    """Refuse a robot with another number of joints than in training; LeRobot would send it the first values only.

    Raises:
        ActionError: with both numbers of joints.
    """
    state, trained = batch.get(OBS_STATE), config.robot_state_feature
    if isinstance(state, Tensor) and trained is not None and state.shape[-1] != trained.shape[-1]:
        raise ActionError(
            f"{OBS_STATE} has {state.shape[-1]} values, the policy was trained with {trained.shape[-1]}: this is "
            "another robot, and its joints would be sent numbers meant for others. Use the robot (or environment) the "
            "policy was trained for, or train one on data of this robot."
        )


def note_image_sizes(images: list[Tensor], config: VLA0Config) -> bool:
    """Log which cameras give other sizes than in training; return whether there was any."""
    differ = [
        (key, tuple(image.shape[-2:]), tuple(config.image_features[key].shape[-2:]))
        for key, image in zip(config.camera_keys, images, strict=True)
        if tuple(image.shape[-2:]) != tuple(config.image_features[key].shape[-2:])
    ]
    for key, given, trained in differ:
        stretched = given[0] * trained[1] != given[1] * trained[0]
        logger.log(
            logging.WARNING if stretched else logging.INFO,
            "%s: images are %dx%d, the policy was trained with %dx%d; both are resized to image_size=%s. %s",
            key,
            *given[::-1],
            *trained[::-1],
            config.image_size,
            "Their proportions differ, so the model sees a stretched picture: set the camera to the size it had in "
            "training."
            if stretched
            else "The model sees the same picture.",
        )
    return bool(differ)


def read_padding(batch: dict[str, Any], number: Tensor, action_dim: int) -> Tensor:
    """Mark the answer tokens ``(B, L)`` of steps past the end of their episode.

    Args:
        batch: with ``action_is_pad`` ``(B, T)``.
        number: ``(B, L)``, see `EncodedChunk`.
        action_dim: numbers per step.

    Raises:
        ActionError: if the batch does not say which steps are padding.
    """
    if ACTION_IS_PAD not in batch:
        raise ActionError(
            f"loss_on_padding=false needs {ACTION_IS_PAD!r} in the batch, which has {sorted(batch)}. Load the "
            "data through LeRobot's dataset with this policy's delta timestamps, or set loss_on_padding=true."
        )
    is_pad: Tensor = batch[ACTION_IS_PAD].to(number.device).bool()  # (B, T)
    per_number = is_pad.repeat_interleave(action_dim, dim=1)  # (B, N)
    per_number = torch.cat([per_number, per_number.new_zeros(len(is_pad), 1)], dim=1)  # the end token counts
    return per_number.gather(1, number)


def read_state(observation: dict[str, Any], option: str, size: int | None = None) -> Tensor:
    """Return the robot's state ``(B, S)``.

    Args:
        observation: the batch.
        option: the option that needs the state, for the message.
        size: the expected S; None accepts any.

    Raises:
        StateError: if the state is missing, has another shape, or has NaN or infinite values.
    """
    state = observation.get(OBS_STATE)
    if not isinstance(state, Tensor) or state.ndim != 2 or state.shape[1] != (size or state.shape[1]):
        others = [
            key
            for key, value in observation.items()
            if state is None and isinstance(value, Tensor) and value.ndim == 2 and value.shape[1] == size
        ]
        rename = f" with {rename_option([OBS_STATE], others)}" if others else ""
        raise StateError(
            f"{option}=True needs {OBS_STATE!r} of shape (batch, {size or 'state_dim'}), got "
            f"{tuple(state.shape) if isinstance(state, Tensor) else state}; the observation has {sorted(observation)}. "
            f"Record or simulate with a state of that size, or rename another key{rename or ' with --rename_map'}."
        )
    bad = ~torch.isfinite(state)
    if bool(bad.any()):
        raise StateError(
            f"{OBS_STATE!r} has NaN or infinite values in dimensions {sorted({int(d) for d in bad.nonzero()[:, 1]})}, "
            f"and {option}=True needs it. Check the robot's sensors, or repair the dataset."
        )
    return state


def grey_batch(config: VLA0Config, vlm: VLM, rows: int) -> dict[str, Any]:
    """Return a batch of grey images with a made-up task, for warming up."""
    settings = config.prompt_settings(vlm.patch_size, vlm.merge_size, vlm.tokens.pad)
    encoder = PromptEncoder(vlm.tokenizer.backend_tokenizer, settings)
    middle = [[config.n_bins // 2] * config.prompt_state_dim] * rows if config.state_in_prompt else None
    ids, mask = encoder.encode_batch(["Warm up."] * rows, middle)
    images = {key: torch.full((rows, *config.image_features[key].shape), 0.5) for key in config.camera_keys}
    return {**images, OBS_LANGUAGE_TOKENS: ids, OBS_LANGUAGE_ATTENTION_MASK: mask}


# ------------------------------------------------------------------ cameras

CAMERA_PREFIX = "observation.image"  # also the start of "observation.images.<name>"
_PAD_SUFFIX = "_is_pad"  # LeRobot's flags for frames repeated at an episode's end

RANGE_TOLERANCE = 1e-3
"""How far a float pixel may lie outside [0, 1]: resizing and decoding overshoot by rounding errors."""


def select_cameras(
    batch: Mapping[str, Any],
    cameras: Sequence[str],
    known: Collection[str] = (),
    *,
    ignore_others: bool = False,
) -> list[Tensor]:
    """Return a batch's camera images in the policy's order, after checking names and shapes.

    Keys that start with ``observation.image`` are cameras, except ``*_is_pad``. `image_problems` checks the values.

    Args:
        batch: a LeRobot batch.
        cameras: the policy's cameras, in the model's order.
        known: further cameras that the batch may have and the policy ignores.
        ignore_others: also ignore cameras that are not known, if none is missing (option ``cameras``).

    Returns:
        One ``(B, 3, H, W)`` tensor per camera, float in ``[0, 1]`` or uint8. Sizes may differ.

    Raises:
        CameraError: if ``cameras`` is empty, one is missing, or the batch has an unknown one; names both sets.
        ImageError: if an image has the wrong type, shape or batch size; names the key and the expected shape.
    """
    given = sorted(key for key in batch if key.startswith(CAMERA_PREFIX) and not key.endswith(_PAD_SUFFIX))
    missing = [key for key in cameras if key not in given]
    unexpected = [key for key in given if key not in cameras and key not in known]
    if missing or (unexpected and not ignore_others) or not cameras:
        raise CameraError(
            f"The policy reads the cameras {list(cameras)} and the batch has {given} "
            f"(missing: {missing}, unexpected: {unexpected}). {_camera_fix(cameras, missing, unexpected)}"
        )
    images = [_checked(key, batch[key]) for key in cameras]
    sizes = {key: image.shape[0] for key, image in zip(cameras, images, strict=True)}
    if len(set(sizes.values())) > 1:
        raise ImageError(
            f"The cameras have different batch sizes: {sizes}. Every camera needs one image per sample."
        )
    return images


def _camera_fix(cameras: Sequence[str], missing: list[str], unexpected: list[str]) -> str:
    """Say what to do about cameras of other names."""
    if not missing:
        chosen = json.dumps(list(cameras))
        return (
            f"Let the policy ignore what it does not read, --policy.cameras='{chosen}', or take {unexpected} out of "
            "--robot.cameras."
        )
    add = (
        f"add {missing} to --robot.cameras, or use data or an environment with all cameras of the training; for fewer "
        "cameras train a new policy."
    )
    if not unexpected:
        return f"What to do: {add}"
    return (
        f"If they are the same cameras, rename them: {rename_option(missing, unexpected)} (if a --rename_map is given "
        f"already, it made these names out of others: name those). Otherwise: {add}"
    )


def rename_option(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """Return LeRobot's option that gives keys the names that are missing; which is which is known only of one.

    >>> print(rename_option(["observation.images.top"], ["observation.images.side"]))
    --rename_map='{"observation.images.side": "observation.images.top"}'
    """
    if len(missing) == len(unexpected) == 1:
        return f"--rename_map='{json.dumps({unexpected[0]: missing[0]})}'"
    pairs = ", ".join(f'"<key>": "{key}"' for key in missing)
    return f"--rename_map='{{{pairs}}}', where each <key> is one of {list(unexpected)}"


def image_problems(images: Sequence[Tensor]) -> Tensor:
    """Measure the range of ``n`` images for `raise_for_problems`, without waiting for the device.

    Returns:
        ``(n, 2)`` float32 on the images' device: lowest and highest value, NaN if any value is NaN.
        A uint8 image, which is always in range, gives ``(0, 1)``.
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
        problems: ``image_problems(images).tolist()``.
        names: the cameras' keys, in the same order.

    Raises:
        ImageError: names the first such camera, its range and the likely cause.
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
