"""Talks to an inference server with OpenAI's chat protocol: vLLM, SGLang, llama.cpp, or any other.

Servers take a grammar and continue a begun answer in ways of their own (`Dialect`). ``GET /models`` tells which server
it is, in ``owned_by``. One that is not known gets no grammar: what it writes is only checked.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from lerobot_policy_vla0.errors import EngineError

logger = logging.getLogger(__name__)

#: Holds the key that a server may ask for; in a config it would be published with the policy.
KEY_VARIABLE = "VLA0_ENGINE_API_KEY"
#: vLLM's default limit; the twelve symbols of an answer are nearly always among them.
_TOP_LOGPROBS = 20


@dataclass(frozen=True)
class Dialect:
    """What one kind of server calls things.

    Attributes:
        name: of the server.
        grammar: the field that takes the grammar, and its language (``regex`` or ``gbnf``); None if there is none.
        nested: the grammar is in a mapping under this name inside the field.
        continues: fields that let it continue a final assistant message; None if it cannot.
        penalty: the field of a repetition penalty.
        same_penalty: the penalty is transformers': it counts the tokens of prompt and answer.
        sampling: fields that turn off what the server would otherwise do to the probabilities it samples from.
        counts_prompt: ``usage.prompt_tokens`` has one for each image token.
    """

    name: str
    grammar: tuple[str, str] | None = None
    nested: str | None = None
    continues: Mapping[str, Any] | None = None
    penalty: str | None = None
    same_penalty: bool = False
    sampling: Mapping[str, Any] = field(default_factory=dict)
    counts_prompt: bool = True

    def constraint(self, grammars: Mapping[str, str]) -> dict[str, Any]:
        """Return the fields that hold the grammar, given in every language."""
        if self.grammar is None:
            return {}
        name, language = self.grammar
        written = grammars[language]
        return {name: written if self.nested is None else {self.nested: written}}


_CONTINUE = {"add_generation_prompt": False, "continue_final_message": True}
_ALL_TOKENS = {"top_p": 1.0, "top_k": -1, "min_p": 0.0}
#: By ``owned_by``.
DIALECTS = {
    "vllm": Dialect(
        "vLLM",
        ("structured_outputs", "regex"),
        nested="regex",
        continues=_CONTINUE,
        penalty="repetition_penalty",
        same_penalty=True,
        sampling=_ALL_TOKENS,
    ),
    "sglang": Dialect(
        "SGLang",
        ("regex", "regex"),
        continues=_CONTINUE,
        penalty="repetition_penalty",  # versions of 2026 take it and do nothing (sgl-project/sglang, issue 28179)
        sampling=_ALL_TOKENS,
    ),
    "llamacpp": Dialect(
        "llama.cpp",
        ("grammar", "gbnf"),
        continues={},  # it does so by itself
        penalty="repeat_penalty",  # of the last tokens only
        sampling=_ALL_TOKENS,
        counts_prompt=False,  # some versions count the positions of an image, which are fewer
    ),
}


@dataclass(frozen=True)
class Query:
    """One chat to be answered.

    Attributes:
        messages: in OpenAI's layout.
        begun: the last message is an answer that has begun and is to be continued.
        grammars: of what is to be written, by language.
        max_tokens: of the answer.
        temperature: 0 is greedy.
        repetition_penalty: transformers'; 1.0 is none.
        seed: for sampling; None if nothing is sampled.
    """

    messages: Sequence[Mapping[str, Any]]
    begun: bool
    grammars: Mapping[str, str]
    max_tokens: int
    temperature: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None


@dataclass(frozen=True)
class Reply:
    """What a server wrote.

    Attributes:
        text: the answer.
        finish_reason: ``stop`` if it ended by itself.
        prompt_tokens: tokens of the prompt as the server counts them; None if it does not say.
        tokens: for each token that it wrote, its text and the log-probability of it and of the likeliest tokens by
            their text; empty if it does not say.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None
    tokens: list[tuple[str, dict[str, float]]] = field(default_factory=list)


class EngineClient:
    """A connection to one server.

    Args:
        address: such as ``http://localhost:8000/v1``.
        model: the served model's name; None takes the only one.
        timeout_s: seconds that connecting, sending, and each wait for a part of the answer may take.
    """

    def __init__(self, address: str, model: str | None, timeout_s: float) -> None:
        self.address = address.rstrip("/")
        self.timeout_s = timeout_s
        self.dialect = Dialect("unknown")
        self.model = model
        key = os.environ.get(KEY_VARIABLE)
        self._http = httpx.Client(
            timeout=timeout_s,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=None),
        )
        weakref.finalize(self, self._http.close)

    def connect(self) -> None:
        """Find out which server this is, and choose the model.

        Raises:
            EngineError: if it is not reachable, or does not serve the model.
        """
        listed = self._call("GET", "models").get("data")
        models = [one for one in listed or [] if isinstance(one, dict) and isinstance(one.get("id"), str)]
        names = [one["id"] for one in models]
        if self.model is None and len(names) != 1:
            raise EngineError(
                f"{self.address} serves {names}, and engine_model is not set. Choose one with --policy.engine_model."
            )
        chosen = [one for one in models if self.model in (None, one["id"])]
        # transformers lists the models of its cache, and not the folder that it was started with.
        if not models:
            logger.warning(
                "engine: %s lists no models; it is asked for %r all the same", self.address, self.model
            )
            chosen = [{"id": self.model}]
        if not chosen:
            raise EngineError(
                f"{self.address} does not serve engine_model={self.model!r}; it serves {names}. Another policy may be "
                "served there."
            )
        self.model = chosen[0]["id"]
        owner = str(chosen[0].get("owned_by", ""))
        self.dialect = DIALECTS.get(owner, Dialect(f"unknown, owned_by={owner!r}"))
        logger.info("engine: %s at %s serves %r", self.dialect.name, self.address, self.model)
        if self.dialect.grammar is None:
            logger.warning(
                "engine: %s is none of %s, so it gets no grammar. Its answers are only checked, and one that is no "
                "action is an error.",
                self.address,
                ", ".join(known.name for known in DIALECTS.values()),
            )

    def ask(self, query: Query) -> Reply:
        """Return the answer to one chat.

        Raises:
            EngineError: if there is none within ``timeout_s``, the server reports an error, or it cannot do what the
                query needs.
        """
        dialect = self.dialect
        body: dict[str, Any] = {
            "model": self.model,
            "messages": query.messages,
            "max_tokens": query.max_tokens,
            "temperature": query.temperature,
            "logprobs": True,
            "top_logprobs": _TOP_LOGPROBS,
            **dialect.constraint(query.grammars),
        }
        if query.seed is not None:
            body |= {"seed": query.seed, "top_p": 1.0, **dialect.sampling}
        if query.begun:
            if dialect.continues is None:
                raise EngineError(
                    f"{self.address} ({dialect.name}) cannot continue an answer that has begun, which Real-Time "
                    "Chunking needs. Use vLLM, SGLang or llama.cpp, or --inference.type=sync."
                )
            body |= dialect.continues
        if query.repetition_penalty != 1.0 and not dialect.same_penalty:
            raise EngineError(
                f"repetition_penalty={query.repetition_penalty} is transformers' penalty, which {dialect.name} does "
                "not have. Use vLLM, or --policy.repetition_penalty=1.0."
            )
        if dialect.penalty is not None:  # always: a server may take another one from the model's folder
            body[dialect.penalty] = query.repetition_penalty
        answer = self._call("POST", "chat/completions", body)
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"]
            usage = answer.get("usage") or {}
            content = (choice.get("logprobs") or {}).get("content") or []
            tokens = [
                (
                    one["token"],
                    {top["token"]: float(top["logprob"]) for top in [*(one.get("top_logprobs") or []), one]},
                )
                for one in content
            ]
            return Reply(
                text if isinstance(text, str) else "",
                str(choice.get("finish_reason")),
                usage.get("prompt_tokens"),
                tokens,
            )
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise EngineError(
                f"{self.address} answered {str(answer)[:300]!r}, which is no chat completion ({error!r}). Is it an "
                "OpenAI-compatible server?"
            ) from None

    def _call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Return the JSON of one request.

        A connection that was kept open may have been closed by the server meanwhile: the request is sent once more.

        Raises:
            EngineError: see `ask`.
        """
        url = f"{self.address}/{path}"
        for last in (False, True):
            try:
                response = self._http.request(method, url, json=body)
                break
            except httpx.TimeoutException:
                raise self.overdue() from None
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
                if last:
                    raise self._unreachable(url, error) from None
                logger.warning("engine: %s closed the connection (%s); asking once more", url, error)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise self._unreachable(url, error) from None
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if response.status_code != httpx.codes.OK:
            fix = "Check its log, and that it serves the folder that `vla0 export` wrote."
            if response.status_code in (401, 403):
                fix = f"Put its key into the environment variable {KEY_VARIABLE}."
            raise EngineError(
                f"{url} answered with status {response.status_code}: {response.text[:500]!r}. {fix}"
            )
        if not isinstance(answer, dict):
            raise EngineError(
                f"{url} answered {response.text[:200]!r}, which is no JSON object. Is it an OpenAI-compatible server?"
            )
        return answer

    def overdue(self) -> EngineError:
        """Return the error of an answer that takes too long."""
        return EngineError(
            f"{self.address} did not answer within engine_timeout_s={self.timeout_s:g}. Nothing was sent to the robot. "
            "Is the server overloaded? Raise --policy.engine_timeout_s if it is slower than that."
        )

    def _unreachable(self, url: str, error: Exception) -> EngineError:
        return EngineError(
            f"{url} cannot be reached ({type(error).__name__}: {error}). Is the server running, and does the address "
            "end like http://host:port/v1?"
        )
