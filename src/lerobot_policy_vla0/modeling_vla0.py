"""`VLA0Policy`: the data contract, construction, training, acting, answering questions, saving and loading.

Data contract (B samples, C cameras, T = chunk_size, D = action_dim, P prompt tokens):

=====================================  ==================  =========  =======================================
key                                    shape               dtype      content
=====================================  ==================  =========  =======================================
``observation.image(s.<camera>)``      (B, 3, H, W)        float32    pixels in [0, 1] (uint8: 0..255); any size
``observation.language.tokens``        (B, P)              int64      prompt ids, left-padded (vla0_prompt step)
``observation.language.attention_mask``  (B, P)            bool       false on padding
``observation.vla0_question``          (1, P)              int64      a question's prompt ids, in place of the two above
``observation.vla0_origin``            (B, D)              float32    with relative actions only: see `relative`
``action`` (training)                  (B, T, D)           float32    normalised, nominally in [-1, 1]
``action_is_pad`` (training)           (B, T)              bool       true past the end of the episode
=====================================  ==================  =========  =======================================

A batch asks for actions or holds a question (`generate_text`), never both; each method refuses the other kind.

`predict_action_chunk` returns (B, T, D) and `select_action` (B, D), float32 in [-1, 1]; the post-processor turns both
into the robot's units. Actions always lie inside the range of the training data, because bins express nothing else, and
ensembling and ``max_action_step`` only average and reduce changes. With relative actions this is the range of offsets
from the state; `select_action` may then leave [-1, 1], because it returns the later steps of a chunk relative to the
state that the robot has reached by then.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from huggingface_hub import ModelCard
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import NormalizationMode
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, POLICY_POSTPROCESSOR_DEFAULT_NAME
from numpy.typing import NDArray
from torch import Tensor

from lerobot_policy_vla0.backbone.described import DescribedVLM
from lerobot_policy_vla0.backbone.grad_mode import without_gradients
from lerobot_policy_vla0.backbone.quantization import refuse_training
from lerobot_policy_vla0.backbone.shared_prefix import prefix_facts
from lerobot_policy_vla0.backbone.vlm import VLM
from lerobot_policy_vla0.checkpoints import adapters, lerobot_api
from lerobot_policy_vla0.checkpoints.fine_tuning import check_dataset, warn_about_other_ranges
from lerobot_policy_vla0.checkpoints.model_card import build_model_card
from lerobot_policy_vla0.checkpoints.saved_normalizers import check_normalizers, read_normalizers
from lerobot_policy_vla0.checkpoints.saved_policy import load_policy, save_policy
from lerobot_policy_vla0.configuration_vla0 import VLA0Config
from lerobot_policy_vla0.dataset_stats import (
    ActionRange,
    check_relative_horizon,
    check_stats,
    warn_about_constant_actions,
)
from lerobot_policy_vla0.decoding.distribution import along_answer
from lerobot_policy_vla0.decoding.factory import build_decoder, build_distributions
from lerobot_policy_vla0.decoding.free_text import (
    MAX_NEW_TOKENS,
    can_answer,
    log_likelihood,
    prepare_question,
    refuse_unable,
    write_answer,
)
from lerobot_policy_vla0.decoding.report import DecodeReport
from lerobot_policy_vla0.decoding.request import Decoder, DecodeRequest
from lerobot_policy_vla0.errors import ActionError, ConfigError, EngineError, QuestionError, StatsError
from lerobot_policy_vla0.execution.chunk_executor import ChunkExecutor
from lerobot_policy_vla0.execution.relative import read_origin
from lerobot_policy_vla0.execution.start_state import TrainingStates
from lerobot_policy_vla0.execution.thread_guard import ThreadGuard
from lerobot_policy_vla0.observations.batches import (
    check_robot,
    grey_batch,
    image_problems,
    n_rows,
    note_image_sizes,
    raise_for_problems,
    read_images,
    read_padding,
    read_prompt,
)
from lerobot_policy_vla0.observations.images import encode_images, grid_size, make_pictures
from lerobot_policy_vla0.text.codec import IGNORE_INDEX, quantise, raise_non_finite_actions
from lerobot_policy_vla0.text.question import NEXT_SUBTASK, QUERY_KIND, subtask_line
from lerobot_policy_vla0.training.augmentation import AugmentationState
from lerobot_policy_vla0.training.loss import (
    answer_loss,
    answer_metrics,
    positions_per_chunk,
    warn_about_clipping,
)
from lerobot_policy_vla0.training.masking import apply_mask, draw_mask
from lerobot_policy_vla0.training.scalars import StepScalars

if TYPE_CHECKING:
    from transformers.generation.streamers import BaseStreamer

logger = logging.getLogger(__name__)
#: One DEBUG record per model query of `select_action`; `vla0 eval` reads it.
query_logger = logging.getLogger("lerobot_policy_vla0.queries")


class VLA0Policy(PreTrainedPolicy):
    """A vision-language model that answers an image and an instruction with actions in text.

    Args:
        config: with its features filled in (LeRobot's ``make_policy`` does that).
        dataset_stats: checked if given; limits in the robot's units are converted with them. If they are None,
            `from_pretrained` reads the checkpoint's.
        stored_vlm: the ``vlm/`` folder of a checkpoint (`from_pretrained` passes it): the backbone is built from it
            without a download, and its weights are loaded afterwards.
        vlm_revision: Hub revision of the backbone, if it is loaded from there.
        dataset_meta: LeRobot's, if the policy is to be trained: its cameras and state are compared with the config, and
            with relative actions its episodes with the statistics.

    Raises:
        ConfigError, CameraError, StatsError, StateError, TokenizerError: see `lerobot_policy_vla0.errors`.
    """

    config_class = VLA0Config
    name = "vla0"
    config: VLA0Config

    # `__init__` replaces these names by those of the actual backbone.
    _fsdp_wrap_modules: Any = ("Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock")
    _no_split_modules: Any = _fsdp_wrap_modules

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
        if dataset_meta is not None:
            check_dataset(config, dataset_stats, dataset_meta)
        actions = None if dataset_stats is None else check_stats(config, dataset_stats)
        if dataset_stats is not None:
            check_relative_horizon(config, dataset_stats, dataset_meta)
        self._dataset_stats = dataset_stats
        resumed = None if stored_vlm else lerobot_api.resumed_description(config)
        self.vlm = (DescribedVLM if config.engine else VLM).from_config(
            config, stored_vlm or resumed, vlm_revision
        )
        if resumed:
            lerobot_api.forget_weights(self)
        #: PEFT reads this to choose adapters for layers in 4 bits.
        self.is_loaded_in_4bit = config.quantization == "nf4"
        lerobot_api.declare_layer_classes(self, self.vlm.layer_classes)
        self.image_settings = config.image_settings(self.vlm.patch_size, self.vlm.merge_size)
        self.codec = config.codec(self.vlm.tokens)
        # It is saved with the weights, so that a resumed run draws the same crops, jitter and masks.
        self.augmentation = AugmentationState()
        self._warned_clipping = False
        self.executor = ChunkExecutor(config, actions)
        self._guard = ThreadGuard()
        self._gathered: dict[str, Tensor] | None = None  # the weights that `save_pretrained` was given
        self._decoder: Decoder | None = None
        self._decoder_device: torch.device | None = None
        self._noted_sizes = False
        self._training_states: TrainingStates | None = None  # until the first observation is compared with it
        self._action_range: ActionRange | None = None  # None until a checkpoint's statistics are known
        if actions is not None:
            self._learn_ranges(actions, dataset_stats, config.normalization_mapping.get("STATE"))
        self._cold = False  # whether the first reset warms the decoder up
        # Whether the weights without an adapter are the backbone's, and not those of a trained policy.
        self._on_backbone = not (stored_vlm or resumed)
        self._said_who_answers = False
        self._decoding = False  # whether `_evaluating` has left training mode for a while

    # ------------------------------------------------------------------ training

    def get_optim_params(self) -> list[Tensor]:
        """Return the parameters to train.

        Raises:
            ConfigError: if an option needs an adapter and there is none, an engine has the weights, or they are
                quantised for inference.
        """
        if self.config.engine is not None:
            raise ConfigError(
                f"engine={self.config.engine!r} has the weights, so there is nothing to train here. Train without "
                "--policy.engine."
            )
        refuse_training(self.config)
        for name, wanted in (("lora_vision", False), ("quantization", None)):
            value = getattr(self.config, name)
            if value != wanted and not self.config.use_peft:
                raise ConfigError(
                    f"{name}={value!r} is for training an adapter, and there is none. Add --peft.method_type=LORA, or "
                    f"leave {name} at {wanted}."
                )
        return [p for p in self.parameters() if p.requires_grad]

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[Tensor, StepScalars]:
        """Return the loss on the action text, and scalars to log.

        Augmentation (crop, colour, masking) is on if the policy is in training mode. The batch is not modified.

        Args:
            batch: see the data contract above.
            reduction: ``mean`` over all labelled tokens, or ``none`` for one value per sample, scaled so that their
                mean is the ``mean`` result.

        Returns:
            The loss, ``()`` or ``(B,)``, and ``loss``, ``token_accuracy``, ``first_digit_accuracy``,
            ``first_step_accuracy``, ``bin_error`` (bins), ``clipped_fraction``, ``masked_fraction``, which the first
            look reads from the device.

        Raises:
            ImageError, CameraError, ActionError, PromptError: for unusable input.
            QuestionError: if the batch holds a question.
        """
        if reduction not in ("mean", "none"):
            raise ConfigError(f"reduction={reduction!r} must be 'mean' or 'none'.")
        prompt, prompt_mask = read_prompt(batch, self.device)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        generator = self.augmentation.next_generator(rank) if self.training else None
        images = read_images(batch, self.config, self.device)
        if ACTION not in batch:
            raise ActionError(f"the batch has no {ACTION!r}; it has {sorted(batch)}. Training needs actions.")
        actions: Tensor = batch[ACTION].to(prompt.device)
        if actions.is_floating_point() and actions.element_size() < 4:
            raise ActionError(
                f"the actions arrived as {actions.dtype}, which is too coarse for bins, expected torch.float32. "
                "Under FSDP, accelerate casts a policy's inputs when it autocasts itself: train with "
                "--policy.dtype=autocast_bfloat16, with LeRobot 0.6.2 --accelerator.mixed_precision=no "
                "(docs/scaling.md)."
            )
        problems = image_problems(images)
        bad_actions = ~torch.isfinite(actions)

        bins, clipped = self.codec.actions_to_bins(actions.nan_to_num())
        chunk = self.codec.encode_bins(bins, trim=False)
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

        # The step's only wait for the device: sizes that follow from the data, and whether the input is good. float32
        # holds every size exactly (below 16.7 million tokens).
        sizes = torch.stack([chunk.is_token.sum(1).max(), (labels != IGNORE_INDEX).sum()])
        facts = prefix_facts(prompt, prompt_mask, stop=self.vlm.image_token_id)
        checks = torch.stack([bad_actions.any(), clipped.any()])
        known = torch.cat([sizes, facts, checks, problems.flatten()]).float().tolist()
        longest, labelled, *prefix = map(int, known[:5])
        any_bad, any_clipped, *limits = known[5:]  # the last: lowest and highest value of each camera
        raise_for_problems(list(zip(limits[::2], limits[1::2], strict=True)), self.config.camera_keys)
        if any_bad:
            raise_non_finite_actions(bad_actions)
        if any_clipped and not self._warned_clipping:
            self._warned_clipping = True
            warn_about_clipping(clipped)
        chunk, answer, labels = chunk.trimmed(longest), answer[:, :longest], labels[:, :longest]

        with self._autocast():
            pixel_values, grid_thw = encode_images(images, self.image_settings, generator)
            # The hidden state at column c predicts the token at c + 1, so the range starts one before the answer.
            hidden = self.vlm.hidden_states(
                torch.cat([prompt, answer], dim=1),
                torch.cat([prompt_mask, chunk.is_token], dim=1),
                pixel_values,
                grid_thw,
                first=prompt.shape[1] - 1,
                size=grid_size(self.image_settings, len(images))[0],
                prefix=prefix,
            )
            result = answer_loss(
                hidden[:, :-1],
                labels,
                self.vlm.logits,
                chunk=positions_per_chunk(self.vlm.vocabulary_size),
                labelled=labelled,
            )
        loss = result.per_sample.mean()
        scalars = StepScalars(
            {
                "loss": loss,
                **answer_metrics(result, chunk, self.vlm.tokens.digits, self.config.action_dim),
                "clipped_fraction": clipped.float().mean(),
                "masked_fraction": hidden_share,
            }
        )
        return (loss if reduction == "mean" else result.per_sample), scalars

    # ------------------------------------------------------------------ acting

    @without_gradients
    def predict_action_chunk(
        self,
        batch: dict[str, Any],
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Predict a chunk from the current observation, without queue or ensembling.

        ``max_action_step`` limits each step. The first step is limited from the last committed one, or from the end of
        the previous chunk if that was executed to its end. Without ``prev_chunk_left_over`` (a first chunk, LeRobot's
        policy server) it is not known what was executed before, and the first step is not limited.

        Args:
            batch: see the data contract above.
            inference_delay: control steps that pass while this call computes (Real-Time Chunking).
            prev_chunk_left_over: ``(T', D)`` or ``(B, T', D)`` normalised actions still to be executed; the first
                ``inference_delay`` of them become the beginning of the answer.
            **kwargs: none are supported; any is refused.

        Returns:
            ``(B, T, D)`` float32 in ``[-1, 1]``.

        Raises:
            DecodeError: if the model returns NaN/Inf logits.
            ConfigError: if ``inference_delay`` is negative, or several chunks in a row came too late.
            ActionError: if ``prev_chunk_left_over`` has a wrong shape or NaN/Inf, or the robot has other joints.
            StateError: if the first state cannot be of the robot of the training data (`start_state`).
            ImageError, CameraError, PromptError: for unusable input.
            QuestionError: if the batch holds a question.
        """
        if kwargs:
            raise ConfigError(
                f"predict_action_chunk got {sorted(kwargs)}, which this policy does not support; pass the batch, "
                "inference_delay and prev_chunk_left_over."
            )
        with self._guard.exclusive():
            commitment = self.executor.commit(prev_chunk_left_over, inference_delay, n_rows(batch))
            bins = None if commitment.steps is None else quantise(commitment.steps, self.config.n_bins)[0]
            chunk = self._predict(batch, bins)
            # Only the limit compares chunks of different queries, so only it needs a common origin.
            origin = None if self.config.max_action_step is None else self._origin(batch)
            return self.executor.continue_chunk(chunk, commitment, origin)

    @without_gradients
    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """Return the next action of each row, querying the model when the queue is empty.

        Args:
            batch: see the data contract above.
            **kwargs: none are supported; any is refused.

        Returns:
            ``(B, D)`` float32 in ``[-1, 1]``; with relative actions, relative to the state of this batch.

        Raises:
            SharedPolicyError: if several threads use this policy.
            StateError: if the first state cannot be of the robot of the training data (`start_state`); with relative
                actions, if the batch has no origin.
            ActionError: if the batch size changes within an episode, or the robot has other joints.
            DecodeError, ImageError, CameraError, PromptError, QuestionError: as `predict_action_chunk`.
        """
        if kwargs:
            raise ConfigError(
                f"select_action got {sorted(kwargs)}, which this policy does not support; pass only the batch."
            )
        with self._guard.owned():
            rows, asks, began = n_rows(batch), not self.executor.queue, time.perf_counter()
            action = self.executor.next_action(lambda: self._predict(batch), rows, self._origin(batch))
            if asks:
                spent = 1000 * (time.perf_counter() - began)
                passes = None if self.last_decode is None else self.last_decode.passes
                query_logger.debug("query", extra={"rows": rows, "milliseconds": spent, "passes": passes})
            return action

    def reset(self) -> None:
        """Start a new episode: forget queued actions and earlier chunks.

        The first call on a loaded policy also warms the decoder up for one row, so that a robot's first control step is
        as fast as the rest; call `warm_up` for larger batches.
        """
        self._guard.release()
        if self._cold and not self.training:
            with self._guard.exclusive():
                self.warm_up()
        self.executor.reset()
        if self._decoder is not None:
            self._decoder.reset()

    def drop_queued_actions(self) -> None:
        """Forget queued actions and earlier chunks; LeRobot calls this when the task changes.

        The arm may be moving: ``max_action_step`` still limits the next action, from the last one sent.
        """
        self.executor.drop_queue()

    def supports_rtc(self) -> bool:
        """Tell LeRobot that `predict_action_chunk` supports Real-Time Chunking."""
        return True

    @without_gradients
    def warm_up(self, batch: int = 1) -> None:
        """Decode grey images for ``batch`` robots or environments once.

        This allocates caches and lets the decoder measure the best width of its passes.
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
        """Return the probability of every value of every number, given the numbers before it; for reports.

        Args:
            batch: see the data contract above.
            answers: each row's answer as grammar symbols, e.g. of ``last_decode.traces``.
            min_mass: see `decoding.distribution.NumberDistributions`; 0 is exact and slow.

        Returns:
            For each row ``(T*D, n_bins + 1)`` float64. An engine tells only how likely the alternatives to each written
            digit were; the rest of an alternative is spread evenly, as with a ``min_mass`` of 1. What it does not tell
            is NaN.

        Raises:
            EngineError: if an engine wrote other answers last.
        """
        if self.config.engine is not None:
            report = self.last_decode
            if report is None or [trace.symbols for trace in report.traces] != answers:
                raise EngineError(
                    f"the engine at {self.config.engine} tells probabilities with an answer only: ask for those of "
                    "the last one."
                )
            return [along_answer(trace, self.config.n_bins) for trace in report.traces]
        with self._guard.exclusive(), self.inference():
            reader = build_distributions(
                self.config, self.vlm, self.device, min_mass=min_mass, decoder=self.decoder
            )
            return reader.measure(self.make_request(batch), answers)

    def for_another_robot(self, decoder: Decoder) -> Self:
        """Return a policy for one more robot. It shares the weights and has its own queue, earlier chunks and limits.

        Args:
            decoder: answers this robot's requests; it has to be safe to use beside the other robots' decoders.
        """
        other = copy.copy(self)  # the same modules
        other.executor = ChunkExecutor(self.config, self._action_range)
        other._guard = ThreadGuard()
        other._decoder, other._decoder_device, other._cold = decoder, self.device, False
        return other

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Compute as a query does, in ``config.dtype`` and evaluation mode, while a decoder of this policy runs."""
        with self._autocast(), self._evaluating():
            yield

    @property
    def decoder(self) -> Decoder:
        """The decoder, built for the device the weights are on."""
        device = self.device
        if self._decoder is None or self._decoder_device != device:
            self._decoder = build_decoder(self.config, self.vlm, device)
            self._decoder_device = device
        return self._decoder

    @property
    def last_decode(self) -> DecodeReport | None:
        """Passes, tokens, time and each number's probability of the last query; None before the first."""
        return None if self._decoder is None else self._decoder.last

    def _predict(self, batch: dict[str, Any], committed: Tensor | None = None) -> Tensor:
        """Return the raw chunk ``(B, T, D)`` in ``[-1, 1]``, beginning with ``committed`` bins ``(B, n, D)``."""
        end = time.perf_counter() + self.config.min_query_ms / 1000
        with self.inference():
            ids = self.decoder.decode(self.make_request(batch, committed))
        if self.config.min_query_ms:
            time.sleep(max(0.0, end - time.perf_counter()))
        return self.codec.bins_to_actions(self.codec.decode_ids(ids)).to(self.device)

    def make_request(self, batch: dict[str, Any], committed: Tensor | None = None) -> DecodeRequest:
        """Check a batch and return what a decoder needs to answer it."""
        check_robot(batch, self.config)
        if self._training_states is not None and self._training_states.check(batch):
            self._training_states = None  # an error is raised again, a warning is not
        prompt, prompt_mask = read_prompt(batch, self.device)
        images = read_images(batch, self.config, self.device)
        self._noted_sizes = self._noted_sizes or note_image_sizes(images, self.config)
        raise_for_problems(image_problems(images).tolist(), self.config.camera_keys)
        pictures: list[Tensor] | None = None
        if self.config.engine is None:
            pixel_values, grid_thw = encode_images(images, self.image_settings, None)
        else:
            pictures = make_pictures(images, self.image_settings, None)
            pixel_values = grid_thw = torch.empty(0)
        return DecodeRequest(
            prompt,
            prompt_mask,
            pixel_values,
            grid_thw,
            committed,
            steps_since=self.config.n_action_steps,
            size=grid_size(self.image_settings, len(images))[0],
            pictures=pictures,
        )

    def _origin(self, batch: dict[str, Any]) -> Tensor | None:
        """Return the origin ``(B, D)`` of an observation's relative actions; None with absolute actions."""
        if not self.config.use_relative_actions:
            return None
        return read_origin(batch, self.config.absolute_dimensions, self.device)

    # ------------------------------------------------------------------ answering questions

    def supports_text_generation(self) -> bool:
        """Tell LeRobot whether `generate_text` can answer: not with the ``tiny`` backbone, nor with an engine."""
        return can_answer(self.config)

    def generate_text(
        self,
        batch: dict[str, Any],
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        streamer: BaseStreamer | None = None,
    ) -> str:
        """Answer a question about one observation in words.

        Queue, earlier chunks, drafts and augmentation stay as they are: the next action is the one that would have come
        without the question. An adapter is switched off for the answer, so the base model's language is intact. Without
        an adapter, or with one merged into the weights, the policy's own weights answer; the log says so once.

        Args:
            batch: what the pre-processor returns for an observation with LeRobot's ``query_kind`` (``vqa`` or
                ``next_subtask``) and ``query_text``.
            max_new_tokens: longest answer, at least 1.
            temperature: 0 is greedy; a value above 0 samples with torch's global generator.
            streamer: transformers' streamer, which gets the tokens as they are written.

        Returns:
            The answer, not empty; for ``next_subtask`` exactly one line, without list marker.

        Raises:
            QuestionError: if the batch asks for an action, the backbone is ``tiny``, or the answer is empty.
            ConfigError: for numbers out of range.
            CameraError, ImageError: for unusable pictures.
            DecodeError: if the model returns NaN/Inf logits.
            SharedPolicyError: if another thread is using this policy.
        """
        ids = self.generate_text_ids(
            batch, max_new_tokens=max_new_tokens, temperature=temperature, streamer=streamer
        )
        self._say_who_answers()
        written = self.vlm.text_of(ids)
        subtask = batch[QUERY_KIND] == NEXT_SUBTASK
        answer = subtask_line(written) if subtask else written.strip()
        if not answer:
            raise QuestionError(
                f"the model's answer says nothing: {written!r} ({len(ids)} tokens). Ask in other words, or raise the "
                "longest answer if it is short."
            )
        if len(ids) == max_new_tokens and ids[-1] not in self.vlm.end_tokens:
            logger.warning("the answer was cut after max_new_tokens=%d tokens", max_new_tokens)
        return answer

    @without_gradients
    def generate_text_ids(
        self,
        batch: dict[str, Any],
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        streamer: BaseStreamer | None = None,
    ) -> Tensor:
        """Return the token ids ``(A,)`` int64 of an answer; for arguments and errors see `generate_text`."""
        with self._answering():
            question = prepare_question(batch, self.config, self.vlm, self.device)
            return write_answer(
                self.vlm,
                question,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                streamer=streamer,
            )

    @without_gradients
    def text_log_likelihood(
        self, batch: dict[str, Any], answer: Tensor, *, with_adapter: bool = False
    ) -> Tensor:
        """Return the log-probability of each token of a given answer to a question, for reports.

        Args:
            batch: as for `generate_text`.
            answer: ``(A,)`` int64 token ids, e.g. another policy's `generate_text_ids`.
            with_adapter: leave an adapter on; `generate_text` switches it off.

        Returns:
            ``(A,)`` float32, at most 0.

        Raises:
            QuestionError, CameraError, ImageError, DecodeError, SharedPolicyError: as `generate_text`.
        """
        with self._answering(with_adapter=with_adapter):
            question = prepare_question(batch, self.config, self.vlm, self.device)
            return log_likelihood(self.vlm, question, answer)

    @contextmanager
    def _answering(self, *, with_adapter: bool = False) -> Iterator[None]:
        """Make the weights ready for a question: an adapter is off, unless ``with_adapter`` leaves it on."""
        refuse_unable(self.config)
        off = nullcontext() if with_adapter else adapters.switched_off(self.vlm)
        with self._guard.exclusive(), self._autocast(), self._evaluating(), off:
            yield

    def _say_who_answers(self) -> None:
        """Log once whose language answers."""
        if self._said_who_answers:
            return
        self._said_who_answers = True
        adapter_off = adapters.can_switch_off(self.vlm)
        if adapter_off and self._on_backbone:
            logger.info(
                "%s answers questions: the adapter is switched off for it", self.config.vlm_model_name
            )
            return
        logger.warning(
            "questions are answered by %s; fine-tuning on actions alone may have cost them their language. `vla0 ask "
            "--kept` measures how much is left. Only an adapter (LoRA) on the bare backbone that is not merged can be "
            "switched off.",
            "the weights of the policy that the adapter was trained on"
            if adapter_off
            else "the policy's own weights",
        )

    # ------------------------------------------------------------------ modes

    def train(self, mode: bool = True) -> Self:
        """Switch to training or evaluation mode; training frees the decoder's cache and cast weights."""
        if mode and not self._decoding:
            self._decoder = None
        super().train(mode)
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are; the CPU if an engine has them."""
        parameter = next(self.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Leave training mode for a while: decoding needs no checkpointing, dropout or compiled layers."""
        was_training = self.training
        self._decoding = True
        if was_training:
            self.eval()
        # Decoding passes have many shapes and write into a cache; they are captured as CUDA graphs, not compiled.
        eager = torch.compiler.set_stance("force_eager") if self.config.compile_model else nullcontext()
        try:
            with eager:
                yield
        finally:
            if was_training:
                self.train()
            self._decoding = False

    def _autocast(self) -> AbstractContextManager[Any]:
        """Compute in ``config.dtype``; LeRobot autocasts in training only, and never in RTC or async inference."""
        device = self.device.type
        if self.config.dtype == "float32":
            return nullcontext()
        return torch.autocast(device, dtype=getattr(torch, self.config.dtype.removeprefix("autocast_")))

    # ------------------------------------------------------------------ saving and loading

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        strict: bool = True,
        merge_adapter: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Load a trained policy from a folder or the Hub, in evaluation mode.

        All weights come from the checkpoint; the base model is not needed. An adapter (LoRA) is loaded with its base
        and merged into it in full precision, even if it was trained on a 4-bit base. LeRobot's commands instead ask for
        the base alone, with the adapter's config, and load the adapter themselves.

        Args:
            pretrained_name_or_path: a folder written by LeRobot, or a Hub repo id.
            config: used instead of the checkpoint's own; options fixed by training (``chunk_size``, ``n_bins``,
                cameras, ...) must be equal in both.
            revision: Hub revision.
            local_files_only: do not contact the Hub.
            cache_dir: Hub cache folder.
            token: Hub token.
            force_download: ignore the cache.
            strict: refuse missing and unexpected tensors (default). False only logs them.
            merge_adapter: False leaves an adapter beside the weights, so that `generate_text` can switch it off.
            **kwargs: passed to the constructor (``dataset_stats``, ``dataset_meta``).

        Raises:
            CheckpointError: naming missing files, missing, unexpected or misshapen tensors.
        """
        for unused in ("resume_download", "proxies"):
            kwargs.pop(unused, None)
        download: dict[str, Any] = {
            "local_files_only": local_files_only,
            "cache_dir": cache_dir,
            "token": token,
            "force_download": force_download,
        }
        policy = load_policy(
            cls,
            str(pretrained_name_or_path),
            config=config,
            revision=revision,
            strict=strict,
            download=download,
            merge=merge_adapter,
            **kwargs,
        )
        assert isinstance(policy, cls)
        return policy

    def use_checkpoint(self, folder: Path) -> None:
        """Check a checkpoint's processors and learn its ranges; let the first `reset` warm the decoder up.

        A policy that was built with a data set's statistics is trained further on them, and the checkpoint's are only
        compared with them.

        Raises:
            CheckpointError, StatsError: see `check_normalizers`.
        """
        self._cold = True
        before, after = read_normalizers(folder)
        if self._dataset_stats is not None:  # it is trained further, on these
            if after is not None:
                warn_about_other_ranges(self.config, after, self._dataset_stats)
            return
        actions = check_normalizers(self.config, before, after)
        if actions is not None:
            self._learn_ranges(
                actions, before.stats if before else None, before.mode("STATE") if before else None
            )
        if self.executor.waits_for_statistics:
            if actions is None:
                raise StatsError(
                    f"{folder} has no {POLICY_POSTPROCESSOR_DEFAULT_NAME}.json, so the range of its actions in the "
                    f"robot's units is not known; it holds {sorted(path.name for path in folder.iterdir())}. Copy the "
                    "whole checkpoint, or give max_action_step as fractions with max_action_step_unit='range' and no "
                    "min_gripper_height."
                )
            self.executor.set_limits(actions)

    def _learn_ranges(self, actions: ActionRange, stats: Any, state_mode: NormalizationMode | None) -> None:
        """Say which dimensions the policy cannot move, and keep the states to compare the first one with."""
        self._action_range = actions
        warn_about_constant_actions(self.config, actions)
        self._training_states = TrainingStates.from_stats(
            stats, state_mode or NormalizationMode.IDENTITY, self.config.action_feature_names
        )

    def save_pretrained(
        self, save_directory: str | Path, *, state_dict: dict[str, Tensor] | None = None, **options: Any
    ) -> str | None:
        """Write the policy into a folder, as `from_pretrained` reads it.

        Args:
            save_directory: the folder; it is made if it does not exist.
            state_dict: weights that were gathered from several processes; None writes the policy's own. LeRobot 0.6.2
                has no such argument and would ignore it.
            **options: LeRobot's, such as ``push_to_hub``.

        Returns:
            The address of the commit, if it was pushed.

        Raises:
            OutputError: if the disk is full or not writable.
            CheckpointError: if the written folder cannot be loaded.
        """
        self._gathered = state_dict
        try:
            return super().save_pretrained(save_directory, **options)  # type: ignore[no-any-return]
        finally:
            self._gathered = None

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.config.engine is not None:
            raise EngineError(
                f"the weights are in the engine at {self.config.engine}, so there are none to save. Copy the policy's "
                "folder instead."
            )
        save_policy(self, save_directory, self._gathered if state_dict is None else state_dict)

    def generate_model_card(
        self,
        dataset_repo_id: str | None = None,
        model_type: str | None = None,
        license: str | None = None,
        tags: list[str] | None = None,
        cfg: Any = None,
        dataset_meta: Any = None,
    ) -> ModelCard:
        """Return the README of a published policy; LeRobot 0.6.1 calls this on ``--policy.push_to_hub=true``."""
        del model_type  # it is always vla0
        return build_model_card(
            self.config,
            dataset=dataset_repo_id,
            license=license,
            tags=tags,
            training=cfg,
            dataset_meta=dataset_meta,
            adapter_base=getattr(self, "name_or_path", None),
        )

    # ------------------------------------------------------------------ adapters

    def wrap_with_peft(
        self, peft_config: Any = None, peft_cli_overrides: dict[str, Any] | None = None
    ) -> Any:
        """Freeze the policy and return it as a ``PeftModel`` with adapters; LeRobot calls this for ``--peft.*``.

        This also works from the bare backbone: the adapter then names ``vlm_model_name`` as its base.

        Args:
            peft_config: PEFT's config; None builds one from this policy's defaults and LeRobot's overrides.
            peft_cli_overrides: LeRobot's ``--peft.*``.

        Raises:
            ConfigError: for options that have no effect with an adapter, or adapters on the vocabulary.
        """
        overrides = peft_cli_overrides or {}
        adapters.check_options(self.config, overrides)
        if peft_config is None:
            peft_config = self._build_peft_config(overrides)
        elif overrides:
            peft_config = self._apply_peft_cli_overrides(peft_config, overrides)
        before = self.vlm.vocabulary
        # If training starts from a trained policy, LeRobot replaces this name by the policy's path.
        self.name_or_path = self.config.vlm_model_name
        wrapped = super().wrap_with_peft(adapters.finish_peft_config(self, peft_config))
        adapters.refuse_changed_vocabulary(self.vlm, before)
        return wrapped

    def _get_default_peft_targets(self) -> dict[str, Any]:
        return {"target_modules": adapters.default_targets(self.vlm, vision=self.config.lora_vision)}

    def _validate_peft_config(self, peft_config: Any) -> None:
        """Allow training from the backbone; unlike most policies, this one has no random weights there."""
