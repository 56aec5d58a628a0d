"""Stands for a program that runs in a fork of `fork_server`: ``fork_client.py SOCKET PROGRAM ARGUMENTS...``.

Starts in milliseconds. Its files (inherited ones, too), environment and folder are the program's, which leads a process
group if this process does; it passes signals on and ends as the program ends.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys


def main() -> None:
    """Have the program run, and end with its status."""
    passed_on = (signal.SIGINT, signal.SIGTERM)
    # The program may be at work before this process is: a signal that comes in between has to wait.
    signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
    # Python closes its own files in programs that it starts: what is inheritable was left open on purpose.
    opened = [int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2]
    inherited = [number for number in opened if os.path.exists(f"/proc/self/fd/{number}")]
    inherited = [number for number in inherited if os.get_inheritable(number)]
    request = {
        "command": sys.argv[2:],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "files": inherited,
        "leads": os.getpgrp() == os.getpid(),
    }
    data = json.dumps(request).encode()
    socket.send_fds(connection, [struct.pack("I", len(data))], [0, 1, 2, *inherited])
    connection.sendall(data)
    for number in passed_on:
        signal.signal(number, lambda number, _: connection.sendall(bytes([number])))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
    answer = connection.recv(4)
    if len(answer) != 4:
        sys.exit("the fork server is gone")
    (status,) = struct.unpack("i", answer)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main()
