"""Processor steps: where strings end.

The pre-processor normalises actions and turns the task into prompt token ids; the post-processor
brings actions back to the robot's units. Everything here is deterministic and light, because LeRobot
runs it on every control tick; image work happens batched on the device, in the policy.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from lerobot.configs.types import FeatureType, NormalizationMode, PipelineFeatureType, PolicyFeature
from lerobot.lerobot_types import PolicyAction, TransitionKey
from lerobot.processor import (
    ObservationProcessorStep,
    PolicyProcessorPipeline,
    ProcessorStepRegistry,
    UnnormalizerProcessorStep,
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)
from lerobot.utils.constants import (
    ACTION,
    OBS_LANGUAGE_ATTENTION_MASK,
    OBS_LANGUAGE_TOKENS,
    POLICY_POSTPROCESSOR_DEFAULT_NAME,
)
from torch import Tensor

from lerobot_policy_vla0.errors import CheckpointError, PromptError, StatsError
from lerobot_policy_vla0.prompt import PromptEncoder, PromptSettings

if TYPE_CHECKING:
    from pathlib import Path

    from lerobot_policy_vla0.configuration_vla0 import VLA0Config

logger = logging.getLogger(__name__)

_STATS_OF_MODE = {
    NormalizationMode.MIN_MAX: ("min", "max"),
    NormalizationMode.QUANTILES: ("q01", "q99"),
    NormalizationMode.QUANTILE10: ("q10", "q90"),
}
_TOKENIZER_STATE = "tokenizer_json"


@dataclass
@ProcessorStepRegistry.register(name="vla0_prompt")
class VLA0PromptProcessorStep(ObservationProcessorStep):
    """Writes the prompt of each task as token ids into the observation.

    Adds ``observation.language.tokens`` ``(B, P)`` int64 and ``observation.language.attention_mask``
    ``(B, P)`` bool, left-padded, with image placeholders expanded. The tokenizer travels with the saved
    step (its ``tokenizer.json`` as bytes), so a checkpoint needs no other repo.

    Attributes:
        system_prompt: the filled system message.
        image_tokens: image tokens per image, in the order the model sees the images.
        pad_token_id: id used on the left of shorter prompts.
        add_vision_id: write ``Picture k: `` before each image.
        max_length: longest prompt accepted, in tokens.
        tokenizer_json: contents of the tokenizer's ``tokenizer.json``; restored from the saved state
            when a checkpoint is loaded.
    """

    system_prompt: str
    image_tokens: list[int]
    pad_token_id: int
    add_vision_id: bool = False
    max_length: int = 4096
    tokenizer_json: str = field(default="", repr=False)

    _encoder: PromptEncoder | None = field(default=None, init=False, repr=False)
    _warned_empty: bool = field(default=False, init=False, repr=False)

    @property
    def encoder(self) -> PromptEncoder:
        """The prompt encoder, built on first use."""
        if self._encoder is None:
            if not self.tokenizer_json:
                raise CheckpointError(
                    "the vla0_prompt processor step has no tokenizer: its saved state "
                    "(policy_preprocessor_step_*_vla0_prompt.safetensors) was not loaded. Re-download the "
                    "checkpoint, or rebuild the processors from the policy config."
                )
            from tokenizers import Tokenizer

            self._encoder = PromptEncoder(
                Tokenizer.from_str(self.tokenizer_json),
                PromptSettings(
                    system_prompt=self.system_prompt,
                    image_tokens=tuple(self.image_tokens),
                    pad_token_id=self.pad_token_id,
                    add_vision_id=self.add_vision_id,
                    max_length=self.max_length,
                ),
            )
        return self._encoder

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of the observation with the prompt of ``task`` in it.

        Raises:
            PromptError: if the transition has no task, or one that is not text.
        """
        complementary = self.transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}
        task = complementary.get("task")
        if isinstance(task, str):
            task = [task]
        if not isinstance(task, list | tuple) or not task:
            raise PromptError(
                f"task is {task!r}, expected a string or one string per sample. VLA-0 needs the instruction text "
                "(an empty string is allowed): pass --task=... to lerobot-rollout, or record it with "
                "--dataset.single_task=..."
            )
        if not self._warned_empty and not all(task):
            self._warned_empty = True
            logger.warning(
                "the task is empty, so the model gets no instruction. Pass --task=... to lerobot-rollout, record with "
                "--dataset.single_task=..., unless the policy is meant to work without."
            )
        ids, mask = self.encoder.encode_batch(list(task))
        return {**observation, OBS_LANGUAGE_TOKENS: ids, OBS_LANGUAGE_ATTENTION_MASK: mask}

    def get_config(self) -> dict[str, Any]:
        """Return the JSON part of the saved step; the tokenizer is in `state_dict`."""
        return {
            "system_prompt": self.system_prompt,
            "image_tokens": list(self.image_tokens),
            "pad_token_id": self.pad_token_id,
            "add_vision_id": self.add_vision_id,
            "max_length": self.max_length,
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tokenizer as bytes, for LeRobot's safetensors file of this step."""
        raw = bytearray(self.tokenizer_json.encode())
        return {_TOKENIZER_STATE: torch.frombuffer(raw, dtype=torch.uint8)} if raw else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the tokenizer."""
        if _TOKENIZER_STATE not in state:
            raise CheckpointError(
                f"the saved vla0_prompt step holds {sorted(state)}, expected {_TOKENIZER_STATE!r}. The checkpoint "
                "is damaged: re-download it."
            )
        self.tokenizer_json = bytes(state[_TOKENIZER_STATE].cpu().numpy()).decode()
        self._encoder = None

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """Declare the two keys this step adds."""
        new = {key: dict(value) for key, value in features.items()}
        for key in (OBS_LANGUAGE_TOKENS, OBS_LANGUAGE_ATTENTION_MASK):
            new.setdefault(PipelineFeatureType.OBSERVATION, {})[key] = PolicyFeature(
                type=FeatureType.LANGUAGE, shape=(self.max_length,)
            )
        return new


def check_action_stats(config: VLA0Config, stats: dict[str, dict[str, Any]] | None) -> Tensor:
    """Check that the dataset's statistics can normalise actions; LeRobot would skip silently otherwise.

    Returns:
        ``(D,)`` float32: what the normalised range [-1, 1] spans in the robot's units, at least 0.

    Raises:
        StatsError: naming the statistics that are missing, of the wrong shape, NaN, or out of order.
    """
    mode = config.normalization_mapping["ACTION"]
    low_key, high_key = _STATS_OF_MODE[mode]
    given = (stats or {}).get(ACTION)
    if given is None or low_key not in given or high_key not in given:
        have = sorted(given) if given is not None else "no statistics at all"
        raise StatsError(
            f"actions cannot be normalised: {mode.value} needs the action statistics {low_key!r} and "
            f"{high_key!r}, got {have}. Train or load with a dataset whose meta/stats.json has them"
            + (
                " (`python -m lerobot.scripts.augment_dataset_quantile_stats` adds quantiles)."
                if mode is not NormalizationMode.MIN_MAX
                else ", or load a trained checkpoint with --policy.path=..."
            )
        )
    low = torch.as_tensor(given[low_key], dtype=torch.float32).flatten()
    high = torch.as_tensor(given[high_key], dtype=torch.float32).flatten()
    if len(low) != config.action_dim or len(high) != config.action_dim:
        raise StatsError(
            f"the action statistics {low_key!r}/{high_key!r} have {len(low)}/{len(high)} values, but the action has "
            f"{config.action_dim} dimensions. Recompute the dataset's statistics."
        )
    bad = [
        i
        for i, (a, b) in enumerate(zip(low.tolist(), high.tolist(), strict=True))
        if not (math.isfinite(a) and math.isfinite(b)) or a > b
    ]
    if bad:
        raise StatsError(
            f"the action statistics are unusable in dimensions {bad}: {low_key}={low.tolist()}, "
            f"{high_key}={high.tolist()}; expected finite values with {low_key} <= {high_key}. Repair the dataset "
            "(NaN actions?) and recompute its statistics."
        )
    return high - low


def read_action_stats(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the statistics a checkpoint's post-processor brings actions back to the robot's units with.

    Raises:
        StatsError: if the checkpoint has no such post-processor.
    """
    name = f"{POLICY_POSTPROCESSOR_DEFAULT_NAME}.json"
    if not (folder / name).is_file():
        raise StatsError(
            f"{folder} has no {name}, so the range of its actions in the robot's units is not known; it holds "
            f"{sorted(path.name for path in folder.iterdir())}. Copy the whole checkpoint, or give max_action_step as "
            "fractions with max_action_step_unit='range'."
        )
    pipeline: PolicyProcessorPipeline[Any, Any] = PolicyProcessorPipeline.from_pretrained(
        folder, config_filename=name
    )
    stats: dict[str, dict[str, Any]] = {}
    for step in pipeline.steps:
        if isinstance(step, UnnormalizerProcessorStep):
            stats = dict(step.stats or {})
    return stats


def make_vla0_pre_post_processors(
    config: VLA0Config, dataset_stats: dict[str, dict[str, Any]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """Build the pipelines of a new policy; LeRobot calls this by name.

    Pre: rename → batch → prompt → device → normalise. Post: un-normalise → CPU.

    Args:
        config: the policy's config with its features filled in.
        dataset_stats: the dataset's statistics; those of ``action`` are required.

    Raises:
        StatsError: if actions cannot be normalised.
    """
    # Imported here: the backbone's config and tokenizer need transformers, registration does not.
    from lerobot_policy_vla0.vlm import describe_backbone

    check_action_stats(config, dataset_stats)
    backbone = describe_backbone(config)
    steps = make_default_policy_processor_steps(config, dataset_stats)
    prompt = VLA0PromptProcessorStep(
        system_prompt=config.filled_system_prompt,
        image_tokens=config.image_tokens(backbone.patch_size, backbone.merge_size),
        pad_token_id=backbone.pad_token_id,
        add_vision_id=config.add_vision_id,
        max_length=config.max_prompt_length,
        tokenizer_json=backbone.tokenizer_json,
    )
    pipelines: tuple[Any, Any] = make_policy_processor_pipelines(
        input_steps=[
            steps.rename_observations,
            steps.add_batch_dim,
            prompt,
            steps.to_device,
            steps.normalize,
        ],
        output_steps=[steps.unnormalize, steps.to_cpu],
    )
    return pipelines
