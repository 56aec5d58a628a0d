"""`VLA0Policy`: training loss, action chunks and single actions, as LeRobot's commands expect them.

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

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lerobot.utils.constants import ACTION
from numpy.typing import NDArray
from torch import Tensor

from lerobot_policy_vla0.action_limit import ActionLimiter, step_limits
from lerobot_policy_vla0.augmentation import AugmentationState
from lerobot_policy_vla0.batches import (
    check_robot,
    grey_batch,
    n_rows,
    note_image_sizes,
    read_images,
    read_padding,
    read_prompt,
)
from lerobot_policy_vla0.cameras import image_problems, raise_for_problems
from lerobot_policy_vla0.codec import IGNORE_INDEX, ActionCodec, quantise, raise_non_finite_actions
from lerobot_policy_vla0.configuration_checks import absolute_dimensions
from lerobot_policy_vla0.configuration_vla0 import VLA0Config
from lerobot_policy_vla0.dataset_stats import (
    check_action_stats,
    check_relative_horizon,
    check_stats,
    read_action_stats,
)
from lerobot_policy_vla0.decoding import Decoder, DecodeRequest, build_decoder, build_distributions
from lerobot_policy_vla0.decoding.report import DecodeReport
from lerobot_policy_vla0.ensembling import TemporalEnsembler, snap_binary
from lerobot_policy_vla0.errors import ActionError, ConfigError
from lerobot_policy_vla0.images import encode_images
from lerobot_policy_vla0.masking import apply_mask, draw_mask
from lerobot_policy_vla0.realtime import Deadline, committed_steps
from lerobot_policy_vla0.relative import read_origin
from lerobot_policy_vla0.saving import SavedPolicy
from lerobot_policy_vla0.thread_guard import ThreadGuard
from lerobot_policy_vla0.training import (
    answer_loss,
    answer_metrics,
    positions_per_chunk,
    warn_about_clipping,
)
from lerobot_policy_vla0.vlm import VLM

logger = logging.getLogger(__name__)
#: One debug record per query of `select_action`, for who evaluates; nobody formats it unless asked to.
query_logger = logging.getLogger("lerobot_policy_vla0.queries")


class VLA0Policy(SavedPolicy):
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
    _action_queue_attrs = ("_queue",)

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
        self.codec = ActionCodec(
            self.vlm.tokens,
            n_bins=config.n_bins,
            chunk_size=config.chunk_size,
            action_dim=config.action_dim,
        )
        # In the weights, so that a resumed run draws the same crops, jitter and masks as an uninterrupted one.
        self.augmentation = AugmentationState()
        self._ensembler = TemporalEnsembler(
            n_chunks=config.ensemble_n_chunks,
            n_action_steps=config.n_action_steps,
            old_weight=config.ensemble_old_weight,
        )
        self._absolute_dimensions = absolute_dimensions(config, config.action_dim)  # under relative actions
        # Limits in the robot's units wait for the checkpoint's statistics (`loaded`) if there are none.
        waits = config.max_action_step_unit == "robot" and span is None
        self._limiter = None if waits else _build_limiter(config, span)
        self._deadline = Deadline(config.chunk_size)
        self._guard = ThreadGuard()
        self._queue: deque[Tensor] = deque()
        self._decoder: Decoder | None = None
        self._decoder_device: torch.device | None = None
        self._warned_clipping = False
        self._noted_sizes = False
        self._cold = False
        self._evaluates = False
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

    # ------------------------------------------------------------------ inference

    def reset(self) -> None:
        """Start a new episode: forget queued actions and earlier chunks.

        The first call on a loaded policy also warms the decoder up, so that the first control step is not
        slower than the rest.
        """
        self._guard.release()
        if self._cold and not self.training:
            with self._guard.exclusive():
                self.warm_up()
        self.drop_queued_actions()
        if self._decoder is not None:
            self._decoder.reset()

    def drop_queued_actions(self) -> None:
        """Forget queued actions, earlier chunks and the last action, so that no stale motion is left."""
        self._queue.clear()
        self._ensembler.reset()
        self._deadline.reset()
        if self._limiter is not None:
            self._limiter.reset()

    def supports_rtc(self) -> bool:
        """Tell LeRobot that `predict_action_chunk` can continue a chunk being executed."""
        return True

    @torch.no_grad()
    def predict_action_chunk(
        self,
        batch: dict[str, Any],
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Predict a chunk from the current observation, without queue or ensembling.

        With ``max_action_step``, steps are limited from one to the next, and the first one from the last committed
        step, or from the end of the previous chunk if that was executed to its end. Where nothing is known of what was
        executed before (no ``prev_chunk_left_over``: a first chunk, LeRobot's policy server), it is free.

        Args:
            batch: see the data contract above.
            inference_delay: control steps that pass while this call computes (Real-Time Chunking).
            prev_chunk_left_over: ``(T', D)`` or ``(B, T', D)`` normalised actions still to be executed; the first
                ``inference_delay`` of them become the beginning of the answer.
            **kwargs: none are supported; anything given is refused rather than ignored.

        Returns:
            ``(B, chunk_size, action_dim)`` float32 in ``[-1, 1]``.

        Raises:
            DecodeError: if the model returns NaN/Inf logits.
            ConfigError: if ``inference_delay`` is negative, or several chunks in a row came too late to be executed.
            ActionError: if ``prev_chunk_left_over`` has a wrong shape or NaN/Inf, or the robot other joints.
            ImageError, CameraError, PromptError: for unusable input.
        """
        if kwargs:
            raise ConfigError(
                f"predict_action_chunk got {sorted(kwargs)}, which this policy does not support; pass the batch, "
                "inference_delay and prev_chunk_left_over."
            )
        with self._guard.exclusive():
            rows = n_rows(batch)
            self._deadline.check(prev_chunk_left_over, inference_delay)
            committed = committed_steps(self.codec, prev_chunk_left_over, inference_delay, rows)
            bins = None if committed is None else quantise(committed, self.config.n_bins)[0]
            chunk = snap_binary(self._predict(batch, bins), self.config.binary_action_indices)
            ran_dry = prev_chunk_left_over is not None and not bool(prev_chunk_left_over.any())
            if self.config.max_action_step is None or not self.config.use_relative_actions:
                return self._limited(chunk, executed=committed, continues=ran_dry)
            # Chunks from different states are comparable only where they share an origin.
            origin = read_origin(batch, self._absolute_dimensions, self._device).unsqueeze(1)
            executed = None if committed is None else committed - origin
            return self._limited(chunk - origin, executed=executed, continues=ran_dry) + origin

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """Return the next action of each row, querying the model when the queue is empty.

        Args:
            batch: see the data contract above.
            **kwargs: none are supported; anything given is refused rather than ignored.

        Returns:
            ``(B, action_dim)`` float32 in ``[-1, 1]``; with relative actions, relative to the state of this batch.

        Raises:
            SharedPolicyError: if several threads drive this object.
            StateError: with relative actions, if the batch has no origin.
            ActionError: if the batch size changes within an episode, or the robot has other joints.
            DecodeError, ImageError, CameraError, PromptError: as `predict_action_chunk`.
        """
        if kwargs:
            raise ConfigError(
                f"select_action got {sorted(kwargs)}, which this policy does not support; pass only the batch."
            )
        with self._guard.owned():
            rows = n_rows(batch)
            if self._queue and len(self._queue[0]) != rows:
                raise ActionError(
                    f"the batch has {rows} rows, but the queued actions were predicted for {len(self._queue[0])}. "
                    "Call policy.reset() when the number of environments changes."
                )
            origin = None
            if self.config.use_relative_actions:
                origin = read_origin(batch, self._absolute_dimensions, self._device)
            if not self._queue:
                began = time.perf_counter()
                chunk = self._predict(batch)
                if origin is not None:  # what later ticks and other chunks can be compared with
                    chunk = chunk - origin.unsqueeze(1)
                actions = snap_binary(self._ensembler.update(chunk), self.config.binary_action_indices)
                # The queue is executed in order: limiting it here is limiting what is sent.
                self._queue.extend(self._limited(actions).unbind(1))
                spent = 1000 * (time.perf_counter() - began)
                query_logger.debug("query", extra={"rows": rows, "milliseconds": spent})
            action = self._queue.popleft()
            return action if origin is None else action + origin

    def _limited(self, actions: Tensor, *, executed: Tensor | None = None, continues: bool = True) -> Tensor:
        """Return ``(B, T, D)`` held to ``max_action_step``; see `ActionLimiter.apply`."""
        if self._limiter is None:
            self._limiter = _build_limiter(self.config, None)
            if self._limiter is None:
                return actions
        return self._limiter.apply(actions, executed=executed, continues=continues)

    @torch.no_grad()
    def warm_up(self, batch: int = 1) -> None:
        """Decode grey images once: caches are allocated and the decoder measures how wide its passes should be.

        Args:
            batch: number of environments or robots that will be driven at once.
        """
        self._cold = False
        began = time.perf_counter()
        self._predict(grey_batch(self.config, self.vlm, batch))
        self.decoder.reset()
        logger.info("decoder: warmed up in %.1f s", time.perf_counter() - began)

    @torch.no_grad()
    def number_distributions(
        self, batch: dict[str, Any], answers: list[list[int]], *, min_mass: float = 1e-3
    ) -> list[NDArray[Any]]:
        """Ask how probable every value of every number is, given the numbers before it; for reports.

        Args:
            batch: see the data contract above.
            answers: each row's answer as grammar symbols, e.g. of ``last_decode.traces``.
            min_mass: see `decoding.distribution.NumberDistributions`; 0 is exact and slow.

        Returns:
            For each row ``(T*D, n_bins + 1)`` float64.
        """
        with self._guard.exclusive(), self._autocast(), self._evaluating():
            reader = build_distributions(self.config, self.vlm, self._device, min_mass=min_mass)
            return reader.measure(self._request(batch), answers)

    def _predict(self, batch: dict[str, Any], committed: Tensor | None = None) -> Tensor:
        """Return the raw chunk ``(B, T, D)`` in ``[-1, 1]``, beginning with ``committed`` bins ``(B, n, D)``."""
        with self._autocast(), self._evaluating():
            ids = self.decoder.decode(self._request(batch, committed))
        return self.codec.bins_to_actions(self.codec.decode_ids(ids))

    def _request(self, batch: dict[str, Any], committed: Tensor | None = None) -> DecodeRequest:
        """Return what a decoder needs to answer a batch, checked."""
        check_robot(batch, self.config)
        prompt, prompt_mask = read_prompt(batch, self._device)
        images = read_images(batch, self.config, self._device)
        self._noted_sizes = self._noted_sizes or note_image_sizes(images, self.config)
        raise_for_problems(image_problems(images).tolist(), self.config.camera_keys)
        pixel_values, grid_thw = encode_images(images, self.image_settings, None)
        return DecodeRequest(
            prompt, prompt_mask, pixel_values, grid_thw, committed, steps_since=self.config.n_action_steps
        )

    @property
    def decoder(self) -> Decoder:
        """The decoder, built for the device the weights are on."""
        device = self._device
        if self._decoder is None or self._decoder_device != device:
            self._decoder = build_decoder(self.config, self.vlm, device)
            self._decoder_device = device
        return self._decoder

    @property
    def last_decode(self) -> DecodeReport | None:
        """What the last query did: passes, tokens, time, the probability of each number; None before one."""
        return None if self._decoder is None else self._decoder.last

    # ------------------------------------------------------------------ modes

    def loaded(self, folder: Path) -> None:
        """Remember to warm the decoder up on the first reset; convert limits with the checkpoint's statistics."""
        self._cold = True
        if self._limiter is None and self.config.max_action_step is not None:
            span = check_action_stats(self.config, read_action_stats(folder))
            self._limiter = _build_limiter(self.config, span)

    def train(self, mode: bool = True) -> VLA0Policy:
        """Switch to training or evaluation mode; training frees what decoding holds (cache, cast weights)."""
        if mode and not self._evaluates:
            self._decoder = None
        super().train(mode)
        return self

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.parameters()).device
        return device

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Leave training mode for a while: checkpointing, dropout and compiled layers have no place in decoding."""
        was_training = self.training
        self._evaluates = True
        if was_training:
            self.eval()
        # Passes come in many shapes and write into a cache; they are captured as CUDA graphs, not compiled.
        eager = torch.compiler.set_stance("force_eager") if self.config.compile_model else nullcontext()
        try:
            with eager:
                yield
        finally:
            if was_training:
                self.train()
            self._evaluates = False

    def _autocast(self) -> AbstractContextManager[Any]:
        """Compute in ``config.dtype``; LeRobot autocasts in training only, RTC and async never."""
        device = self._device.type
        if self.config.dtype == "float32":
            return nullcontext()
        return torch.autocast(device, dtype=getattr(torch, self.config.dtype.removeprefix("autocast_")))


def _build_limiter(config: VLA0Config, span: Tensor | None) -> ActionLimiter | None:
    """Return what applies ``max_action_step``, or None without one; ``span`` as in `action_limit.step_limits`."""
    limits = config.step_limits
    if limits is None:
        return None
    return ActionLimiter(step_limits(limits, config.max_action_step_unit, span))


def _pairs(values: list[float]) -> list[tuple[float, float]]:
    """Group a flat list in twos."""
    return list(zip(values[::2], values[1::2], strict=True))
