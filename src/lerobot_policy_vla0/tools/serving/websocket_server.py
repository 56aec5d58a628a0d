"""Serves robots over websockets: openpi's protocol at ``/``, vla-eval's at ``/vla-eval``.

openpi: the server sends its metadata first. It answers every observation with ``{"actions": (n, D)}``, the actions up
to the next query, or with a text, which is an error. vla-eval: HELLO is answered with HELLO; EPISODE_START begins an
episode; every OBSERVATION is answered with an ACTION ``{"actions": (D,)}`` or an ERROR, with its sequence number.
``/health`` and ``/metrics`` are plain HTTP.

Each connection is one robot, whose messages are answered one after another. Others wait in the connection: the server
reads no further, so a client that floods fills its own socket.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from aiohttp import WSCloseCode, WSMsgType, web

from lerobot_policy_vla0 import __version__
from lerobot_policy_vla0.errors import ConfigError, ServingError, Vla0Error
from lerobot_policy_vla0.tools.serving.messages import pack_for_openpi, pack_for_vla_eval, unpack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lerobot_policy_vla0.tools.serving.metrics import Metrics
    from lerobot_policy_vla0.tools.serving.robot import Robot

logger = logging.getLogger(__name__)

OPENPI, VLA_EVAL = "openpi", "vla-eval"
#: Runs a call in a robot's thread, where it may wait for the model.
InThread = Callable[[Callable[[], Any]], Awaitable[Any]]
#: Version of vla-eval's protocol.
_VLA_EVAL_VERSION = 1
#: Seconds that calls in progress have to end when the server stops.
_GRACE_S = 5.0


@dataclass(frozen=True)
class Limits:
    """What one server takes.

    Attributes:
        robots: connections at a time, over both protocols.
        message_bytes: of one message.
        idle_s: a connection without a message for so long is closed.
    """

    robots: int = 64
    message_bytes: int = 32 * 2**20
    idle_s: float = 600.0


class WebsocketServer:
    """Answers robots that connect by websocket.

    Args:
        new_robot: makes the server's side of a robot that connects.
        metadata: what openpi's clients get first: names and sizes, as msgpack can write them.
        metrics: counts.
        limits: see `Limits`.
        token: what clients have to send, as ``Authorization: Api-Key <token>`` (or ``Bearer``), or as ``?token=`` where
            a client can send no header; None asks for none.
    """

    def __init__(
        self,
        new_robot: Callable[[], Robot],
        metadata: dict[str, Any],
        metrics: Metrics,
        *,
        limits: Limits | None = None,
        token: str | None = None,
    ) -> None:
        self._new_robot = new_robot
        self._metadata = metadata
        self._metrics = metrics
        self._limits = limits or Limits()
        self._token = token
        self._open: set[web.WebSocketResponse] = set()

    async def serve(self, host: str, port: int, done: Callable[[], bool], ready: Callable[[], None]) -> None:
        """Serve until ``done``; then finish what is being answered and close all connections.

        Args:
            host: address to listen on.
            port: TCP port.
            done: asked a few times a second.
            ready: called once robots can connect.

        Raises:
            ConfigError: if the address cannot be listened on.
        """
        app = web.Application()
        app.add_routes(
            [
                web.get("/", self._openpi),
                web.get("/vla-eval", self._vla_eval),
                web.get("/health", self._health),
                web.get("/metrics", self._figures),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_GRACE_S, handler_cancellation=False)
        await runner.setup()
        try:
            try:
                await web.TCPSite(runner, host, port, reuse_address=True).start()
            except OSError as error:
                raise ConfigError(
                    f"cannot listen on {host}:{port} ({error}). Another program may have the port (choose another with "
                    "--websocket-port), or the address is not this machine's."
                ) from error
            ready()
            while not done():
                await asyncio.sleep(0.1)
        finally:
            for connection in list(self._open):
                await connection.close(code=WSCloseCode.GOING_AWAY, message=b"the server is ending")
            await runner.cleanup()

    # ------------------------------------------------------------------ the two protocols

    async def _openpi(self, request: web.Request) -> web.StreamResponse:
        """Answer a client of openpi. A connection is one episode; openpi's protocol has no message that begins one."""
        async with self._connected(request, OPENPI) as (socket, robot, in_thread):
            await in_thread(robot.reset)
            await socket.send_bytes(pack_for_openpi(self._metadata))
            async for data in self._messages(socket, OPENPI):
                try:
                    actions = await self._answered(OPENPI, in_thread, partial(_act, robot, data))
                except Vla0Error as error:
                    # openpi's client raises what comes as text.
                    await socket.send_str(f"{type(error).__name__}: {error}")
                else:
                    await socket.send_bytes(pack_for_openpi({"actions": actions}))
        return socket

    async def _vla_eval(self, request: web.Request) -> web.StreamResponse:
        """Answer a client of vla-eval."""
        async with self._connected(request, VLA_EVAL) as (socket, robot, in_thread):

            async def send(kind: str, payload: dict[str, Any], seq: int) -> None:
                message = {"type": kind, "payload": payload, "seq": seq, "timestamp": time.time()}
                await socket.send_bytes(pack_for_vla_eval(message))

            await in_thread(robot.reset)
            async for data in self._messages(socket, VLA_EVAL):
                seq = 0
                try:
                    message = await in_thread(partial(unpack, data))
                    kind, payload, seq = message.get("type"), message.get("payload"), message.get("seq", 0)
                    if not isinstance(payload, dict) or not isinstance(seq, int):
                        raise ServingError(
                            f"the message has {sorted(message)}, expected type, payload (a mapping), seq and timestamp."
                        )
                    if kind == "hello":
                        said = {"harness_version": __version__, "protocol_version": _VLA_EVAL_VERSION}
                        await send("hello", {**said, "model_server": "vla0", "capabilities": {}}, seq)
                    elif kind == "episode_start":
                        await in_thread(robot.reset)
                    elif kind == "observation":
                        action = await self._answered(
                            VLA_EVAL, in_thread, partial(robot.next_action, payload)
                        )
                        await send("action", {"actions": action}, seq)
                    elif kind == "error":
                        logger.warning("a vla-eval client reports: %s", str(payload)[:500])
                    elif kind != "episode_end":
                        raise ServingError(
                            f"the message's type is {kind!r}, expected hello, episode_start, observation, episode_end "
                            "or error."
                        )
                except Vla0Error as error:
                    await send("error", {"error": f"{type(error).__name__}: {error}"}, seq)
        return socket

    # ------------------------------------------------------------------ connections

    @asynccontextmanager
    async def _connected(
        self, request: web.Request, protocol: str
    ) -> AsyncIterator[tuple[web.WebSocketResponse, Robot, InThread]]:
        """Take a connection for as long as it lasts, with a robot of its own and a thread in which that is used.

        Raises:
            HTTPUnauthorized: without the token.
            HTTPServiceUnavailable: if as many robots as possible are connected.
        """
        self._check_token(request)
        if len(self._open) >= self._limits.robots:
            raise web.HTTPServiceUnavailable(
                text=f"{len(self._open)} robots are connected, as many as --max-robots allows. Try again later."
            )
        socket = web.WebSocketResponse(
            max_msg_size=self._limits.message_bytes, compress=False, timeout=_GRACE_S
        )
        self._open.add(socket)
        robots = self._metrics.robots.labels(protocol)
        robots.inc()
        who = f"{protocol} client {request.remote}"
        thread = ThreadPoolExecutor(1, thread_name_prefix="vla0-robot")

        def in_thread(call: Callable[[], Any]) -> Awaitable[Any]:
            return asyncio.get_running_loop().run_in_executor(thread, call)

        logger.info("%s connected; %d robots", who, len(self._open))
        try:
            await socket.prepare(request)
            yield socket, await in_thread(self._new_robot), in_thread
        except ConnectionError as error:  # it went away while it was being answered
            logger.info("%s went away (%s)", who, type(error).__name__)
        except Exception:
            logger.exception("the connection of %s ends", who)
        finally:
            robots.dec()
            await socket.close(code=WSCloseCode.INTERNAL_ERROR if not socket.closed else WSCloseCode.OK)
            self._open.discard(socket)
            thread.shutdown(wait=False)
            logger.info("%s left; %d robots", who, len(self._open))

    async def _messages(self, socket: web.WebSocketResponse, protocol: str) -> AsyncIterator[bytes]:
        """Yield a connection's messages until it ends, is idle for too long, or sends something else."""
        while True:
            try:
                message = await socket.receive(timeout=self._limits.idle_s)
            except TimeoutError:
                logger.info("a %s client sent nothing for %.0f s", protocol, self._limits.idle_s)
                await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"idle for too long")
                return
            if message.type is WSMsgType.BINARY:
                yield message.data
            elif message.type is WSMsgType.TEXT:
                await socket.close(
                    code=WSCloseCode.UNSUPPORTED_DATA, message=b"expected msgpack in binary messages"
                )
                return
            else:  # closed, or too large, for which aiohttp has closed it
                if message.type is WSMsgType.ERROR:
                    logger.info("a %s client was cut off: %s", protocol, message.data)
                return

    async def _answered(self, protocol: str, in_thread: InThread, ask: Callable[[], Any]) -> Any:
        """Run a robot's call in its thread, and count it.

        Raises:
            Vla0Error: of the call; any other error becomes a `ServingError`, so that the client is told.
        """
        began, outcome = time.perf_counter(), "error"
        try:
            answer = await in_thread(ask)
            outcome = "answered"
            return answer
        except Vla0Error:
            raise
        except Exception as error:
            logger.exception("an observation was not answered")
            raise ServingError(
                f"the server failed ({type(error).__name__}: {error}); see its log."
            ) from error
        finally:
            self._metrics.requests.labels(protocol, outcome).inc()
            self._metrics.latency.labels(protocol).observe(time.perf_counter() - began)

    def _check_token(self, request: web.Request) -> None:
        if self._token is None:
            return
        given = request.query.get("token", "")
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() in ("api-key", "bearer"):
            given = value.strip()
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            raise web.HTTPUnauthorized(
                text="this server needs a token: Authorization: Api-Key TOKEN, or ?token=TOKEN in the address."
            )

    # ------------------------------------------------------------------ about the server

    async def _health(self, _: web.Request) -> web.Response:
        """Say that robots can connect. It needs no token and tells nothing about them."""
        return web.json_response({"status": "ok", "version": __version__})

    async def _figures(self, request: web.Request) -> web.Response:
        self._check_token(request)
        return web.Response(body=self._metrics.as_text(), content_type="text/plain", charset="utf-8")


def _act(robot: Robot, data: bytes) -> Any:
    return robot.next_actions(unpack(data))
