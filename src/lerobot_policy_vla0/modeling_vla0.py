"""`VLA0Policy`: training loss, action chunks and single actions, as LeRobot's commands expect them.

Data contract (B samples, C cameras, T = chunk_size, D = action_dim, P prompt tokens):

=====================================  ==================  =========  =======================================
key                                    shape               dtype      content
=====================================  ==================  =========  =======================================
``observation.image(s.<camera>)``      (B, 3, H, W)        float32    pixels in [0, 1] (uint8: 0..255); any size
``observation.language.tokens``        (B, P)              int64      prompt ids, left-padded (vla0_prompt step)
``observation.language.attention_mask``  (B, P)            bool       false on padding
``action`` (training)                  (B, T, D)           float32    normalised, nominally in [-1, 1]
``action_is_pad`` (training)           (B, T)              bool       true past the end of the episode
=====================================  ==================  =========  =======================================

`predict_action_chunk` returns (B, T, D) and `select_action` (B, D), float32 in [-1, 1]; the
post-processor turns both into the robot's units. Actions lie inside the range of the training data by
construction: a bin cannot express anything else.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import ModelCard
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION
from torch import Tensor

from lerobot_policy_vla0 import adapters
from lerobot_policy_vla0.augmentation import AugmentationState
from lerobot_policy_vla0.batches import grey_batch, n_rows, read_images, read_padding, read_prompt
from lerobot_policy_vla0.cameras import image_problems, raise_for_problems
from lerobot_policy_vla0.checkpoint import (
    check_same_answer,
    load_weights,
    read_config,
    resolve_checkpoint,
    weights_to_save,
)
from lerobot_policy_vla0.codec import IGNORE_INDEX, ActionCodec, raise_non_finite_actions
from lerobot_policy_vla0.configuration_vla0 import VLA0Config
from lerobot_policy_vla0.decoding import Decoder, DecodeRequest, build_decoder
from lerobot_policy_vla0.decoding.report import DecodeReport
from lerobot_policy_vla0.ensembling import TemporalEnsembler, snap_binary
from lerobot_policy_vla0.errors import ActionError, CheckpointError, ConfigError
from lerobot_policy_vla0.images import encode_images
from lerobot_policy_vla0.masking import apply_mask, draw_mask
from lerobot_policy_vla0.processor_vla0 import check_action_stats
from lerobot_policy_vla0.publishing import build_model_card
from lerobot_policy_vla0.realtime import committed_bins
from lerobot_policy_vla0.thread_guard import ThreadGuard
from lerobot_policy_vla0.training import (
    answer_loss,
    answer_metrics,
    positions_per_chunk,
    warn_about_clipping,
)
from lerobot_policy_vla0.vlm import VLM, VLM_FOLDER

logger = logging.getLogger(__name__)


class VLA0Policy(PreTrainedPolicy):
    """A vision-language model that answers an image and an instruction with actions in text.

    Args:
        config: with its features filled in (LeRobot's ``make_policy`` does that).
        dataset_stats: if given, checked for usable action statistics.
        stored_vlm: the ``vlm/`` folder of a checkpoint (`from_pretrained` passes it): the backbone is then
            built from it, downloads nothing, and its weights are loaded afterwards.
        vlm_revision: Hub revision of the backbone, if it is loaded from there.
        dataset_meta: accepted because LeRobot passes it; unused.

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
        del dataset_meta
        self.config: VLA0Config = config
        config.validate_features()
        if dataset_stats is not None:
            check_action_stats(config, dataset_stats)
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
        self._guard = ThreadGuard()
        self._queue: deque[Tensor] = deque()
        self._decoder: Decoder | None = None
        self._decoder_device: torch.device | None = None
        self._warned_clipping = False
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
        """Forget queued actions and earlier chunks, so that no stale motion is left."""
        self._queue.clear()
        self._ensembler.reset()

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
            ConfigError: if ``inference_delay`` does not fit the chunk.
            ActionError: if ``prev_chunk_left_over`` has a wrong shape or NaN/Inf.
            ImageError, CameraError, PromptError: for unusable input.
        """
        if kwargs:
            raise ConfigError(
                f"predict_action_chunk got {sorted(kwargs)}, which this policy does not support; pass the batch, "
                "inference_delay and prev_chunk_left_over."
            )
        with self._guard.exclusive():
            committed = committed_bins(self.codec, prev_chunk_left_over, inference_delay, n_rows(batch))
            return snap_binary(self._predict(batch, committed), self.config.binary_action_indices)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """Return the next action of each row, querying the model when the queue is empty.

        Args:
            batch: see the data contract above.
            **kwargs: none are supported; anything given is refused rather than ignored.

        Returns:
            ``(B, action_dim)`` float32 in ``[-1, 1]``.

        Raises:
            SharedPolicyError: if several threads drive this object.
            ActionError: if the batch size changes within an episode.
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
            if not self._queue:
                chunk = self._predict(batch)
                actions = snap_binary(self._ensembler.update(chunk), self.config.binary_action_indices)
                self._queue.extend(actions.unbind(1))
            return self._queue.popleft()

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

    def _predict(self, batch: dict[str, Any], committed: Tensor | None = None) -> Tensor:
        """Return the raw chunk ``(B, T, D)`` in ``[-1, 1]``, beginning with ``committed`` bins ``(B, n, D)``."""
        prompt, prompt_mask = read_prompt(batch, self._device)
        images = read_images(batch, self.config, self._device)
        raise_for_problems(image_problems(images).tolist(), self.config.camera_keys)
        with self._autocast(), self._evaluating():
            pixel_values, grid_thw = encode_images(images, self.image_settings, None)
            ids = self.decoder.decode(
                DecodeRequest(
                    prompt,
                    prompt_mask,
                    pixel_values,
                    grid_thw,
                    committed,
                    steps_since=self.config.n_action_steps,
                )
            )
        return self.codec.bins_to_actions(self.codec.decode_ids(ids))

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
        """Leave training mode for a while: checkpointing and dropout have no place in decoding."""
        was_training = self.training
        self._evaluates = True
        if was_training:
            self.eval()
        try:
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

    # ------------------------------------------------------------------ adapters

    def wrap_with_peft(
        self, peft_config: Any = None, peft_cli_overrides: dict[str, Any] | None = None
    ) -> Any:
        """Freeze the policy and put adapters into it; LeRobot calls this for ``--peft.*``.

        Works from the bare backbone too: the adapter then names ``vlm_model_name`` as its base.

        Args:
            peft_config: PEFT's config, or None for one of LeRobot's overrides over this policy's defaults.
            peft_cli_overrides: LeRobot's ``--peft.*``.

        Returns:
            The ``PeftModel``.

        Raises:
            ConfigError: for options an adapter makes inert, or adapters on the vocabulary.
        """
        overrides = peft_cli_overrides or {}
        adapters.check_options(self.config, overrides)
        if peft_config is None:
            peft_config = self._build_peft_config(overrides)
        elif overrides:
            peft_config = self._apply_peft_cli_overrides(peft_config, overrides)
        before = self.vlm.vocabulary
        self.name_or_path = (
            self.config.vlm_model_name
        )  # LeRobot puts the trained policy's here, if there is one
        wrapped = super().wrap_with_peft(adapters.complete(self, peft_config))
        adapters.refuse_changed_vocabulary(self.vlm, before)
        return wrapped

    def _get_default_peft_targets(self) -> dict[str, Any]:
        """Return PEFT options used unless ``--peft.*`` says otherwise."""
        return {"target_modules": adapters.default_targets(self.vlm, vision=self.config.lora_vision)}

    def _validate_peft_config(self, peft_config: Any) -> None:
        """Allow training from the backbone: unlike most policies, this one has no random weights there."""

    # ------------------------------------------------------------------ saving and loading

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write config, weights, and the backbone's description: nothing else is needed to load.

        Args:
            save_directory: the checkpoint's folder.
            state_dict: weights gathered from several processes (FSDP); None writes this object's own.
        """
        if state_dict is not None:
            # Gathering copies a tied weight under each of its names; the usual checkpoint has it once.
            again = {f"vlm.model.{name}" for name in self.vlm.tied_names}
            state_dict = {name: tensor for name, tensor in state_dict.items() if name not in again}
        super()._save_pretrained(save_directory, weights_to_save(self, state_dict, self.config.save_dtype))
        self.vlm.save_description(save_directory / VLM_FOLDER)

    def generate_model_card(
        self,
        dataset_repo_id: str | None = None,
        model_type: str | None = None,
        license: str | None = None,
        tags: list[str] | None = None,
        cfg: Any = None,
        dataset_meta: Any = None,
    ) -> ModelCard:
        """Return the README of a published policy; LeRobot calls this on ``--policy.push_to_hub=true``."""
        del model_type  # always this one
        return build_model_card(
            self.config,
            dataset=dataset_repo_id,
            license=license,
            tags=tags,
            training=cfg,
            dataset_meta=dataset_meta,
            adapter_base=getattr(self, "name_or_path", None),
        )

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
        **kwargs: Any,
    ) -> VLA0Policy:
        """Load a trained policy from a folder or the Hub, in evaluation mode.

        All weights come from the checkpoint: the base model is neither needed nor looked for. An adapter (LoRA) is
        loaded with its base and merged into it, in full precision even if it was trained on a 4-bit base; LeRobot's
        commands instead ask for the base alone, with the adapter's config, and put the adapter on top.

        Args:
            pretrained_name_or_path: a folder written by LeRobot, or a Hub repo id.
            config: used instead of the checkpoint's own; what the weights and the saved prompt were made
                for (``chunk_size``, ``n_bins``, cameras, ...) must agree with it.
            revision: Hub revision.
            local_files_only: do not ask the Hub.
            cache_dir: Hub cache folder.
            token: Hub token.
            force_download: ignore the cache.
            strict: refuse missing and unexpected tensors (default). False only logs them.
            **kwargs: passed to the constructor (``dataset_stats``, ``dataset_meta``).

        Raises:
            CheckpointError: naming missing files, missing, unexpected or misshapen tensors.
        """
        download: dict[str, Any] = {
            "local_files_only": local_files_only,
            "cache_dir": cache_dir,
            "token": token,
            "force_download": force_download,
        }
        for unused in ("resume_download", "proxies"):
            kwargs.pop(unused, None)
        name = str(pretrained_name_or_path)
        on_top: PreTrainedConfig | None = None  # config of the adapter that LeRobot will put on this policy
        if (
            config is not None
            and config.use_peft
            and config.pretrained_path
            and name != str(config.pretrained_path)
        ):
            on_top = read_config(
                resolve_checkpoint(config.pretrained_path, revision=config.pretrained_revision, **download)
            )
            check_same_answer(on_top, config)
        if config is not None and on_top is not None and name == getattr(on_top, "vlm_model_name", None):
            policy = cls._from_backbone(name, config, vlm_revision=revision, **kwargs)
        else:
            folder = resolve_checkpoint(name, revision=revision, **download)
            stored = read_config(folder)
            config = stored if config is None else config
            check_same_answer(stored, config)
            if adapters.is_adapter(folder):
                policy = cls._from_adapter(folder, config, strict=strict, **download, **kwargs)
                if on_top is None:
                    return policy
                policy.config = config
            else:
                policy = cls(config, stored_vlm=folder / VLM_FOLDER, **kwargs)
                load_weights(policy, folder, strict=strict)
        policy.to(policy.config.device)
        policy.eval()
        policy._cold = True
        if on_top is not None:
            adapters.expect_adapter(policy, name)
        return policy

    @classmethod
    def from_official(
        cls, source: str | Path, *, out: str | Path | None = None, **options: Any
    ) -> VLA0Policy:
        """Load a checkpoint of the paper's or vla0-trl's layout, as ``vla0 import`` and `from_pretrained` do.

        Args:
            source: a folder or Hub repo id, such as ``ankgoyal/vla0-libero``.
            out: the policy folder to make and keep; its processors are loaded from there. None imports to a
                temporary folder, which needs the weights' size in disk space for a while.
            **options: the fields of `lerobot_policy_vla0.official.ImportOptions`.

        Raises:
            CheckpointError: if ``out`` exists, or naming what the checkpoint lacks.
        """
        from lerobot_policy_vla0.official import ImportOptions, import_checkpoint

        with TemporaryDirectory() as temporary:
            folder = Path(temporary) / "policy" if out is None else Path(out)
            import_checkpoint(source, folder, ImportOptions(**options))
            return cls.from_pretrained(folder)

    @classmethod
    def _from_backbone(cls, name: str, config: VLA0Config, **kwargs: Any) -> VLA0Policy:
        """Build the policy an adapter was trained on when that was the bare backbone ``name``."""
        try:
            return cls(config, **kwargs)
        except OSError as error:
            raise CheckpointError(
                f"the adapter was trained on the backbone {name!r}, and {config.vlm_model_name!r} could not be loaded "
                f"({error}). Say where it is now with --policy.vlm_model_name=..., or check the network and "
                "HF_HUB_OFFLINE."
            ) from error

    @classmethod
    def _from_adapter(cls, folder: Path, config: Any, **kwargs: Any) -> VLA0Policy:
        """Load an adapter's base, put the adapter on it, and merge the two."""
        base, revision = adapters.base_of(folder)
        if config.quantization is not None:
            logger.info(
                "quantization=%s is dropped: an adapter is merged in full precision", config.quantization
            )
        # As LeRobot does it: the base is asked for with the adapter's path in the config.
        config = replace(config, use_peft=True, pretrained_path=folder, quantization=None, lora_vision=False)
        policy = cls.from_pretrained(base, config=config, revision=revision, **kwargs)
        return adapters.merge_into(policy, folder)


def _pairs(values: list[float]) -> list[tuple[float, float]]:
    """Group a flat list in twos."""
    return list(zip(values[::2], values[1::2], strict=True))
