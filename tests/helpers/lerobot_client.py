"""The calls of LeRobot's robot client, one by one; by default for `helpers.served`'s policy. It needs grpcio."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedObservation
from lerobot.transport import services_pb2, services_pb2_grpc
from lerobot.transport.utils import send_bytes_in_chunks

from helpers.waiting import LONG

NAMES = ["x", "y"]
PICTURE = {"dtype": "image", "shape": (40, 40, 3), "names": ["height", "width", "channels"]}
FEATURES = {
    "observation.state": {"dtype": "float32", "shape": (2,), "names": NAMES},
    "observation.images.image": PICTURE,
    "observation.images.image2": PICTURE,
}


class LeRobotClient:
    """One robot's client.

    Attributes:
        features: of the robot.
        chunk: actions that it asks for.
    """

    features = FEATURES
    chunk = 4

    def __init__(self, port: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=options)
        grpc.channel_ready_future(self.channel).result(timeout=LONG)
        self.stub = services_pb2_grpc.AsyncInferenceStub(self.channel)

    def begin(
        self, checkpoint: Path, features: dict[str, Any] | None = None, policy_type: str = "vla0"
    ) -> None:
        self.stub.Ready(services_pb2.Empty())
        specs = RemotePolicyConfig(policy_type, str(checkpoint), features or self.features, self.chunk)
        self.stub.SendPolicyInstructions(services_pb2.PolicySetup(data=pickle.dumps(specs)))

    def observe(self, seed: int) -> None:
        """Send the observation of a seed."""
        from helpers.served import openpi_message  # needs more extras than the client

        message = openpi_message(seed)
        self.send(
            {
                **dict.fromkeys(NAMES, 0.1),
                "image": message["observation/image"],
                "image2": message["observation/wrist_image"],
                "task": message["prompt"],
            }
        )

    def send(self, values: dict[str, Any]) -> None:
        observation = TimedObservation(timestamp=time.time(), timestep=0, observation=values)
        observation.must_go = True
        data = pickle.dumps(observation)
        self.stub.SendObservations(send_bytes_in_chunks(data, services_pb2.Observation, silent=True))

    def actions(self) -> np.ndarray[Any, Any] | None:
        """Return the next chunk ``(T, D)``, or None if the server has none."""
        data = self.stub.GetActions(services_pb2.Empty()).data
        return np.stack([a.get_action().numpy() for a in pickle.loads(data)]) if data else None
