"""The decoder without weights: an inference server writes the answer, under the same grammar.

The prompt's ids become chat messages again, with the pictures as lossless PNG; what comes back is read strictly and
becomes the ids that a decoder returns. So queue, ensembling and limits do not know the difference.
"""

from __future__ import annotations

import base64
import io
import math
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Overdue
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lerobot_policy_vla0.decoding.engine_client import EngineClient, Query, Reply
from lerobot_policy_vla0.decoding.report import DecodeReport, RowTrace
from lerobot_policy_vla0.decoding.request import DecodeRequest
from lerobot_policy_vla0.errors import EngineError, PromptError
from lerobot_policy_vla0.text.grammar import END, N_SYMBOLS, SEPARATOR, AnswerGrammar, spell
from lerobot_policy_vla0.text.grammar_languages import answer_gbnf, answer_regex
from lerobot_policy_vla0.text.prompt import Chat, read_chat

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lerobot_policy_vla0.backbone.vlm import VLM

#: Rows of a batch that are asked for at a time. A server answers several as fast as one.
_AT_A_TIME = 32
_SYMBOLS = {**{str(digit): digit for digit in range(10)}, " ": SEPARATOR}


class EngineDecoder:
    """Lets an inference server answer.

    Args:
        client: the server.
        vlm: the backbone's tokenizer and ids; no weights.
        grammar: the legal answers.
        shape: ``(chunk_size, action_dim)``.
        temperature: 0 for greedy decoding, otherwise the sampling temperature.
        repetition_penalty: transformers' penalty; 1.0 is none.
    """

    name = "engine"

    def __init__(
        self,
        client: EngineClient,
        vlm: VLM,
        grammar: AnswerGrammar,
        *,
        shape: tuple[int, int],
        temperature: float = 0.0,
        repetition_penalty: float = 1.0,
    ) -> None:
        self.client = client
        self.vlm = vlm
        self.grammar = grammar
        self.shape = shape
        self.temperature = temperature
        self.repetition_penalty = repetition_penalty
        self.last: DecodeReport | None = None
        self._connected = False
        self._end_text = vlm.tokenizer.decode([vlm.tokens.end], skip_special_tokens=False)
        self._threads = ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="vla0-engine")

    def reset(self) -> None:
        """Do nothing, because no answer depends on an earlier one."""

    def decode(self, request: DecodeRequest) -> Tensor:
        """Answer a batch; see `decoding.request.Decoder`.

        Raises:
            EngineError: if a row is not answered with an action within ``engine_timeout_s``; names the row, and nothing
                of the batch is used.
        """
        began = time.perf_counter()
        if not self._connected:
            self.client.connect()
            self._connected = True
        deadline = time.perf_counter() + self.client.timeout_s
        assert request.pictures is not None, "the policy makes pictures for an engine"
        given = request.committed_symbols(self.grammar.n_numbers)
        committed = request.committed
        asked = [
            self._threads.submit(
                self._answer,
                request.ids[row, request.mask[row]],
                [picture[row] for picture in request.pictures],
                [] if committed is None else committed[row].flatten().tolist(),
                # As in the other decoders, sampling follows torch's global generator.
                int(torch.randint(2**31 - 1, ())) if self.temperature > 0 else None,
            )
            for row in range(len(request.ids))
        ]
        rows = []
        for row, answer in enumerate(asked):
            try:
                rows.append(answer.result(max(0.0, deadline - time.perf_counter())))
            except (EngineError, Overdue) as error:
                for other in asked:
                    other.cancel()
                self._connected = False  # the server that answers next may be another one
                reason = self.client.overdue() if isinstance(error, Overdue) else error
                raise EngineError(str(reason) if len(asked) == 1 else f"row {row}: {reason}") from error
        traces = [
            RowTrace([*text, *symbols], [*[None] * len(text), *scores])
            for text, (symbols, scores) in zip(given, rows, strict=True)
        ]
        written = [len(symbols) for symbols, _ in rows]
        self.last = DecodeReport(
            decoder=f"engine ({self.client.dialect.name})",
            passes=max(written),  # token by token, as far as can be known from here
            committed=sum(map(len, given)),
            milliseconds=(time.perf_counter() - began) * 1e3,
            prefill_milliseconds=0.0,  # the server does not say
            shape=self.shape,
            traces=traces,
            stops=[
                [sum(s >= SEPARATOR for s in trace.symbols[: len(text) + k + 1]) for k in range(count)]
                for trace, text, count in zip(traces, given, written, strict=True)
            ],
        )
        return self.grammar.write([trace.symbols for trace in traces], self.vlm.tokens.pad)

    def _answer(
        self, ids: Tensor, pictures: Sequence[Tensor], committed: list[int], seed: int | None
    ) -> tuple[list[int], list[NDArray[Any] | None]]:
        """Return one row's symbols after the committed ones, and the scores behind each."""
        left = self.grammar.n_numbers - len(committed)
        if not left:
            return [], []
        begun = bool(committed)
        prefix = " ".join(map(str, committed))
        messages = as_messages(self._chat(ids), pictures)
        if begun:
            messages.append({"role": "assistant", "content": prefix})
        pattern = answer_regex(self.grammar.n_bins, left, begun=begun)
        grammars = {"regex": pattern, "gbnf": answer_gbnf(self.grammar.n_bins, left, begun=begun)}
        query = Query(
            messages,
            begun,
            grammars,
            max_tokens=left * (len(str(self.grammar.n_bins)) + 1) + 1,
            temperature=self.temperature,
            repetition_penalty=self.repetition_penalty,
            seed=seed,
        )
        reply = self.client.ask(query)
        self._check(reply, pattern, len(ids) + len(prefix), left)
        symbols = spell([int(word) for word in reply.text.split()], left)
        # The committed text ends with a number, and the space after it is written again.
        first = [SEPARATOR] if begun else []
        scores = self._scores(reply, [*first, *symbols], len(committed), begun)
        return symbols, scores[len(first) :]

    def _check(self, reply: Reply, pattern: str, prompt_tokens: int, left: int) -> None:
        """Refuse an answer that is no action, or of another prompt.

        Raises:
            EngineError: saying which.
        """
        client = self.client
        if client.dialect.counts_prompt and reply.prompt_tokens not in (None, prompt_tokens):
            raise EngineError(
                f"the prompt has {reply.prompt_tokens} tokens at {client.address} and {prompt_tokens} here, so "
                f"{client.model!r} has another chat template, tokenizer or picture size. Serve the folder that "
                "`vla0 export` wrote of this policy."
            )
        # An answer that was cut off may be legal, and its last number another one.
        if re.fullmatch(pattern, reply.text) is None or reply.finish_reason != "stop":
            constraint = client.dialect.grammar
            sent = (
                "It got no grammar, because the server is not known."
                if constraint is None
                else f"The server ignores the grammar ({constraint[0]}), or cut the answer off."
            )
            raise EngineError(
                f"{client.address} answered {reply.text[:200]!r} (finish_reason {reply.finish_reason!r}), expected "
                f"{left} integers in [0, {self.grammar.n_bins}] and 'stop'. {sent} Nothing was sent to the robot. "
                f"Check that {client.model!r} is this policy, as `vla0 export` wrote it."
            )

    def _chat(self, ids: Tensor) -> Chat:
        """Return the messages whose prompt has these ids ``(P,)``.

        Raises:
            PromptError: if no messages do; the server would see another prompt than the policy was trained with.
        """
        collapsed: list[int] = []
        for id_ in ids.tolist():
            if id_ != self.vlm.image_token_id or not collapsed or collapsed[-1] != id_:
                collapsed.append(id_)
        text = self.vlm.tokenizer.decode(collapsed, skip_special_tokens=False)
        if self.vlm.tokenizer.encode(text, add_special_tokens=False) != collapsed:
            raise PromptError(
                f"the prompt {text[:200]!r} is written with other tokens when it is read again. Change the task's text."
            )
        return read_chat(text)

    def _scores(
        self, reply: Reply, symbols: list[int], number: int, begun: bool
    ) -> list[NDArray[Any] | None]:
        """Return, for each symbol, the scores ``(12,)`` it was chosen from: log-probabilities.

        They are the server's; whether the grammar, the temperature and the penalty are in them already depends on the
        server (vLLM 0.32: the grammar is). Minus infinity where the grammar forbids a symbol or the server did not list
        it; NaN throughout if the server said nothing about it; None where there was no choice.
        """
        tables = self.grammar.host
        known = {**_SYMBOLS, self._end_text: END}
        # The end is not among the tokens of every server.
        aligned = [known.get(token) for token, _ in reply.tokens] in (symbols, symbols[:-1])
        state = number * tables.n_local
        scores: list[NDArray[Any] | None] = []
        for place, symbol in enumerate(symbols):
            if begun and place == 0:  # the space after the committed numbers
                scores.append(None)
                continue
            legal = tables.legal_rows[tables.legal_row(state)]
            if tables.forced(state) >= 0:
                scores.append(None)
            elif not aligned or place >= len(reply.tokens):
                scores.append(np.full(N_SYMBOLS, math.nan))
            else:
                found = np.full(N_SYMBOLS, -math.inf)
                for token, logprob in reply.tokens[place][1].items():
                    if (candidate := known.get(token)) is not None and legal[candidate]:
                        found[candidate] = logprob
                scores.append(found)
            state = tables.advance(state, symbol)
        return scores


def as_messages(chat: Chat, pictures: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Return a chat in OpenAI's layout, with its pictures ``(3, h, w)`` uint8 as PNG."""
    images = iter(pictures)
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": as_data_url(next(images))}}
        if part is None
        else {"type": "text", "text": part}
        for part in chat.parts
    ]
    return [{"role": "system", "content": chat.system}, {"role": "user", "content": parts}]


def as_data_url(picture: Tensor) -> str:
    """Return a picture ``(3, h, w)`` uint8 as a PNG in a data URL; PNG keeps every pixel."""
    written = io.BytesIO()
    pixels = picture.permute(1, 2, 0).to(torch.uint8).contiguous().cpu().numpy()
    Image.fromarray(pixels).save(written, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()
