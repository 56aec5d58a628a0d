"""LeRobot waits longer for an emulated arm and its camera than for real ones; everything else of it stays as it is.

LeRobot gives a servo 50 ms for an answer, asks only once while it connects, and takes a picture older than a second for
a fault. The emulator answers from threads, and a busy machine may not run them in time. That is no fault of anybody.

As a program: ``python patience.py PROGRAM ARGUMENTS...`` runs a Python program this way, in a process of its own.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

#: Milliseconds that LeRobot waits in addition to its own for a servo's answer, and for a picture.
#: Its camera gives up after five seconds without one, whatever is asked for here.
SERVO_MS, PICTURE_MS = 1000, 2000
#: A picture older than this is a fault: LeRobot's own second, and the patience.
STALE_MS = 1000 + PICTURE_MS


def be_patient() -> None:
    """Let LeRobot wait in this process. Without the packages for an arm there is nothing to wait for."""
    try:
        import scservo_sdk  # noqa: F401
        import zmq  # noqa: F401
        from lerobot.cameras.zmq import ZMQCamera
        from lerobot.motors.feetech import feetech
    except ImportError:
        return
    if getattr(feetech, "waits_longer", False):
        return
    feetech.waits_longer = True
    set_timeout = feetech.patch_setPacketTimeout
    read_latest, async_read = ZMQCamera.read_latest, ZMQCamera.async_read

    def patient_timeout(port: Any, length: int) -> None:
        set_timeout(port, length)
        port.packet_timeout += SERVO_MS

    feetech.patch_setPacketTimeout = patient_timeout
    ZMQCamera.read_latest = lambda camera, max_age_ms=STALE_MS: read_latest(camera, max_age_ms)
    ZMQCamera.async_read = lambda camera, timeout_ms=200: async_read(camera, timeout_ms + PICTURE_MS)


if __name__ == "__main__":
    be_patient()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
