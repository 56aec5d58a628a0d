"""Processor steps of the policy.

The pre-processor normalises actions and turns the task, and optionally the state, into prompt token ids; the
post-processor converts actions to the robot's units. LeRobot runs both at every control tick, so they are deterministic
and fast; the policy processes images itself, in batches on the device.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from lerobot.configs.types import FeatureType, PipelineFeatureType, PolicyFeature
from lerobot.lerobot_types import PolicyAction, TransitionKey
from lerobot.processor import (
    AbsoluteActionsProcessorStep,
    ObservationProcessorStep,
    PolicyProcessorPipeline,
    ProcessorStep,
    ProcessorStepRegistry,
    RelativeActionsProcessorStep,
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor

from lerobot_policy_vla0.dataset_stats import check_stats
from lerobot_policy_vla0.errors import CheckpointError, PromptError
from lerobot_policy_vla0.execution.relative import VLA0OriginProcessorStep, VLA0ZeroActionProcessorStep
from lerobot_policy_vla0.normalization import normalizer_processor, unnormalizer_processor
from lerobot_policy_vla0.observations.batches import QUESTION, read_state
from lerobot_policy_vla0.text.codec import quantise
from lerobot_policy_vla0.text.prompt import PromptEncoder, PromptSettings
from lerobot_policy_vla0.text.question import QUERY_KIND, QUERY_TEXT, question_settings, question_text

if TYPE_CHECKING:
    from lerobot_policy_vla0.configuration_vla0 import VLA0Config

logger = logging.getLogger(__name__)

_TOKENIZER_STATE = "tokenizer_json"


@dataclass
@ProcessorStepRegistry.register(name="vla0_prompt")
class VLA0PromptProcessorStep(ObservationProcessorStep):
    """Writes the prompt of each task, and optionally of each state, as token ids into the observation.

    Adds ``observation.language.tokens`` ``(B, P)`` int64 and ``observation.language.attention_mask`` ``(B, P)`` bool,
    left-padded, with image placeholders expanded. The tokenizer is saved with the step (``tokenizer.json`` as bytes),
    so a checkpoint needs no other repo.

    If the complementary data holds ``query_kind`` and ``query_text`` (LeRobot's text queries), the step writes that
    question instead, and adds only ``observation.vla0_question`` ``(1, P)`` int64. Such a batch has no prompt for
    actions.

    Attributes:
        system_prompt: the system message, with its numbers filled in.
        image_tokens: image tokens per image, in the order the model sees the images.
        pad_token_id: id used on the left of shorter prompts.
        add_vision_id: write ``Picture k: `` before each image.
        max_length: longest prompt accepted, in tokens.
        state_dim: dimensions of the normalised state written before the instruction; 0 writes none.
        n_bins: the integer that the upper end of the state's range is written as.
        tokenizer_json: contents of ``tokenizer.json``; a loaded checkpoint restores it from the saved state.
    """

    system_prompt: str
    image_tokens: list[int]
    pad_token_id: int
    add_vision_id: bool = False
    max_length: int = 4096
    state_dim: int = 0
    n_bins: int = 0
    tokenizer_json: str = field(default="", repr=False)

    _encoder: PromptEncoder | None = field(default=None, init=False, repr=False)
    _questions: PromptEncoder | None = field(default=None, init=False, repr=False)
    _clamped: set[int] = field(default_factory=set, init=False, repr=False)
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
                PromptSettings(**{**self.get_config(), "image_tokens": tuple(self.image_tokens)}),
            )
        return self._encoder

    @property
    def questions(self) -> PromptEncoder:
        """The encoder of questions, built on first use; see `text.question`."""
        if self._questions is None:
            actions = self.encoder  # a tokenizer takes long to read, so both share one
            self._questions = PromptEncoder(
                actions.tokenizer, question_settings(actions.settings), what="question"
            )
        return self._questions

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of the observation with the prompt of ``task``, or of the question, in it.

        Raises:
            PromptError: if the transition has no task, or one that is not text; if a question is empty or too long, or
                its kind unknown.
            StateError: if the prompt needs the state and it is missing, of the wrong shape, or NaN/Inf.
        """
        complementary = self.transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}
        if complementary.get(QUERY_KIND) is not None:
            return {**observation, QUESTION: self._write_question(complementary)}
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
        states = self._read_state(observation) if self.state_dim else None
        ids, mask = self.encoder.encode_batch(list(task), states)
        return {**observation, OBS_LANGUAGE_TOKENS: ids, OBS_LANGUAGE_ATTENTION_MASK: mask}

    def _write_question(self, complementary: dict[str, Any]) -> Tensor:
        """Return the prompt ids of a question ``(1, P)``. All rows are real, so it needs no mask."""
        task = complementary.get("task")
        if isinstance(task, list | tuple) and len(task) == 1:
            task = task[0]
        text = question_text(
            complementary[QUERY_KIND], complementary.get(QUERY_TEXT), task if isinstance(task, str) else ""
        )
        return self.questions.encode(text).unsqueeze(0)

    def _read_state(self, observation: dict[str, Any]) -> list[list[int]]:
        """Return the integers of each row's state; values outside the statistics are clamped and logged once."""
        state = read_state(observation, "state_in_prompt", self.state_dim).cpu()
        bins, clamped = quantise(state, self.n_bins)
        new = {int(d) for d in clamped.any(0).nonzero()[:, 0]} - self._clamped
        if new:
            self._clamped |= new
            logger.warning(
                "%s lies outside the range of its statistics in dimension(s) %s; the prompt says the nearest end "
                "(logged once per dimension)",
                OBS_STATE,
                sorted(new),
            )
        rows: list[list[int]] = bins.tolist()
        return rows

    def get_config(self) -> dict[str, Any]:
        """Return the JSON part of the saved step; the tokenizer is in `state_dict`."""
        return {
            "system_prompt": self.system_prompt,
            "image_tokens": list(self.image_tokens),
            "pad_token_id": self.pad_token_id,
            "add_vision_id": self.add_vision_id,
            "max_length": self.max_length,
            "state_dim": self.state_dim,
            "n_bins": self.n_bins,
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
        self._encoder = self._questions = None

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """Declare the two keys this step adds to an observation that asks for actions."""
        new = {key: dict(value) for key, value in features.items()}
        for key in (OBS_LANGUAGE_TOKENS, OBS_LANGUAGE_ATTENTION_MASK):
            new.setdefault(PipelineFeatureType.OBSERVATION, {})[key] = PolicyFeature(
                type=FeatureType.LANGUAGE, shape=(self.max_length,)
            )
        return new


def make_vla0_pre_post_processors(
    config: VLA0Config, dataset_stats: dict[str, dict[str, Any]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """Build the pipelines of a new policy; LeRobot calls this function by its name.

    Pre: rename → batch → prompt → device → normalise. Post: un-normalise → CPU. With a state in the prompt: batch →
    normalise → prompt → device. With relative actions, LeRobot's relative step follows batch and its absolute step
    follows un-normalise; the steps of `relative` stand before the relative step and after the normaliser.

    Args:
        config: the policy's config with its features filled in.
        dataset_stats: the dataset's statistics; ``action`` is required, and ``observation.state`` with
            ``state_in_prompt``.

    Raises:
        StatsError: if actions, or a state in the prompt, cannot be normalised.
    """
    # Imported here, because it needs transformers, and registering the steps does not.
    from lerobot_policy_vla0.backbone.loading import describe_backbone

    config.validate_features()
    check_stats(config, dataset_stats)
    backbone = describe_backbone(config)
    prompt_settings = config.prompt_settings(backbone.patch_size, backbone.merge_size, backbone.pad_token_id)
    steps = make_default_policy_processor_steps(config, dataset_stats)
    prompt = VLA0PromptProcessorStep(
        **{**asdict(prompt_settings), "image_tokens": list(prompt_settings.image_tokens)},
        tokenizer_json=backbone.tokenizer_json,
    )
    inputs, outputs = dict(config.input_features or {}), dict(config.output_features or {})
    options: dict[str, Any] = {"norm_map": config.normalization_mapping, "stats": dataset_stats}
    normalizer = normalizer_processor(
        features={**inputs, **outputs},
        required=[ACTION, OBS_STATE] if config.state_in_prompt else [ACTION],
        **options,
    )
    before: list[ProcessorStep] = []
    normalize: list[ProcessorStep] = [normalizer]
    after: list[ProcessorStep] = []
    if config.use_relative_actions:
        relative = RelativeActionsProcessorStep(
            enabled=True,
            exclude_joints=config.relative_exclude_joints,
            action_names=config.action_feature_names,
        )
        before = [VLA0ZeroActionProcessorStep(action_dim=config.action_dim), relative]
        normalize = [normalizer, VLA0OriginProcessorStep()]
        after = [AbsoluteActionsProcessorStep(enabled=True, relative_step=relative)]
    rest = (
        [*normalize, prompt, steps.to_device]
        if config.state_in_prompt
        else [prompt, steps.to_device, *normalize]
    )
    pipelines: tuple[Any, Any] = make_policy_processor_pipelines(
        input_steps=[steps.rename_observations, steps.add_batch_dim, *before, *rest],
        output_steps=[unnormalizer_processor(features=outputs, **options), *after, steps.to_cpu],
    )
    return pipelines
