"""A serial port that is a pseudo-terminal, with a bus behind it.

pyserial opens it like a USB adapter. It needs Linux or another system with pseudo-terminals.
"""

from __future__ import annotations

import logging
import os
import select
import termios
import threading
import time
import tty
from pathlib import Path

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.so100_emulator.bus import ServoBus
from lerobot_policy_vla0.tools.so100_emulator.packets import PacketParser

logger = logging.getLogger(__name__)

_SPEEDS = {
    termios.B1000000: 1_000_000,
    termios.B500000: 500_000,
    termios.B115200: 115_200,
    termios.B57600: 57_600,
    termios.B38400: 38_400,
    termios.B19200: 19_200,
}


class SerialPort:
    """Serves a bus on a pseudo-terminal in a thread of its own, from construction until `close`.

    The port appears at ``path`` as a symbolic link, which replaces a link that is there already.
    """

    def __init__(self, bus: ServoBus, path: Path) -> None:
        if path.exists() and not path.is_symlink():
            raise ConfigError(f"{path} exists and is no link to a port: choose another folder or remove it")
        self.bus = bus
        self.path = path
        self._thread: threading.Thread | None = None
        self.replug()

    def unplug(self) -> None:
        """Pull the cable. The host gets an I/O error, as with a USB adapter, and the port's name disappears."""
        logger.warning("fault: port %s is unplugged", self.path)
        self.close()

    def replug(self) -> None:
        """Plug the cable in again, which makes a new port of the same name. Servos kept their power."""
        if self._thread is not None:
            return
        master, slave = os.openpty()
        tty.setraw(slave)
        os.set_blocking(master, False)
        stopped, self._stop = os.pipe()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        self.path.symlink_to(os.ttyname(slave))
        self._thread = threading.Thread(
            target=self._serve,
            args=(master, slave, stopped, self._stop),
            name=f"serve {self.path}",
            daemon=True,
        )
        self._thread.start()

    def close(self) -> None:
        """Remove the port's name, then the connection."""
        if self._thread is None:
            return
        self.path.unlink(missing_ok=True)
        os.write(self._stop, b"x")
        self._thread.join()
        self._thread = None

    def _serve(self, master: int, slave: int, stopped: int, stop: int) -> None:
        parser = PacketParser()
        try:
            while True:
                ready, _, _ = select.select([master, stopped], [], [])
                if stopped in ready:
                    return
                # The slave stays open, so that the end of a connection is no end of file. Its speed is the host's.
                baud_rate = _SPEEDS.get(termios.tcgetattr(slave)[5], 0)
                for packet in parser.feed(os.read(master, 4096)):
                    for reply in self.bus.handle(packet, baud_rate):
                        time.sleep(self.bus.faults.next_delay())
                        try:
                            os.write(master, reply)
                        except BlockingIOError:
                            logger.warning("nobody reads port %s: an answer is lost", self.path)
        finally:
            for descriptor in (slave, master, stopped, stop):
                os.close(descriptor)
