"""Runs Python programs in forks of a process that has imported LeRobot already: importing it takes seconds each time.

Programs get arguments, environment, folder, files and signals as in a process of their own, which they are in. What
they do not show is whether they import what they need: every command of LeRobot also runs somewhere in a fresh process.
Nothing is done here before a fork but imports. `commands.preloaded` starts this and says how to use it.

A client connects, sends its files with the length of a request, and the request as JSON. Later it sends a byte for each
signal. It is answered with the exit status. When it goes away, its program is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import struct
import sys
import warnings
from typing import Any

MODULES = (
    "lerobot_policy_vla0.modeling_vla0",
    "lerobot_policy_vla0.processor_vla0",
    "lerobot_policy_vla0.tools.commands",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "lerobot.scripts.lerobot_train",
    "lerobot.scripts.lerobot_eval",
    "lerobot.scripts.lerobot_record",
    "lerobot.scripts.lerobot_replay",
    "lerobot.scripts.lerobot_rollout",
    "lerobot.cameras.zmq",
    "lerobot.motors.feetech",
)
#: What libraries read while they are imported begins with one of these.
READ_AT_IMPORT = ("HF_", "TRANSFORMERS_", "TORCH", "OMP_", "MKL_", "PYTHONHASHSEED")
MAX_FILES = 16  # that a program inherits
UNUSED = 500  # no file of this process has this number, or one above


def main() -> None:
    """Serve at ``fork_server.py SOCKET OWNER`` until the process OWNER has ended; then remove the socket's folder."""
    owner = os.pidfd_open(int(sys.argv[2]))
    started_with = dict(os.environ)
    for name in MODULES:
        with contextlib.suppress(ImportError):  # an extra that is not installed
            importlib.import_module(name)
    importlib.import_module("patience").be_patient()
    # The only other thread is pyarrow's allocator's, which knows what to do about forks.
    warnings.filterwarnings("ignore", message=".*multi-threaded", category=DeprecationWarning)
    gc.collect()
    gc.freeze()  # or collecting garbage in a fork would copy all of it
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen()
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([owner, listener], [], [])
        if owner in ready:
            return shutil.rmtree(os.path.dirname(sys.argv[1]))
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            os.close(owner)
            request = watch(connection)
            if request is None:
                os._exit(0)
            return run(request, started_with)
        connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def watch(connection: socket.socket) -> dict[str, Any] | None:
    """Fork, and return the request in the fork. Here, pass signals on and the status back, and return None."""
    head, files, _, _ = socket.recv_fds(connection, 4, MAX_FILES)
    wanted, data = struct.unpack("I", head)[0], b""
    while len(data) < wanted:
        data += connection.recv(wanted - len(data))
    request: dict[str, Any] = json.loads(data)
    child = os.fork()
    if request["leads"]:  # set in both, whichever is first
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(child, 0)
    if child == 0:
        connection.close()
        place(files, [0, 1, 2, *request["files"]])
        return request
    for file in (0, 1, 2, *files):
        os.close(file)
    ended = os.pidfd_open(child)
    while ended not in (ready := select.select([ended, connection], [], [])[0]):
        assert connection in ready
        try:
            number = connection.recv(1)
        except ConnectionError:
            number = b""
        if number:
            os.kill(child, number[0])
        else:
            (os.killpg if request["leads"] else os.kill)(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(ConnectionError):
        connection.sendall(struct.pack("i", status))
    return None


def place(files: list[int], numbers: list[int]) -> None:
    """Give the received files the numbers that they had in the client."""
    away = [fcntl.fcntl(file, fcntl.F_DUPFD, UNUSED) for file in files]
    for file in files:
        os.close(file)
    taken = {int(name) for name in os.listdir("/proc/self/fd")} & set(numbers[3:])
    for file, number in zip(away, numbers, strict=True):
        os.dup2(file, number)
        os.close(file)
    if taken:
        sys.exit(f"the files {sorted(taken)} are the fork server's: run this in a fresh process")


def run(request: dict[str, Any], started_with: dict[str, str]) -> None:
    """Become the program: a file, ``-m MODULE`` or ``-c CODE``, and its arguments."""
    wanted: dict[str, str] = request["environment"]
    late = sorted(
        name
        for name in wanted.keys() | started_with.keys()
        if name.startswith(READ_AT_IMPORT) and wanted.get(name) != started_with.get(name)
    )
    if late:
        sys.exit(f"{late} are read at import, and were different then: run this in a fresh process")
    os.environ.clear()
    os.environ.update(wanted)
    os.chdir(request["folder"])
    program, *arguments = request["command"]
    path = [entry for entry in wanted.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if program in ("-m", "-c"):
        subject, *arguments = arguments
        sys.argv = [program, *arguments]
        sys.path[:0] = ["" if program == "-c" else os.getcwd(), *path]
        if program == "-m":
            runpy.run_module(subject, run_name="__main__", alter_sys=True)
        else:
            exec(compile(subject, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [program, *arguments]
        sys.path[:0] = [os.path.dirname(program), *path]
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
