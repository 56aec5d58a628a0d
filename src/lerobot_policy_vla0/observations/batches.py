"""Reads what the policy needs out of LeRobot's batches, and says what is missing.

Also makes up a batch, for warming up. The keys and shapes are listed in `modeling_vla0`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor

from lerobot_policy_vla0.errors import ActionError, PromptError, StateError
from lerobot_policy_vla0.observations.cameras import select_cameras
from lerobot_policy_vla0.text.prompt import PromptEncoder

if TYPE_CHECKING:
    from lerobot_policy_vla0.backbone.vlm import VLM
    from lerobot_policy_vla0.configuration_vla0 import VLA0Config

logger = logging.getLogger(__name__)

ACTION_IS_PAD = f"{ACTION}_is_pad"


def n_rows(batch: dict[str, Any]) -> int:
    """Return the number of prompts in a batch; touches no device, so it is free on every control tick.

    Raises:
        PromptError: if the batch has none.
    """
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
    """
    n_rows(batch)  # names what is missing
    return batch[OBS_LANGUAGE_TOKENS].to(device), batch[OBS_LANGUAGE_ATTENTION_MASK].to(device)


def read_images(batch: dict[str, Any], config: VLA0Config, device: torch.device) -> list[Tensor]:
    """Return one ``(B, 3, H, W)`` tensor per camera, in the model's order.

    Raises:
        CameraError: if a camera is missing.
        PromptError: if there are not as many prompts as images.
    """
    images = select_cameras(batch, config.camera_keys, config.image_features)
    prompts = n_rows(batch)
    if len(images[0]) != prompts:
        raise PromptError(
            f"the batch has {prompts} task(s) and {len(images[0])} image(s) per camera; every sample needs its "
            "own task text. Pass one task per sample."
        )
    return [image.to(device) for image in images]


def check_robot(batch: dict[str, Any], config: VLA0Config) -> None:
    """Refuse a robot with another number of joints: LeRobot would send it the first few of the policy's numbers.

    Raises:
        ActionError: with both numbers.
    """
    state, trained = batch.get(OBS_STATE), config.robot_state_feature
    if isinstance(state, Tensor) and trained is not None and state.shape[-1] != trained.shape[-1]:
        raise ActionError(
            f"{OBS_STATE} has {state.shape[-1]} values, the policy was trained with {trained.shape[-1]}: this is "
            "another robot, and its joints would be sent numbers meant for others. Use the robot (or environment) the "
            "policy was trained for, or train one on data of this robot."
        )


def note_image_sizes(images: list[Tensor], config: VLA0Config) -> bool:
    """Log which cameras give other sizes than in training; nothing has to be done unless the shape differs.

    Returns:
        Whether there was something to log.
    """
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
        number: ``(B, L)`` the number each answer token belongs to.
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
    per_number = torch.cat([per_number, per_number.new_zeros(len(is_pad), 1)], dim=1)  # end: kept
    return per_number.gather(1, number)


def read_state(observation: dict[str, Any], option: str, size: int | None = None) -> Tensor:
    """Return the robot's state ``(B, S)``.

    Args:
        observation: of a batch.
        option: the policy's option that needs it, for the message.
        size: the S it must have; None takes any.

    Raises:
        StateError: if it is missing, of another shape, or has NaN/Inf.
    """
    state = observation.get(OBS_STATE)
    if not isinstance(state, Tensor) or state.ndim != 2 or state.shape[1] != (size or state.shape[1]):
        raise StateError(
            f"{option}=True needs {OBS_STATE!r} of shape (batch, {size or 'state_dim'}), got "
            f"{tuple(state.shape) if isinstance(state, Tensor) else state}; the observation has {sorted(observation)}. "
            "Record or simulate with a state of that size, or rename it with --rename_map."
        )
    bad = ~torch.isfinite(state)
    if bool(bad.any()):
        raise StateError(
            f"{OBS_STATE!r} has NaN or infinite values in dimensions {sorted({int(d) for d in bad.nonzero()[:, 1]})}, "
            f"and {option}=True needs it. Check the robot's sensors, or repair the dataset."
        )
    return state


def grey_batch(config: VLA0Config, vlm: VLM, rows: int) -> dict[str, Any]:
    """Return a batch of grey images under a made-up task, shaped like the real ones."""
    settings = config.prompt_settings(vlm.patch_size, vlm.merge_size, vlm.tokens.pad)
    encoder = PromptEncoder(vlm.tokenizer.backend_tokenizer, settings)
    middle = [[config.n_bins // 2] * config.prompt_state_dim] * rows if config.state_in_prompt else None
    ids, mask = encoder.encode_batch(["Warm up."] * rows, middle)
    images = {key: torch.full((rows, *config.image_features[key].shape), 0.5) for key in config.camera_keys}
    return {**images, OBS_LANGUAGE_TOKENS: ids, OBS_LANGUAGE_ATTENTION_MASK: mask}
