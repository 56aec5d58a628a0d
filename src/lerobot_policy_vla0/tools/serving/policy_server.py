"""LeRobot's asynchronous policy server, which serves ``vla0`` policies too.

Protocol, observation queue, processors and timing are LeRobot's. LeRobot 0.6 serves a fixed list of policy types, to
which a plugin cannot add one, so `VLA0PolicyServer` loads ``vla0`` policies itself. It also warms up and resets the
policy when a client begins, tells a client why it is refused, and serves one robot at a time.

Importing this module needs grpcio, and LeRobot then creates a folder ``logs``.
"""

from __future__ import annotations

import logging
import pickle
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import torch
from lerobot.policies.factory import make_pre_post_processors
from lerobot.utils.constants import OBS_IMAGES, OBS_STATE

from lerobot_policy_vla0.errors import CameraError, ConfigError
from lerobot_policy_vla0.modeling_vla0 import VLA0Policy
from lerobot_policy_vla0.observations.batches import check_robot
from lerobot_policy_vla0.tools.serving.address import is_loopback

try:
    import grpc
    from lerobot.async_inference.configs import PolicyServerConfig
    from lerobot.async_inference.helpers import RemotePolicyConfig
    from lerobot.async_inference.policy_server import PolicyServer
    from lerobot.transport import services_pb2, services_pb2_grpc
except ImportError as error:
    raise ConfigError(
        f"the policy server needs LeRobot's async extra ({error}): pip install 'lerobot_policy_vla0[serve]'."
    ) from error

logger = logging.getLogger(__name__)

_GRACE_SECONDS = 5.0


class VLA0PolicyServer(PolicyServer):
    """LeRobot's server, with a fresh policy for each client, which the newest client uses alone."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._clients: set[str] = set()  # addresses of the present client
        self._former: set[str] = set()  # those of clients that were replaced
        self._clients_lock = threading.Lock()

    def Ready(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Begin with a new client. The previous one gets no more actions."""
        with self._clients_lock:
            self._former |= self._clients
            self._clients = {context.peer()}
            self._former -= self._clients
            if self._former:
                logger.info("%s has the policy now; earlier clients get no more actions", context.peer())
        answer = super().Ready(request, context)
        self.last_processed_obs = None  # it may be another robot's
        return answer

    def SendPolicyInstructions(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Load the client's policy, check that its robot fits, and warm it up."""
        self.policy = None  # frees memory, and if loading fails, nothing acts
        try:
            asked = pickle.loads(request.data)
            if self.running and isinstance(asked, RemotePolicyConfig) and asked.policy_type == "vla0":
                self._load(asked)
                answer = services_pb2.Empty()
            else:
                answer = super().SendPolicyInstructions(request, context)
            if self.policy is not None:
                check_features(self.policy.config, self.lerobot_features)
                self.policy.reset()  # LeRobot's server never does it. It warms up and forgets an earlier episode.
        except Exception as error:  # the client has to be told of any error, and nothing may act
            self.policy = None
            said = f"{type(error).__name__}: {error}"
            if isinstance(error, ValueError):  # our errors, and LeRobot's about policy types
                logger.error("refused: %s", said)
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, said)
            logger.exception("the policy was not loaded")
            context.abort(grpc.StatusCode.INTERNAL, said)
        return answer

    def _load(self, asked: RemotePolicyConfig) -> None:
        """Load a policy and its processors as LeRobot's server loads those of its list."""
        logger.info("loading %s on %s", asked.pretrained_name_or_path, asked.device)
        self.device, self.policy_type = asked.device, asked.policy_type
        self.lerobot_features, self.actions_per_chunk = asked.lerobot_features, asked.actions_per_chunk
        policy = VLA0Policy.from_pretrained(asked.pretrained_name_or_path)
        device = {"device_processor": {"device": self.device}}
        renamed = {"rename_observations_processor": {"rename_map": asked.rename_map}}
        self.preprocessor, self.postprocessor = make_pre_post_processors(
            policy.config,
            pretrained_path=asked.pretrained_name_or_path,
            preprocessor_overrides={**device, **renamed},
            postprocessor_overrides=device,
        )
        self.policy = policy.to(self.device)

    def SendObservations(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        """Take an observation of the present client. Those of earlier ones are dropped."""
        if self._is_former(context):
            return services_pb2.Empty()
        return super().SendObservations(request_iterator, context)

    def GetActions(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Return the present client's next chunk, and nothing to earlier ones."""
        if self._is_former(context):  # which ask again at once, without a pause
            time.sleep(self.config.obs_queue_timeout)
            return services_pb2.Empty()
        return super().GetActions(request, context)

    def _is_former(self, context: Any) -> bool:
        with self._clients_lock:
            former = context.peer() in self._former
            if not former:
                self._clients.add(context.peer())  # a renewed connection has another address
            return former


def check_features(config: Any, features: dict[str, Any]) -> None:
    """Refuse a robot whose cameras or joints are not those a ``vla0`` policy was trained with.

    LeRobot's server would log an error for each observation and tell the client nothing.
    """
    if config.type != "vla0":
        return
    robot = {key for key in features if key.startswith(f"{OBS_IMAGES}.")}
    missing, unknown = sorted(set(config.camera_keys) - robot), sorted(robot - config.image_features.keys())
    # LeRobot's server sizes every picture by the policy's feature, so it fails at unknown ones, and does not rename.
    if missing or unknown:
        if len(missing) == len(unknown) == 1:
            old, new = (key.removeprefix(f"{OBS_IMAGES}.") for key in (unknown[0], missing[0]))
            fix = f"If they are the same camera, call {old!r} {new!r} in --robot.cameras."
        elif missing:
            fix = "Name the robot's cameras in --robot.cameras as in the training data, all of them."
        else:
            fix = f"Take {unknown} out of --robot.cameras."
        raise CameraError(
            f"the robot has the cameras {sorted(robot)}, but the policy was trained with "
            f"{sorted(config.image_features)} (missing: {missing}, unknown: {unknown}). {fix} LeRobot's server does "
            "not rename cameras."
        )
    if (state := features.get(OBS_STATE)) is not None:
        check_robot({OBS_STATE: torch.empty(state["shape"])}, config)


def exposure_warning(host: str, port: int) -> str | None:
    """Return the warning that the user must see before binding to ``host``, or None on the loopback."""
    if is_loopback(host):
        return None
    return (
        f"WARNING: {host}:{port} can be reached from other machines, and LeRobot's async protocol unpickles what it "
        "receives: whoever reaches the port can run any code as this user. There is no password and no encryption. Use "
        f"it in a network you trust, or bind to the loopback and tunnel: ssh -L {port}:localhost:{port} THIS_MACHINE"
    )


def make_settings(**options: Any) -> PolicyServerConfig:
    """Return LeRobot's ``PolicyServerConfig`` with these fields; refuse values out of range."""
    if not options.get("host", "localhost"):
        raise ConfigError("--host is empty: give a name or address, such as localhost.")
    if options.get("fps", 1) < 1:
        raise ConfigError(f"--fps={options['fps']} must be at least 1.")
    try:
        return PolicyServerConfig(**options)
    except ValueError as error:
        raise ConfigError(f"{error}.") from error


def serve(settings: PolicyServerConfig, done: threading.Event) -> None:
    """Serve until ``done`` is set, then end calls in progress and stop."""
    with listening(VLA0PolicyServer(settings), settings, threads=4):
        print(f"serving on {settings.host}:{settings.port}; Ctrl-C ends this", flush=True)
        while not done.wait(0.2):  # a wait without a limit would not notice the signal
            pass


@contextmanager
def listening(servicer: Any, settings: PolicyServerConfig, *, threads: int) -> Iterator[None]:
    """Answer LeRobot's clients while the context lasts, then end calls in progress.

    Args:
        servicer: LeRobot's servicer, with a method ``stop``.
        settings: host and port.
        threads: calls at a time; a client can have two, of which one waits for an observation.

    Raises:
        ConfigError: if the address cannot be listened on.
    """
    # Without so_reuseport=0 a second server can take the same port, and each then gets some of the calls.
    calls = futures.ThreadPoolExecutor(max_workers=threads)
    server = grpc.server(calls, options=[("grpc.so_reuseport", 0)])
    services_pb2_grpc.add_AsyncInferenceServicer_to_server(servicer, server)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        server.add_insecure_port(f"{host}:{settings.port}")
    except RuntimeError as error:
        raise ConfigError(
            f"cannot listen on {host}:{settings.port} ({error}). Another program may have the port (choose another "
            "with --port), or the address is not this machine's."
        ) from error
    server.start()
    try:
        yield
    finally:
        servicer.stop()
        server.stop(_GRACE_SECONDS).wait()
        calls.shutdown()  # gRPC does not wait for a query whose client went away
