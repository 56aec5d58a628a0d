"""Free text: transformers' own ``generate`` with the backbone, without grammar, drafts or caches of ours.

It shares the weights with the decoders of actions and nothing else, so a question leaves no trace in an episode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from lerobot_policy_vla0.configuration_vla0 import TINY, VLA0Config
from lerobot_policy_vla0.errors import ConfigError, DecodeError, EngineError, QuestionError
from lerobot_policy_vla0.observations.batches import (
    image_problems,
    raise_for_problems,
    read_cameras,
    read_question,
)
from lerobot_policy_vla0.observations.images import encode_images, whole_picture
from lerobot_policy_vla0.text.question import NEXT_SUBTASK, QUERY_KIND, VQA, has_subtask

if TYPE_CHECKING:
    from transformers.generation.streamers import BaseStreamer

    from lerobot_policy_vla0.backbone.vlm import VLM

#: Longest answer unless the caller says otherwise, in tokens. While it is written on the control thread, the arm waits.
MAX_NEW_TOKENS = 128


def can_answer(config: VLA0Config) -> bool:
    """Return whether a policy's backbone is here and knows a language; the ``tiny`` one is random."""
    return config.vlm_model_name != TINY and config.engine is None


def refuse_unable(config: VLA0Config) -> None:
    """Refuse questions to the ``tiny`` backbone, and to one in an engine.

    Raises:
        QuestionError, EngineError: naming what would work.
    """
    if config.engine is not None:
        raise EngineError(
            f"the policy's weights are in the engine at {config.engine}, which is asked for actions only. Load the "
            "policy without --policy.engine to ask questions."
        )
    if not can_answer(config):
        raise QuestionError(
            f"the backbone is {TINY!r}: its weights never learned a language, and an answer would mean nothing. "
            "Questions need a policy trained from a Qwen2.5-VL or Qwen2-VL, such as "
            "--policy.vlm_model_name=Qwen/Qwen2.5-VL-3B-Instruct."
        )


@dataclass(frozen=True)
class Question:
    """One question about one observation.

    Attributes:
        kind: `question.VQA` or `question.NEXT_SUBTASK`.
        ids: ``(1, P)`` int64 prompt ids, image placeholders expanded.
        pixel_values: ``(patches, C*t*p*p)`` float, in the order of the placeholders.
        grid_thw: ``(images, 3)`` int64, patches per image along time, height, width.
    """

    kind: str
    ids: Tensor
    pixel_values: Tensor
    grid_thw: Tensor


def prepare_question(batch: dict[str, Any], config: VLA0Config, vlm: VLM, device: torch.device) -> Question:
    """Check a batch that the pre-processor made from a query, and return what the backbone needs to answer it.

    Args:
        batch: with ``observation.vla0_question``, ``query_kind`` and the policy's cameras, ``(1, 3, H, W)`` each.
        config: the policy's.
        vlm: the backbone.
        device: where the backbone's weights are.

    Raises:
        QuestionError: if the batch asks for an action, or holds several observations.
        CameraError, ImageError: for unusable pictures.
    """
    ids = read_question(batch, device)
    kind = batch.get(QUERY_KIND)
    if kind not in (VQA, NEXT_SUBTASK):
        raise QuestionError(
            f"the batch holds a question, but its {QUERY_KIND} is {kind!r}, expected {VQA!r} or {NEXT_SUBTASK!r}. Pass "
            "the batch as the pre-processor returns it."
        )
    images = read_cameras(batch, config, device)
    if len(images[0]) != 1:
        raise QuestionError(
            f"the batch has {len(images[0])} observations, expected one: a question is about one moment of one robot."
        )
    raise_for_problems(image_problems(images).tolist(), config.camera_keys)
    settings = whole_picture(config.image_settings(vlm.patch_size, vlm.merge_size))
    pixel_values, grid_thw = encode_images(images, settings, None)
    return Question(kind, ids, pixel_values, grid_thw)


def write_answer(
    vlm: VLM,
    question: Question,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = 0.0,
    streamer: BaseStreamer | None = None,
) -> Tensor:
    """Return the ids of the backbone's answer ``(A,)`` int64, its end token included if it came to an end.

    Args:
        vlm: the backbone, in evaluation mode.
        question: see `Question`. The answer to `NEXT_SUBTASK` ends with its first line.
        max_new_tokens: longest answer, at least 1.
        temperature: 0 is greedy; a value above 0 samples with torch's global generator.
        streamer: gets the prompt and then every token.

    Raises:
        ConfigError: for numbers out of range.
        DecodeError: if the model returns NaN/Inf logits.
    """
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens={max_new_tokens} must be at least 1.")
    if not 0 <= temperature < math.inf:  # false for NaN
        raise ConfigError(f"temperature={temperature} must be finite and at least 0 (0 is greedy).")
    # What is not set here would come from transformers' defaults, such as top_k=50 when sampling.
    sampling: dict[str, Any] = (
        {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
    )
    prompt = question.ids.shape[1]
    stops: Any = [_WholeSubtask(vlm, prompt)] if question.kind == NEXT_SUBTASK else []
    output: Tensor = vlm.model.generate(
        input_ids=question.ids,
        attention_mask=torch.ones_like(question.ids),
        pixel_values=question.pixel_values,
        image_grid_thw=question.grid_thw,
        mm_token_type_ids=(question.ids == vlm.image_token_id).int(),
        generation_config=GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=temperature > 0,
            eos_token_id=list(vlm.end_tokens),
            pad_token_id=vlm.tokens.pad,
            use_cache=True,
            **sampling,
        ),
        logits_processor=LogitsProcessorList([_Finite()]),
        stopping_criteria=StoppingCriteriaList(stops),
        streamer=streamer,
    )
    return output[0, prompt:]


def log_likelihood(vlm: VLM, question: Question, answer: Tensor) -> Tensor:
    """Return the log-probability of each token of an answer after the tokens before it: ``(A,)`` float32, at most 0.

    Args:
        vlm: the backbone, in evaluation mode.
        question: see `Question`.
        answer: ``(A,)`` int64, from `write_answer`.

    Raises:
        DecodeError: if the model returns NaN/Inf logits.
    """
    answer = answer.to(question.ids.device)
    ids = torch.cat([question.ids, answer.unsqueeze(0)], dim=1)
    # The hidden state at column c predicts the token at c + 1.
    hidden = vlm.hidden_states(
        ids,
        torch.ones_like(ids, dtype=torch.bool),
        question.pixel_values,
        question.grid_thw,
        first=question.ids.shape[1] - 1,
    )
    logits = vlm.logits(hidden[0, :-1]).float()  # (A, V)
    _check_finite(logits)
    return logits.log_softmax(-1).gather(1, answer.unsqueeze(1))[:, 0]


class _Finite(LogitsProcessor):
    """Refuses NaN and infinity: their largest value would be some token."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        _check_finite(scores)
        return scores


class _WholeSubtask(StoppingCriteria):
    """Ends an answer when its first line that says something is complete."""

    def __init__(self, vlm: VLM, prompt: int) -> None:
        self._vlm = vlm
        self._prompt = prompt

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        done = has_subtask(self._vlm.text_of(input_ids[0, self._prompt :]))
        return torch.full((len(input_ids),), done, device=input_ids.device)


def _check_finite(logits: Tensor) -> None:
    if not bool(torch.isfinite(logits).all()):
        raise DecodeError(
            "the model's logits are NaN or infinite; no answer in words can be derived from them. The weights are "
            "damaged or training diverged: check the training loss, and the dtype (float16 overflows where bfloat16 "
            "does not)."
        )
