"""`vla0 serve --policy.path=...`: one process and one model for many robots, over LeRobot's gRPC and over websockets.

::

    LeRobot's robot client ── gRPC ─────── grpc_fleet ──────┐
    openpi's client        ── websocket ── websocket_server ┼── Robot (its own queue) ── SharedModel (batches)
    vla-eval               ── websocket ── websocket_server ┘
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.loading import load_config, load_with_processors
from lerobot_policy_vla0.tools.serving.address import is_loopback
from lerobot_policy_vla0.tools.serving.metrics import Metrics
from lerobot_policy_vla0.tools.serving.observations import ObservationReader
from lerobot_policy_vla0.tools.serving.robot import Robot
from lerobot_policy_vla0.tools.serving.shared_model import SharedModel
from lerobot_policy_vla0.tools.serving.websocket_server import Limits, WebsocketServer

if TYPE_CHECKING:
    from lerobot.async_inference.configs import PolicyServerConfig

#: The environment variable that holds the token; on a command line other users could read it.
TOKEN_VARIABLE = "VLA0_SERVE_TOKEN"


@dataclass(frozen=True)
class FleetOptions:
    """What ``vla0 serve --policy.path=...`` is asked for.

    Attributes:
        policy: folder or Hub repo.
        overrides: options of the policy, as ``--NAME=VALUE``.
        host: address to listen on.
        websocket_port: TCP port of the websockets.
        cameras: the policy's image key by a client's name of a camera.
        max_batch: robots answered in one decode.
        query_timeout_s: seconds a robot waits for an answer at most.
        limits: of websockets; LeRobot's protocol takes as many robots again.
        grpc: settings of LeRobot's protocol; None does not serve it.
    """

    policy: str
    overrides: Sequence[str] = ()
    host: str = "localhost"
    websocket_port: int = 8000
    cameras: Mapping[str, str] = field(default_factory=dict)
    max_batch: int = 16
    query_timeout_s: float = 10.0
    limits: Limits = field(default_factory=Limits)
    grpc: PolicyServerConfig | None = None


def serve_fleet(options: FleetOptions, done: Callable[[], bool], say: Callable[[str], None] = print) -> None:
    """Load the policy, and serve it until ``done``.

    Args:
        options: see `FleetOptions`.
        done: asked a few times a second.
        say: called with a line once robots can connect.

    Raises:
        ConfigError: if an option cannot be used, an address cannot be listened on, or there is no token for an address
            that other machines reach.
        CheckpointError: if the policy cannot be loaded.
    """
    token = os.environ.get(TOKEN_VARIABLE) or None
    if token is None and not is_loopback(options.host):
        raise ConfigError(
            f"--host={options.host} can be reached from other machines, and {TOKEN_VARIABLE} is not set. Set it to a "
            "secret that the robots know (openpi: api_key; vla-eval: ?token= in the address), or listen on localhost "
            "and tunnel."
        )
    config = load_config(options.policy, options.overrides)
    reader = ObservationReader(config, options.cameras)
    policy, preprocess, postprocess = load_with_processors(options.policy, config)
    processors = preprocess, postprocess
    metrics = Metrics()
    with ExitStack() as stack:
        model = SharedModel(
            policy,
            max_batch=options.max_batch,
            timeout_s=options.query_timeout_s,
            observe=metrics.observe_decode,
        )
        stack.callback(model.close)
        model.warm_up()
        if options.grpc is not None:
            # The import needs grpcio and makes a folder for LeRobot's logs.
            from lerobot_policy_vla0.tools.serving.grpc_fleet import FleetServicer, Served
            from lerobot_policy_vla0.tools.serving.policy_server import listening

            most = options.limits.robots
            servicer = FleetServicer(options.grpc, Served(options.policy, model.new_policy, processors), most)
            metrics.robots.labels("lerobot").set_function(servicer.connected)
            stack.enter_context(listening(servicer, options.grpc, threads=2 * most + 2))
        websockets = WebsocketServer(
            lambda: Robot(model.new_policy(), processors, reader),
            metadata_of(options.policy, policy.config),
            metrics,
            limits=options.limits,
            token=token,
        )

        def ready() -> None:
            lerobot = "" if options.grpc is None else f" and gRPC on {options.grpc.host}:{options.grpc.port}"
            say(
                f"serving {options.policy}: websockets on {options.host}:{options.websocket_port}{lerobot}; Ctrl-C "
                "ends this"
            )

        asyncio.run(websockets.serve(options.host, options.websocket_port, done, ready))


def metadata_of(name: str, config: Any) -> dict[str, Any]:
    """Return what a client may want to know of a policy, as msgpack can write it."""
    return {
        "policy": name,
        "policy_type": "vla0",
        "cameras": list(config.camera_keys),
        "action_dim": config.action_dim,
        "action_names": list(config.action_feature_names or []),
        "chunk_size": config.chunk_size,
        "actions_per_answer": config.n_action_steps,
    }
