"""The reference decoder: Hugging Face ``generate`` under the grammar. Slow, simple, and the oracle.

Every faster decoder is tested against it token for token, so it takes no shortcut: the full vocabulary
projection, one token per pass, transformers' own positions and cache.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper

from lerobot_policy_vla0.decoding import DecodeRequest
from lerobot_policy_vla0.decoding.grammar import AnswerGrammar
from lerobot_policy_vla0.errors import DecodeError

if TYPE_CHECKING:
    from lerobot_policy_vla0.vlm import VLM


class GrammarLogitsProcessor(LogitsProcessor):
    """Sets the logits of every token the grammar forbids to minus infinity.

    Holds the grammar state of one generation, advanced by the token written last.

    Raises:
        DecodeError: if a row's logits hold NaN or plus infinity, or no legal token is left finite.
    """

    def __init__(self, grammar: AnswerGrammar) -> None:
        self.grammar = grammar
        self._state: tuple[Tensor, Tensor] | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mask ``scores`` ``(B, V)`` for the rows whose text so far is ``input_ids`` ``(B, L)``."""
        if self._state is None:
            self._state = self.grammar.start(input_ids.shape[0])
        else:
            symbol = self.grammar.symbol_of(input_ids[:, -1])
            self._state = self.grammar.advance(*self._state, symbol)
        legal = self.grammar.legal(*self._state)  # (B, 12)
        allowed = scores[:, self.grammar.token_ids]  # (B, 12)
        if not bool(torch.isfinite(allowed).all()):
            rows = (~torch.isfinite(allowed)).any(1).nonzero()[:, 0].tolist()
            raise DecodeError(
                f"the model's logits are NaN or infinite in batch rows {rows}; no action can be derived from "
                "them. The weights are damaged or training diverged: check the training loss, and the dtype "
                "(float16 overflows where bfloat16 does not)."
            )
        masked = torch.full_like(scores, -math.inf)
        masked[:, self.grammar.token_ids] = allowed.masked_fill(~legal, -math.inf)
        return masked


class ReferenceDecoder:
    """Decodes with ``vlm.model.generate``.

    Args:
        vlm: the backbone.
        grammar: the legal answers; its tables live on the backbone's device.
        max_new_tokens: tokens of the longest legal answer.
        temperature: 0 for greedy decoding, otherwise the sampling temperature.
        repetition_penalty: transformers' penalty on tokens already in prompt or answer; 1.0 is none.
    """

    def __init__(
        self,
        vlm: VLM,
        grammar: AnswerGrammar,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        repetition_penalty: float = 1.0,
    ) -> None:
        self.vlm = vlm
        self.grammar = grammar
        self.temperature = temperature
        self.repetition_penalty = repetition_penalty
        # `generate` fills what is left open from the backbone's own generation config (which `VLM` has
        # emptied: it carries a repetition penalty) and from defaults (top_k=50 when sampling).
        sampling: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
        self._generation = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=temperature > 0,
            repetition_penalty=1.0,
            eos_token_id=vlm.tokens.end,
            pad_token_id=vlm.tokens.pad,
            use_cache=True,
            **sampling,
        )

    @torch.no_grad()
    def decode(self, request: DecodeRequest) -> Tensor:
        """Answer a batch; see `lerobot_policy_vla0.decoding.Decoder`."""
        # Penalty, temperature and grammar are one explicit list, so that their order does not depend on
        # transformers: the penalty and temperature act on the model's own logits.
        processors: Any = LogitsProcessorList()
        if self.repetition_penalty != 1.0:
            processors.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.temperature > 0:
            processors.append(TemperatureLogitsWarper(self.temperature))
        processors.append(GrammarLogitsProcessor(self.grammar))
        output = self.vlm.model.generate(
            input_ids=request.ids,
            attention_mask=request.mask.long(),
            pixel_values=request.pixel_values,
            image_grid_thw=request.grid_thw,
            mm_token_type_ids=(request.ids == self.vlm.image_token_id).int(),
            generation_config=self._generation,
            logits_processor=processors,
        )
        answer: Tensor = output[:, request.ids.shape[1] :]
        return answer
