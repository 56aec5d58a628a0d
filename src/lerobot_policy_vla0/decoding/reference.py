"""The reference decoder: Hugging Face ``generate`` under the grammar. It is slow and simple, and it is the oracle.

Every faster decoder is tested against it token for token. So it takes no shortcut: it runs transformers' own modules,
projects onto the whole vocabulary, writes one token per pass, and uses transformers' own positions and cache. Only the
scores of the answer's symbols are computed in float32 (`decoding.head`).
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper

from lerobot_policy_vla0.backbone.grad_mode import without_gradients
from lerobot_policy_vla0.decoding.head import AnswerHead
from lerobot_policy_vla0.decoding.report import DecodeReport, RowTrace
from lerobot_policy_vla0.decoding.request import DecodeRequest
from lerobot_policy_vla0.text.grammar import END, SEPARATOR, AnswerGrammar, check_finite

if TYPE_CHECKING:
    from lerobot_policy_vla0.backbone.vlm import VLM


class GrammarLogitsProcessor(LogitsProcessor):
    """Sets the logits of every token the grammar forbids to minus infinity, during one generation.

    Args:
        grammar: the legal answers.
        given: per row, the symbols of the answer that its input ends with.

    Raises:
        DecodeError: if a row's logits of the twelve symbols hold NaN or infinity.
    """

    def __init__(self, grammar: AnswerGrammar, given: list[list[int]]) -> None:
        self.grammar = grammar
        self.scores: list[Tensor] = []  # per token, (B, 12) masked scores
        self.first_call: float | None = None  # when the first token's logits came
        number, local = grammar.start(len(given))
        for row, symbols in enumerate(given):
            state = grammar.start(1)
            for symbol in symbols:
                state = grammar.advance(*state, torch.tensor([symbol], device=number.device))
            number[row], local[row] = state[0][0], state[1][0]
        self._state = (number, local)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mask ``scores`` ``(B, V)`` for the rows whose text so far is ``input_ids`` ``(B, L)``."""
        if self.first_call is None:
            self.first_call = time.perf_counter()
        if self.scores:
            symbol = self.grammar.symbol_of(input_ids[:, -1])
            self._state = self.grammar.advance(*self._state, symbol)
        legal = self.grammar.legal(*self._state)  # (B, 12)
        allowed = scores[:, self.grammar.token_ids]  # (B, 12)
        check_finite(torch.isfinite(allowed).all(1).cpu().numpy())
        allowed = allowed.masked_fill(~legal, -math.inf)
        self.scores.append(allowed)
        masked = torch.full_like(scores, -math.inf)
        masked[:, self.grammar.token_ids] = allowed
        return masked


class ReferenceDecoder:
    """Decodes with ``vlm.model.generate``.

    Args:
        vlm: the backbone.
        grammar: the legal answers; its tables live on the backbone's device.
        shape: ``(chunk_size, action_dim)``.
        temperature: 0 for greedy decoding, otherwise the sampling temperature.
        repetition_penalty: transformers' penalty on tokens already in prompt or answer; 1.0 is none.
    """

    name = "reference"

    def __init__(
        self,
        vlm: VLM,
        grammar: AnswerGrammar,
        *,
        shape: tuple[int, int],
        temperature: float = 0.0,
        repetition_penalty: float = 1.0,
    ) -> None:
        self.vlm = vlm
        self.grammar = grammar
        self.shape = shape
        self.temperature = temperature
        self.repetition_penalty = repetition_penalty
        self.last: DecodeReport | None = None
        # `generate` takes what is not set here from the backbone's own generation config (which `VLM` has emptied,
        # because it holds a repetition penalty) and from defaults (top_k=50 when sampling).
        sampling: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
        self._generation = GenerationConfig(
            max_new_tokens=grammar.longest_answer,
            do_sample=temperature > 0,
            repetition_penalty=1.0,
            eos_token_id=vlm.tokens.end,
            pad_token_id=vlm.tokens.pad,
            use_cache=True,
            **sampling,
        )

    def reset(self) -> None:
        """Do nothing, because no answer depends on an earlier one."""

    @without_gradients
    def decode(self, request: DecodeRequest) -> Tensor:
        """Answer a batch; see `decoding.request.Decoder`."""
        began = time.perf_counter()
        given = request.committed_symbols(self.grammar.n_numbers)
        # One explicit list fixes the order: penalty and temperature act on the model's own logits, then the grammar.
        processors: Any = LogitsProcessorList()
        if self.repetition_penalty != 1.0:
            processors.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.temperature > 0:
            processors.append(TemperatureLogitsWarper(self.temperature))
        constraint = GrammarLogitsProcessor(self.grammar, given)
        processors.append(constraint)
        ids, mask = self._with_answer(request.ids, request.mask, given)
        if given[0] and given[0][-1] == END:  # every step is committed, so there is nothing to ask
            generated = ids[:, ids.shape[1] :]
        else:
            with AnswerHead(self.vlm, self.grammar.token_ids).replacing_logits():
                output = self.vlm.model.generate(
                    input_ids=ids,
                    attention_mask=mask.long(),
                    pixel_values=request.pixel_values,
                    image_grid_thw=request.grid_thw,
                    mm_token_type_ids=(ids == self.vlm.image_token_id).int(),
                    generation_config=self._generation,
                    logits_processor=processors,
                )
            generated = output[:, ids.shape[1] :]
        symbols = [[*text, *self._until_end(row)] for text, row in zip(given, generated, strict=True)]
        answer = self.grammar.write(symbols, self.vlm.tokens.pad)
        milliseconds = (time.perf_counter() - began) * 1e3
        scores = [step.float().cpu().numpy() for step in constraint.scores]  # per token, (B, 12)
        self.last = DecodeReport(
            decoder=self.name,
            passes=len(scores),
            committed=sum(map(len, given)),
            milliseconds=milliseconds,
            prefill_milliseconds=((constraint.first_call or began) - began) * 1e3,
            shape=self.shape,
            traces=[
                RowTrace(
                    row, [*[None] * len(text), *[step[index] for step in scores[: len(row) - len(text)]]]
                )
                for index, (row, text) in enumerate(zip(symbols, given, strict=True))
            ],
            stops=[
                [sum(s >= SEPARATOR for s in row[: k + 1]) for k in range(len(text), len(row))]
                for row, text in zip(symbols, given, strict=True)
            ],
        )
        return answer

    def _with_answer(self, ids: Tensor, mask: Tensor, given: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Append each row's committed symbols to its prompt, keeping the padding on the left."""
        extra = max(map(len, given))
        if not extra:
            return ids, mask
        batch, length = ids.shape
        longer = torch.full((batch, length + extra), self.vlm.tokens.pad, device=ids.device)
        seen = torch.zeros_like(longer, dtype=torch.bool)
        for row, text in enumerate(given):
            end = length + extra - len(text)
            longer[row, end - length : end] = ids[row]
            seen[row, end - length : end] = mask[row]
            longer[row, end:] = self.grammar.token_ids[text]
            seen[row, end:] = True
        return longer, seen

    def _until_end(self, generated: Tensor) -> list[int]:
        """Return the symbols of generated ids ``(L,)`` without the padding after the end."""
        symbols: list[int] = self.grammar.symbol_of(generated).tolist()
        return symbols[: symbols.index(END) + 1] if END in symbols else symbols
