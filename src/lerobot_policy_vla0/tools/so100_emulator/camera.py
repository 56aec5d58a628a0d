"""Publishes pictures as LeRobot's ``zmq`` camera reads them: JSON with a base64 JPEG, on a TCP port.

It needs ``pyzmq`` (the ``so100`` extra).
"""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lerobot_policy_vla0.errors import ConfigError

#: Milliseconds that LeRobot's reading thread waits for a picture. When LeRobot disconnects, it waits 2 s for the thread
#: and then closes its socket. With LeRobot's default of 5 s the thread may still use it, and libzmq may hang or abort.
_WAIT_MS = 500

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CameraSettings:
    """What LeRobot is told about a camera."""

    name: str = "top"  # the dataset's key is observation.images.NAME
    width: int = 640  # pixels, at least 16
    height: int = 480
    fps: int = 30  # pictures per second, 1 to 120
    port: int = 0  # TCP port on the loopback; 0 takes a free one

    def __post_init__(self) -> None:
        if self.width < 16 or self.height < 16:
            raise ConfigError(f"a picture of {self.width}x{self.height} is too small: give 16x16 or more")
        if not 1 <= self.fps <= 120:
            raise ConfigError(f"fps={self.fps} cannot be kept: give 1 to 120")


class SceneCamera:
    """Publishes pictures from construction until `close`.

    A thread calls ``take``, which returns a picture, ``(height, width, 3)`` uint8 RGB.
    """

    def __init__(self, settings: CameraSettings, take: Callable[[], NDArray[np.uint8]]) -> None:
        try:
            import zmq
        except ImportError as error:
            raise ConfigError(
                "the emulated camera needs pyzmq: pip install 'lerobot_policy_vla0[so100]', or go without a camera"
            ) from error
        self.settings = settings
        self._take = take
        self._stalled = threading.Event()
        self._closed = threading.Event()
        self._context = zmq.Context()
        socket = self._context.socket(zmq.PUB)
        try:
            socket.setsockopt(zmq.LINGER, 0)
            socket.bind(f"tcp://127.0.0.1:{settings.port or '*'}")
        except zmq.ZMQError as error:
            socket.close()
            self._context.term()
            raise ConfigError(f"port {settings.port} cannot be used ({error}): give another, or 0") from error
        endpoint: Any = socket.getsockopt(zmq.LAST_ENDPOINT)
        #: TCP port on the loopback.
        self.port = int(endpoint.rstrip(b"\0").rpartition(b":")[2])
        self._thread = threading.Thread(target=self._publish, args=(socket,), name="camera", daemon=True)
        self._thread.start()

    def lerobot_config(self) -> dict[str, str | int]:
        """Return the camera's entry in a LeRobot robot config."""
        return {
            "type": "zmq",
            "server_address": "127.0.0.1",
            "port": self.port,
            "camera_name": self.settings.name,
            "timeout_ms": _WAIT_MS,
            "width": self.settings.width,
            "height": self.settings.height,
            "fps": self.settings.fps,
        }

    def stall(self) -> None:
        """Stop sending pictures, as a hung camera does, until `resume`."""
        logger.warning("fault: camera %s stalls", self.settings.name)
        self._stalled.set()

    def resume(self) -> None:
        """Send pictures again."""
        self._stalled.clear()

    def close(self) -> None:
        """Stop for good and free the port."""
        if not self._closed.is_set():
            self._closed.set()
            self._thread.join()
            self._context.term()

    def _publish(self, socket: Any) -> None:
        send, close = socket.send_string, socket.close
        due = time.monotonic()
        try:
            while not self._closed.is_set():
                if not self._stalled.is_set():
                    send(encode_message(self.settings.name, self._take()))
                due = max(due + 1 / self.settings.fps, time.monotonic() - 1.0)
                self._closed.wait(max(0.0, due - time.monotonic()))
        finally:
            close()


def encode_message(name: str, picture: NDArray[np.uint8]) -> str:
    """Return an RGB picture as LeRobot's ``zmq`` camera expects it.

    That camera decodes to OpenCV's channel order and calls it RGB, so the picture is encoded as if it were BGR.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ConfigError(f"a picture is (H, W, 3) uint8, got {picture.shape} {picture.dtype}")
    done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
    if not done:
        raise ConfigError(f"OpenCV could not encode a picture of {picture.shape}")
    image = base64.b64encode(data.tobytes()).decode("ascii")
    return json.dumps({"timestamps": {name: time.time()}, "images": {name: image}})
