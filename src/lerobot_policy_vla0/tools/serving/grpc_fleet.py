"""LeRobot's asynchronous protocol for many robots: each client has a server of its own, and all share one model.

LeRobot's servicer holds the state of one client (queue, processors, timing). Here every client gets one of those, found
by its address. Importing this module needs grpcio, and LeRobot then creates a folder ``logs``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from lerobot.transport import services_pb2_grpc

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.serving.policy_server import VLA0PolicyServer
from lerobot_policy_vla0.tools.serving.robot import own_processors

if TYPE_CHECKING:
    from lerobot.async_inference.configs import PolicyServerConfig
    from lerobot.async_inference.helpers import RemotePolicyConfig

    from lerobot_policy_vla0.modeling_vla0 import VLA0Policy

logger = logging.getLogger(__name__)

#: A client that has asked for nothing for so many seconds can lose its place to a new one.
_IDLE_S = 60.0


@dataclass(frozen=True)
class Served:
    """The policy that all clients share.

    Attributes:
        name: clients have to ask for it.
        new_policy: makes the policy of a client.
        processors: pre- and post-processor, which every client gets copies of.
    """

    name: str
    new_policy: Callable[[], VLA0Policy]
    processors: tuple[Any, Any]


class _OneClient(VLA0PolicyServer):
    """LeRobot's server for one client of a fleet: it takes the shared policy instead of loading one."""

    def __init__(self, config: PolicyServerConfig, served: Served) -> None:
        super().__init__(config)
        self.last_call = time.monotonic()
        self._served = served

    def _load(self, asked: RemotePolicyConfig) -> None:
        """Take the shared policy, if the client asks for it."""
        name = self._served.name
        if asked.pretrained_name_or_path != name:
            raise ConfigError(
                f"this server serves {name!r} and the client asks for {asked.pretrained_name_or_path!r}. Give "
                f"--pretrained_name_or_path={name}, or start a server without a policy, which loads what its "
                "client asks for."
            )
        policy = self._served.new_policy()
        self.device, self.policy_type = str(policy.config.device), asked.policy_type
        self.lerobot_features, self.actions_per_chunk = asked.lerobot_features, asked.actions_per_chunk
        self.preprocessor, self.postprocessor = own_processors(self._served.processors, asked.rename_map)
        self.policy: Any = policy


class FleetServicer(services_pb2_grpc.AsyncInferenceServicer):
    """Hands each client's calls to a server of its own.

    Args:
        config: LeRobot's, for every client.
        served: the policy.
        most: clients at a time.
    """

    def __init__(self, config: PolicyServerConfig, served: Served, most: int) -> None:
        self._config = config
        self._served = served
        self._most = most
        self._clients: dict[str, _OneClient] = {}  # by address
        self._lock = threading.Lock()

    def Ready(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Begin with a client, or anew with one that is known."""
        peer = context.peer()
        with self._lock:
            client = self._clients.get(peer)
            if client is None:
                self._make_room(context)
                client = _OneClient(self._config, self._served)
                self._clients[peer] = client
                logger.info("%s connected; %d LeRobot clients", peer, len(self._clients))
        client.last_call = time.monotonic()
        return client.Ready(request, context)

    def SendPolicyInstructions(self, request: Any, context: Any) -> Any:  # noqa: N802
        """See `VLA0PolicyServer`."""
        return self._client(context).SendPolicyInstructions(request, context)

    def SendObservations(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        """See `VLA0PolicyServer`."""
        return self._client(context).SendObservations(request_iterator, context)

    def GetActions(self, request: Any, context: Any) -> Any:  # noqa: N802
        """See `VLA0PolicyServer`."""
        return self._client(context).GetActions(request, context)

    def connected(self) -> int:
        """Return how many clients asked for something lately; the protocol has no farewell."""
        with self._lock:
            return sum(not _is_idle(client) for client in self._clients.values())

    def stop(self) -> None:
        """End all clients' calls."""
        with self._lock:
            for client in self._clients.values():
                client.stop()

    def _client(self, context: Any) -> _OneClient:
        client = self._clients.get(context.peer())
        if client is None:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                "this server does not know the client: its connection is new, or it was silent and another robot took "
                "its place. Start the robot client again.",
            )
        assert client is not None
        client.last_call = time.monotonic()
        return client

    def _make_room(self, context: Any) -> None:
        """Let the client go that was silent for longest, if there is no place left and it was silent for long."""
        if len(self._clients) < self._most:
            return
        peer, oldest = min(self._clients.items(), key=lambda item: item[1].last_call)
        if not _is_idle(oldest):
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{len(self._clients)} robots are connected, as many as --max-robots allows. Try again later.",
            )
        oldest.stop()
        del self._clients[peer]


def _is_idle(client: _OneClient) -> bool:
    return time.monotonic() - client.last_call >= _IDLE_S
