"""One model for many robots: a thread answers the requests that wait, several in one decode.

Each robot's policy (`VLA0Policy.for_another_robot`) has a `RobotDecoder`, which hands its requests to the one
`SharedModel`. A robot has at most one request at a time, and every decode answers the request that has waited longest:
none waits for ever behind robots that ask faster.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Overdue
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lerobot_policy_vla0.decoding.factory import build_decoder
from lerobot_policy_vla0.decoding.report import DecodeReport
from lerobot_policy_vla0.decoding.request import Decoder, DecodeRequest
from lerobot_policy_vla0.errors import ConfigError, ServingError
from lerobot_policy_vla0.modeling_vla0 import VLA0Policy
from lerobot_policy_vla0.observations.batches import grey_batch

logger = logging.getLogger(__name__)

#: On CUDA a batch is filled up to one of these sizes, because each has captured graphs.
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


@dataclass
class _Waiting:
    """A request of one robot, and where its answer goes."""

    request: DecodeRequest
    answer: Future[tuple[Tensor, DecodeReport]] = field(default_factory=Future)
    since: float = field(default_factory=time.perf_counter)


#: Called after every decode: robots in the batch, seconds of the decode, seconds each robot had waited.
Observer = Callable[[int, float, Sequence[float]], None]


class SharedModel:
    """Answers the requests of many robots with the weights of one policy.

    Args:
        policy: a trained policy; its own queue is not used.
        max_batch: robots answered in one decode, one of `SIZES`.
        timeout_s: a robot waits at most so long for its answer, in seconds.
        observe: see `Observer`.

    Raises:
        ConfigError: if ``max_batch`` or ``timeout_s`` is out of range.
    """

    def __init__(
        self,
        policy: VLA0Policy,
        *,
        max_batch: int = 16,
        timeout_s: float = 10.0,
        observe: Observer | None = None,
    ) -> None:
        if max_batch not in SIZES:
            raise ConfigError(f"--max-batch={max_batch} must be one of {', '.join(map(str, SIZES))}.")
        if not timeout_s > 0:
            raise ConfigError(f"--query-timeout={timeout_s} must be above 0 seconds.")
        self.policy = policy
        self.max_batch = max_batch
        self.timeout_s = timeout_s
        self._observe = observe
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._held: list[_Waiting] = []  # taken from the queue, and not like the batch that was decoded
        self._decoders: dict[int, Decoder] = {}
        self._ended = False
        self._engine = policy.config.engine is not None
        self._thread = threading.Thread(target=self._work, name="vla0-decode", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ for robots

    def new_policy(self) -> VLA0Policy:
        """Return a policy for one more robot."""
        return self.policy.for_another_robot(RobotDecoder(self))

    def answer(self, request: DecodeRequest) -> tuple[Tensor, DecodeReport]:
        """Return the answer ids ``(1, L)`` to one robot's request, and the report of its row.

        Raises:
            ServingError: if the answer takes longer than ``timeout_s``, or the server is ending.
            DecodeError: if the model returns NaN/Inf logits for this row.
        """
        if self._ended:
            raise ServingError("the server is ending and takes no more requests. Start it again.")
        waiting = _Waiting(request)
        self._queue.put(waiting)
        try:
            return waiting.answer.result(self.timeout_s)
        except Overdue:
            waiting.answer.cancel()
            raise ServingError(
                f"no answer within {self.timeout_s:g} s (--query-timeout): {self._queue.qsize()} requests wait. "
                "Connect fewer robots, raise --max-batch, or use a faster machine."
            ) from None

    def warm_up(self) -> None:
        """Answer a made-up request in batches of every size, so that no robot waits for caches and measurements."""
        began = time.perf_counter()
        with self.policy.inference():
            request = self.policy.make_request(grey_batch(self.policy.config, self.policy.vlm, 1))
        # An engine makes its own batches.
        sizes = {1} if self._engine else {self._rows(count) for count in range(1, self.max_batch + 1)}
        for size in sorted(sizes):
            self._decode([_Waiting(request)] * size)
        logger.info("warmed up for 1 to %d robots in %.1f s", self.max_batch, time.perf_counter() - began)

    def close(self) -> None:
        """Refuse new requests, answer those that wait, and end the thread."""
        self._ended = True
        self._queue.put(None)
        self._thread.join()

    # ------------------------------------------------------------------ the thread

    def _work(self) -> None:
        while (batch := self._take()) is not None:
            batch = [one for one in batch if one.answer.set_running_or_notify_cancel()]
            if batch:
                self._run(batch)

    def _take(self) -> list[_Waiting] | None:
        """Return the requests that wait, at most ``max_batch`` and all alike; wait for one. None ends the thread."""
        if not self._held:
            first = self._queue.get()
            if first is None:
                return None
            self._held.append(first)
        while len(self._held) < self.max_batch:
            try:
                more = self._queue.get_nowait()
            except queue.Empty:
                break
            if more is None:
                self._queue.put(None)  # after those that came before it
                break
            self._held.append(more)
        kind = _kind(self._held[0].request)
        batch = [one for one in self._held if _kind(one.request) == kind]
        self._held = [one for one in self._held if _kind(one.request) != kind]
        return batch

    def _run(self, batch: list[_Waiting]) -> None:
        """Answer a batch. If it fails, each robot alone, so that one robot's bad request is not another's error."""
        began = time.perf_counter()
        try:
            answers = self._decode(batch)
        except Exception as error:  # the robot has to be told of any error
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
            else:
                for one in batch:
                    self._run([one])
            return
        now = time.perf_counter()
        if self._observe is not None:
            self._observe(len(batch), now - began, [began - one.since for one in batch])
        for one, answer in zip(batch, answers, strict=True):
            one.answer.set_result(answer)

    def _decode(self, batch: list[_Waiting]) -> list[tuple[Tensor, DecodeReport]]:
        """Return each robot's answer and report."""
        rows = self._rows(len(batch))
        # The last request fills the batch up: it costs no further pass.
        requests = [one.request for one in batch] + [batch[-1].request] * (rows - len(batch))
        with self.policy.inference():
            decoder = self._decoder(rows)
            ids = decoder.decode(join_requests(requests, self.policy.vlm.tokens.pad))
        report = decoder.last
        assert report is not None
        return [(ids[k : k + 1], _of_row(report, k)) for k in range(len(batch))]

    def _rows(self, robots: int) -> int:
        """Return how many rows the batch of some robots has. On a CPU every row costs time."""
        captured = self.policy.device.type == "cuda" and not self._engine
        return next(size for size in SIZES if size >= robots) if captured else robots

    def _decoder(self, rows: int) -> Decoder:
        """Return the decoder of a batch size; all share the weights. An engine has one for all sizes."""
        if self._engine:
            return self.policy.decoder
        if rows not in self._decoders:
            policy = self.policy
            like = next(iter(self._decoders.values()), None)
            self._decoders[rows] = build_decoder(policy.config, policy.vlm, policy.device, like=like)
        return self._decoders[rows]


class RobotDecoder:
    """The `Decoder` of one robot's policy: it remembers the robot's last answer, and a `SharedModel` decodes.

    Args:
        model: answers the requests.
    """

    name = "shared"

    def __init__(self, model: SharedModel) -> None:
        self.last: DecodeReport | None = None
        self._model = model
        self._previous: list[int] | None = None

    def reset(self) -> None:
        """Start a new episode, for which earlier answers say nothing."""
        self._previous = None

    def decode(self, request: DecodeRequest) -> Tensor:
        """Answer one row; see `Decoder`. ``last`` counts passes and drafts of the whole batch it was decoded in."""
        previous, self._previous = self._previous, None  # after an error there is none
        ids, self.last = self._model.answer(replace(request, previous=[previous]))
        self._previous = self.last.bins(0)
        return ids


def join_requests(requests: Sequence[DecodeRequest], pad: int) -> DecodeRequest:
    """Return one request with the rows of several, whose prompts are padded on the left to one length.

    Args:
        requests: one row each; of one policy, with as many committed steps.
        pad: id for padding.
    """
    width = max(request.ids.shape[1] for request in requests)
    ids = requests[0].ids.new_full((len(requests), width), pad)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, request in enumerate(requests):
        length = request.ids.shape[1]
        ids[row, width - length :], mask[row, width - length :] = request.ids[0], request.mask[0]
    first = requests[0]
    pictures = None
    if first.pictures is not None:
        of_rows = [request.pictures for request in requests if request.pictures is not None]
        pictures = [torch.cat(same) for same in zip(*of_rows, strict=True)]
    committed = None
    if first.committed is not None:
        committed = torch.cat([request.committed for request in requests if request.committed is not None])
    return replace(
        first,
        ids=ids,
        mask=mask,
        pixel_values=torch.cat([request.pixel_values for request in requests]),
        grid_thw=torch.cat([request.grid_thw for request in requests]),
        committed=committed,
        pictures=pictures,
        previous=[None if request.previous is None else request.previous[0] for request in requests],
    )


def _kind(request: DecodeRequest) -> int:
    """Return how many steps are committed; only requests with as many can be joined."""
    return 0 if request.committed is None else request.committed.shape[1]


def _of_row(report: DecodeReport, row: int) -> DecodeReport:
    return replace(report, traces=report.traces[row : row + 1], stops=report.stops[row : row + 1])
