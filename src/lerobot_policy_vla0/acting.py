"""The half of `VLA0Policy` that acts: chunks, single actions, the queue between them; nothing stale is left behind.

Shapes and keys of a batch are in `modeling_vla0`, whose other half learns.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

import torch
from numpy.typing import NDArray
from torch import Tensor

from lerobot_policy_vla0.backbone.grad_mode import without_gradients
from lerobot_policy_vla0.checkpoints.saved_policy import SavedPolicy
from lerobot_policy_vla0.configuration_vla0 import VLA0Config
from lerobot_policy_vla0.dataset_stats import check_action_stats, read_action_stats
from lerobot_policy_vla0.decoding.factory import build_decoder, build_distributions
from lerobot_policy_vla0.decoding.report import DecodeReport
from lerobot_policy_vla0.decoding.request import Decoder, DecodeRequest
from lerobot_policy_vla0.errors import ActionError, ConfigError
from lerobot_policy_vla0.execution.ensembling import TemporalEnsembler, snap_binary
from lerobot_policy_vla0.execution.realtime import Deadline, committed_steps
from lerobot_policy_vla0.execution.relative import read_origin
from lerobot_policy_vla0.execution.step_limit import ActionLimiter, step_limits
from lerobot_policy_vla0.execution.thread_guard import ThreadGuard
from lerobot_policy_vla0.observations.batches import (
    check_robot,
    grey_batch,
    n_rows,
    note_image_sizes,
    read_images,
    read_prompt,
)
from lerobot_policy_vla0.observations.cameras import image_problems, raise_for_problems
from lerobot_policy_vla0.observations.images import ImageSettings, encode_images
from lerobot_policy_vla0.text.codec import ActionCodec, quantise

logger = logging.getLogger(__name__)
#: One debug record per query of `select_action`, for who evaluates; nobody formats it unless asked to.
query_logger = logging.getLogger("lerobot_policy_vla0.queries")


class ActingPolicy(SavedPolicy):
    """Turns observations into actions with the model that the other half loads and trains."""

    codec: ActionCodec
    image_settings: ImageSettings

    # For LeRobot's rollout code.
    _action_queue_attrs = ("_queue",)

    def _begin_acting(self, span: Tensor | None) -> None:
        """Build what acting needs; the codec is there already.

        Args:
            span: see `action_limit.step_limits`; None if the data set's statistics are not known yet.
        """
        self._ensembler = TemporalEnsembler(
            n_chunks=self.config.ensemble_n_chunks,
            n_action_steps=self.config.n_action_steps,
            old_weight=self.config.ensemble_old_weight,
        )
        # With relative actions, those that are not.
        self._absolute_dimensions = self.config.absolute_dimensions
        # Limits in the robot's units wait for the checkpoint's statistics (`loaded`) if there are none.
        waits = self.config.max_action_step_unit == "robot" and span is None
        self._limiter = None if waits else _build_limiter(self.config, span)
        self._deadline = Deadline(self.config.chunk_size)
        self._guard = ThreadGuard()
        self._queue: deque[Tensor] = deque()
        self._decoder: Decoder | None = None
        self._decoder_device: torch.device | None = None
        self._noted_sizes = False
        self._cold = False
        self._evaluates = False

    def reset(self) -> None:
        """Start a new episode: forget queued actions and earlier chunks.

        The first call on a loaded policy also warms the decoder up for batches of one row, so that a robot's first
        control step is not slower than the rest; call `warm_up` for others.
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

    @without_gradients
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

    @without_gradients
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
            if self.config.max_action_step is None:
                return actions
            self._limiter = _build_limiter(self.config, None)  # raises if limits still wait for statistics
            assert self._limiter is not None
        return self._limiter.apply(actions, executed=executed, continues=continues)

    @without_gradients
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

    @without_gradients
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

    def train(self, mode: bool = True) -> Self:
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
