"""`VLA0Policy` as LeRobot's commands expect it: the training loss here, chunks and single actions in `acting`.

Data contract (B samples, C cameras, T = chunk_size, D = action_dim, P prompt tokens):

=====================================  ==================  =========  =======================================
key                                    shape               dtype      content
=====================================  ==================  =========  =======================================
``observation.image(s.<camera>)``      (B, 3, H, W)        float32    pixels in [0, 1] (uint8: 0..255); any size
``observation.language.tokens``        (B, P)              int64      prompt ids, left-padded (vla0_prompt step)
``observation.language.attention_mask``  (B, P)            bool       false on padding
``observation.vla0_origin``            (B, D)              float32    with relative actions only: see `relative`
``action`` (training)                  (B, T, D)           float32    normalised, nominally in [-1, 1]
``action_is_pad`` (training)           (B, T)              bool       true past the end of the episode
=====================================  ==================  =========  =======================================

`predict_action_chunk` returns (B, T, D) and `select_action` (B, D), float32 in [-1, 1]; the
post-processor turns both into the robot's units. Actions lie inside the range of the training data by
construction: a bin cannot express anything else, and ensembling and ``max_action_step`` only average and hold back.
With relative actions that is the range of offsets from the state, and `select_action` may leave [-1, 1], because it
speaks of a chunk's later steps from where the robot has got to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lerobot.utils.constants import ACTION
from torch import Tensor

from lerobot_policy_vla0.acting import ActingPolicy
from lerobot_policy_vla0.backbone.vlm import VLM
from lerobot_policy_vla0.configuration_vla0 import VLA0Config
from lerobot_policy_vla0.dataset_stats import check_relative_horizon, check_stats
from lerobot_policy_vla0.errors import ActionError, ConfigError
from lerobot_policy_vla0.observations.batches import read_images, read_padding, read_prompt
from lerobot_policy_vla0.observations.cameras import image_problems, raise_for_problems
from lerobot_policy_vla0.observations.images import encode_images
from lerobot_policy_vla0.text.codec import IGNORE_INDEX, raise_non_finite_actions
from lerobot_policy_vla0.training.augmentation import AugmentationState
from lerobot_policy_vla0.training.loss import (
    answer_loss,
    answer_metrics,
    positions_per_chunk,
    warn_about_clipping,
)
from lerobot_policy_vla0.training.masking import apply_mask, draw_mask


class VLA0Policy(ActingPolicy):
    """A vision-language model that answers an image and an instruction with actions in text.

    Args:
        config: with its features filled in (LeRobot's ``make_policy`` does that).
        dataset_stats: if given, checked for usable statistics; limits in the robot's units are converted
            with them (`from_pretrained` reads the checkpoint's if there are none).
        stored_vlm: the ``vlm/`` folder of a checkpoint (`from_pretrained` passes it): the backbone is then
            built from it, downloads nothing, and its weights are loaded afterwards.
        vlm_revision: Hub revision of the backbone, if it is loaded from there.
        dataset_meta: LeRobot's; with relative actions, their statistics are held against its episodes.

    Raises:
        ConfigError, CameraError, StatsError, TokenizerError: see `lerobot_policy_vla0.errors`.
    """

    config_class = VLA0Config
    name = "vla0"

    # For LeRobot's FSDP and rollout code; `__init__` puts the classes of its own backbone here.
    _fsdp_wrap_modules: tuple[str, ...] = ("Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock")

    def __init__(
        self,
        config: VLA0Config,
        dataset_stats: dict[str, dict[str, Any]] | None = None,
        *,
        stored_vlm: Path | None = None,
        vlm_revision: str | None = None,
        dataset_meta: object = None,
    ) -> None:
        super().__init__(config)
        self.config: VLA0Config = config
        config.validate_features()
        span = None if dataset_stats is None else check_stats(config, dataset_stats)
        if dataset_stats is not None:
            check_relative_horizon(config, dataset_stats, dataset_meta)
        self.vlm = VLM.from_config(config, stored_vlm, vlm_revision)
        #: PEFT looks here to choose adapters for layers in 4 bits.
        self.is_loaded_in_4bit = config.quantization is not None
        # What FSDP shards one by one: LeRobot's name for it, and accelerate's, which it reads when the launch
        # configuration names no classes. They depend on the backbone's family.
        self._fsdp_wrap_modules = self._no_split_modules = self.vlm.layer_classes
        self.image_settings = config.image_settings(self.vlm.patch_size, self.vlm.merge_size)
        self.codec = config.codec(self.vlm.tokens)
        # In the weights, so that a resumed run draws the same crops, jitter and masks as an uninterrupted one.
        self.augmentation = AugmentationState()
        self._warned_clipping = False
        self._begin_acting(span)
        self.reset()

    # ------------------------------------------------------------------ training

    def get_optim_params(self) -> list[Tensor]:
        """Return the parameters to train.

        Raises:
            ConfigError: if an option needs an adapter and there is none.
        """
        for name, wanted in (("lora_vision", False), ("quantization", None)):
            value = getattr(self.config, name)
            if value != wanted and not self.config.use_peft:
                raise ConfigError(
                    f"{name}={value!r} is for training an adapter, and there is none. Add --peft.method_type=LORA, or "
                    f"leave {name} at {wanted}."
                )
        return [p for p in self.parameters() if p.requires_grad]

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """Return the loss on the action text, and scalars to log.

        Augmentation (crop, colour, masking) is on exactly when the policy is in training mode. The batch
        is not modified.

        Args:
            batch: see the data contract above.
            reduction: ``mean`` over all labelled tokens, or ``none`` for one value per sample, scaled so
                that their mean is the ``mean`` result.

        Returns:
            The loss, ``()`` or ``(B,)``, and ``loss``, ``token_accuracy``, ``first_digit_accuracy``,
            ``first_step_accuracy``, ``bin_error`` (bins), ``clipped_fraction``, ``masked_fraction``.

        Raises:
            ImageError, CameraError, ActionError, PromptError: for unusable input.
        """
        if reduction not in ("mean", "none"):
            raise ConfigError(f"reduction={reduction!r} must be 'mean' or 'none'.")
        generator = self._next_generator() if self.training else None
        prompt, prompt_mask = read_prompt(batch, self._device)
        images = read_images(batch, self.config, self._device)
        if ACTION not in batch:
            raise ActionError(f"the batch has no {ACTION!r}; it has {sorted(batch)}. Training needs actions.")
        actions: Tensor = batch[ACTION].to(prompt.device)
        if actions.is_floating_point() and actions.element_size() < 4:
            raise ActionError(
                f"the actions arrived as {actions.dtype}, which is too coarse for bins, expected torch.float32. "
                "Under FSDP, accelerate casts a policy's inputs when it autocasts itself: train with "
                "--policy.dtype=autocast_bfloat16 (docs/scaling.md)."
            )
        problems = image_problems(images)
        bad_actions = ~torch.isfinite(actions)

        bins, clipped = self.codec.actions_to_bins(actions.nan_to_num())
        chunk = self.codec.encode_bins(bins)
        answer = chunk.ids
        labels = chunk.ids.masked_fill(~chunk.is_token, IGNORE_INDEX)
        if not self.config.loss_on_padding:
            labels = labels.masked_fill(
                read_padding(batch, chunk.number, self.config.action_dim), IGNORE_INDEX
            )
        hidden_share = torch.zeros((), device=answer.device)
        if generator is not None and self.config.action_mask_max_ratio > 0:
            hide = draw_mask(
                chunk,
                max_ratio=self.config.action_mask_max_ratio,
                skip_prob=self.config.action_mask_skip_prob,
                unit=self.config.action_mask_unit,
                generator=generator,
            )
            answer, labels = apply_mask(answer, labels, hide, self.vlm.tokens.mask)
            hidden_share = hide.sum() / chunk.is_text.sum()

        with self._autocast():
            pixel_values, grid_thw = encode_images(images, self.image_settings, generator)
            # The state at column c predicts the token at c + 1: one before the answer to one before its end.
            hidden = self.vlm.hidden_states(
                torch.cat([prompt, answer], dim=1),
                torch.cat([prompt_mask, chunk.is_token], dim=1),
                pixel_values,
                grid_thw,
                first=prompt.shape[1] - 1,
            )
            result = answer_loss(
                hidden[:, :-1],
                labels,
                self.vlm.logits,
                chunk=positions_per_chunk(self.vlm.vocabulary_size),
            )
        loss = result.per_sample.mean()
        scalars = {
            "loss": loss.detach(),
            **answer_metrics(result, chunk, self.vlm.tokens.digits, self.config.action_dim),
            "clipped_fraction": clipped.float().mean(),
            "masked_fraction": hidden_share,
        }
        # One transfer for all scalars and all input checks.
        packed = torch.cat(
            [
                torch.stack([value.float() for value in scalars.values()]),
                bad_actions.any().float().view(1),
                problems.flatten(),
            ]
        ).tolist()
        n = len(scalars)
        raise_for_problems(_pairs(packed[n + 1 :]), self.config.camera_keys)
        if packed[n]:
            raise_non_finite_actions(bad_actions)
        metrics = dict(zip(scalars, packed, strict=False))
        if metrics["clipped_fraction"] > 0 and not self._warned_clipping:
            self._warned_clipping = True
            warn_about_clipping(clipped)
        return (loss if reduction == "mean" else result.per_sample), metrics

    def _next_generator(self) -> torch.Generator:
        """Return the generator of this training step, the same after a resume."""
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        return self.augmentation.next_generator(rank)


def _pairs(values: list[float]) -> list[tuple[float, float]]:
    """Group a flat list in twos."""
    return list(zip(values[::2], values[1::2], strict=True))
