"""A stand-in for an inference engine: OpenAI's chat protocol over a small policy's weights.

It sees what a server sees, messages with PNG pictures and no token ids, and goes its own way to the answer, through
transformers' chat templates and the reference decoder. What it was asked is kept, and it can misbehave.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.decoding.reference import ReferenceDecoder
from lerobot_policy_vla0.decoding.request import DecodeRequest
from lerobot_policy_vla0.observations.images import patchify
from lerobot_policy_vla0.text.grammar import AnswerGrammar
from lerobot_policy_vla0.text.grammar_languages import answer_gbnf, answer_regex
from lerobot_policy_vla0.tools.exporting.model_files import CHAT_TEMPLATE

MODEL = "vla0"
TEXT_OF_SYMBOL = [*"0123456789", " ", "<|im_end|>"]


@dataclass
class Engine:
    """The server's state; tests change it.

    Attributes:
        policy: answers.
        owned_by: the kind of server that it claims to be.
        models: names that it lists.
        fault: what it does wrong; see `Handler`.
        waiting: ends the wait of the fault ``slow``.
        asked: bodies of the chat completions, in order.
        keys: their ``Authorization``.
    """

    policy: VLA0Policy
    owned_by: str = "vllm"
    models: tuple[str, ...] = (MODEL,)
    fault: str | None = None
    waiting: threading.Event = field(default_factory=threading.Event)
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a chat completion."""
        vlm, config = self.policy.vlm, self.policy.config
        # 1. The prompt, by transformers' own template code.
        messages = [dict(message) for message in body["messages"]]
        begun = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
        asks_to_continue = body.get("continue_final_message", self.owned_by == "llamacpp" and bool(begun))
        text = vlm.tokenizer.apply_chat_template(
            messages,
            chat_template=CHAT_TEMPLATE,
            tokenize=False,
            add_generation_prompt=body.get("add_generation_prompt", not begun),
            continue_final_message=asks_to_continue,
        )
        pictures = [
            _picture(part["image_url"]["url"])
            for part in messages[1]["content"]
            if part["type"] == "image_url"
        ]
        settings = self.policy.image_settings
        patches = [patchify(picture, settings)[0] for picture in pictures]
        image = vlm.image_token_id
        counts = iter(len(some) // settings.merge_size**2 for some in patches)
        ids: list[int] = []
        for id_ in vlm.tokenizer.encode(text, add_special_tokens=False):
            ids += [id_] * next(counts) if id_ == image else [id_]
        prompt_tokens = len(ids)

        # 2. The grammar: exactly the one that is expected is understood.
        committed = [int(word) for word in begun.split()]
        numbers = config.chunk_size * config.action_dim
        left = numbers - len(committed)
        regex = answer_regex(config.n_bins, left, begun=bool(begun))
        gbnf = answer_gbnf(config.n_bins, left, begun=bool(begun))
        expected = {
            "vllm": ("structured_outputs", {"regex": regex}),
            "sglang": ("regex", regex),
            "llamacpp": ("grammar", gbnf),
        }
        if self.owned_by in expected:
            name, value = expected[self.owned_by]
            assert body[name] == value, body.get(name)

        # 3. The answer, by the reference decoder.
        sizes = [(1, picture.shape[2] // 14, picture.shape[3] // 14) for picture in pictures]
        prompt = torch.tensor([ids[: len(ids) - len(begun)]])
        request = DecodeRequest(
            prompt,
            torch.ones_like(prompt, dtype=torch.bool),
            torch.cat(patches),
            torch.tensor(sizes),
            torch.tensor(committed).view(1, -1, config.action_dim) if committed else None,
        )
        grammar = AnswerGrammar(n_bins=config.n_bins, n_numbers=numbers, tokens=vlm.tokens)
        decoder = ReferenceDecoder(
            vlm,
            grammar,
            shape=(config.chunk_size, config.action_dim),
            temperature=body["temperature"],
            repetition_penalty=body.get("repetition_penalty", 1.0),
        )
        with self.policy.inference(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(body.get("seed", 0))
            decoder.decode(request)
        assert decoder.last is not None
        trace = decoder.last.traces[0]
        known = len(begun) + bool(begun)
        symbols = trace.symbols[known:]
        assert len(symbols) <= body["max_tokens"]
        tokens = [
            _token(symbol, scores) for symbol, scores in zip(symbols, trace.scores[known:], strict=True)
        ]
        if begun:
            tokens.insert(
                0, {"token": " ", "logprob": -0.5, "top_logprobs": [{"token": " ", "logprob": -0.5}]}
            )
        return {
            "choices": [
                {
                    "message": {"role": "assistant", "content": "".join(t["token"] for t in tokens[:-1])},
                    "finish_reason": "stop",
                    "logprobs": {"content": tokens},
                }
            ],
            "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": len(tokens)},
        }


def _token(symbol: int, scores: np.ndarray[Any, Any] | None) -> dict[str, Any]:
    """Return one token's log-probabilities in OpenAI's layout; words that nobody wants are likely, too."""
    assert scores is not None
    logs = scores.astype(np.float64) - scores.max()
    logs = logs - np.log(np.exp(logs).sum()) - 1.0
    top = [{"token": TEXT_OF_SYMBOL[k], "logprob": float(logs[k])} for k in np.flatnonzero(np.isfinite(logs))]
    top = [{"token": " hello", "logprob": -0.1}, *top]
    return {"token": TEXT_OF_SYMBOL[symbol], "logprob": float(logs[symbol]), "top_logprobs": top}


def _picture(url: str) -> Tensor:
    """Return a picture ``(1, 3, h, w)`` uint8 from a data URL."""
    kind, _, data = url.partition(";base64,")
    assert kind == "data:image/png"
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(data))))
    return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)


class Handler(BaseHTTPRequestHandler):
    """HTTP for `Engine`, and its faults."""

    protocol_version = "HTTP/1.1"
    engine: Engine

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        engine = self.engine
        if self.path != "/v1/models":
            return self._send({"detail": "Not Found"}, 404)
        if engine.fault == "another program":
            return self._send("<html>hello</html>")
        listed = [{"id": name, "object": "model", "owned_by": engine.owned_by} for name in engine.models]
        return self._send({"object": "list", "data": listed})

    def do_POST(self) -> None:
        engine = self.engine
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with engine.lock:
            engine.asked.append(body)
            engine.keys.append(self.headers["Authorization"])
            fault = engine.fault
            if fault == "drops once":
                engine.fault = None
            if fault in ("drops", "drops once"):
                self.close_connection = True
                return self.connection.close()
            if fault == "status 500":
                return self._send({"error": {"message": "CUDA out of memory", "code": 500}}, 500)
            if fault == "status 401":
                return self._send({"error": "Unauthorized"}, 401)
            if fault == "no choices":
                return self._send({"choices": []})
            if fault == "not JSON":
                return self._send("<html>hello</html>")
            if fault == "slow":
                engine.waiting.wait(60)
            answer = engine.complete(body)
            choice = answer["choices"][0]
            if fault == "words":
                choice["message"]["content"] = "I would move the arm to the left."
            elif fault == "one number less":
                choice["message"]["content"] = choice["message"]["content"].rpartition(" ")[0]
            elif fault == "cut off":  # and yet legal
                choice["finish_reason"] = "length"
            elif fault == "another prompt":
                answer["usage"]["prompt_tokens"] += 7
            elif fault == "no usage":
                del answer["usage"]
            elif fault == "no log-probabilities":
                choice["logprobs"] = None
            elif fault == "no end among the tokens":
                choice["logprobs"]["content"].pop()
            elif fault == "begins again":
                choice["message"]["content"] = choice["message"]["content"].removeprefix(" ")
            else:
                assert fault in (None, "slow"), fault
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # nobody waits any more
            self._send(answer)

    def _send(self, content: Any, status: int = 200) -> None:
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextlib.contextmanager
def serving(policy: VLA0Policy | Path) -> Iterator[tuple[Engine, str]]:
    """Serve a policy with weights from a thread; yields the server's state and its address."""
    engine = Engine(policy if isinstance(policy, VLA0Policy) else VLA0Policy.from_pretrained(policy))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"engine": engine}))
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield engine, f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        engine.waiting.set()
        server.shutdown()
        server.server_close()
