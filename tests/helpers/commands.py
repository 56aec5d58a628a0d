"""LeRobot's commands: in this process, in a fork that has imported LeRobot, or in a fresh process."""

from __future__ import annotations

import functools
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from helpers.paths import REPO

#: The smallest training configuration.
DEBUG = f"--config_path={REPO / 'configs' / 'debug.yaml'}"
#: Where console scripts are.
BIN = Path(sys.executable).parent
_HERE = Path(__file__).parent


def preloaded(*program: str | Path) -> list[str]:
    """Return what runs a Python program without importing LeRobot again; see `fork_server`.

    LeRobot is patient with the emulated arm there: see `patience`.

    Args:
        *program: a file, ``-m MODULE`` or ``-c CODE``, and its arguments.
    """
    return [sys.executable, "-I", "-S", str(_HERE / "fork_client.py"), _server(), *map(str, program)]


def fresh(*program: str | Path) -> list[str]:
    """Return what runs a Python file in a process that imports everything itself, patient as above."""
    return [sys.executable, str(_HERE / "patience.py"), *map(str, program)]


def preloaded_scripts(folder: Path, *names: str) -> Path:
    """Put stand-ins for console scripts into a folder, for programs that look for them on their PATH; returns it."""
    for name in names:
        _stand_in(folder / name, preloaded(BIN / name))
    return folder


def preloaded_python(folder: Path) -> Path:
    """Put a stand-in for `python` into a folder: it runs files, ``-m`` and ``-c`` as above; returns it."""
    return _stand_in(folder / "python", preloaded())


def _stand_in(script: Path, command: list[str]) -> Path:
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    script.chmod(0o755)
    return script


@functools.cache
def _server() -> str:
    """Start the server that all processes of this run share, unless one of them has; returns where it listens."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    owner = os.getppid() if run else os.getpid()  # it ends with this process
    folder = Path(tempfile.gettempdir(), f"vla0-fork-{run or owner}")
    folder.mkdir(exist_ok=True)
    address = folder / "socket"
    with FileLock(folder / "lock"):
        if not address.exists():
            server = subprocess.Popen(
                [sys.executable, str(_HERE / "fork_server.py"), str(address), str(owner)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the tests
            )
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n", "the fork server did not start"
    return str(address)


def train_arguments(root: Path, output: Path, *, steps: int, save: int) -> list[str]:
    """Return the arguments of a short, offline training run."""
    return [
        "--dataset.repo_id=local/tiny",
        f"--dataset.root={root}",
        f"--output_dir={output}",
        f"--steps={steps}",
        f"--save_freq={save}",
    ]


def run(main: Any, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call a LeRobot command in this process, as its console script does."""
    monkeypatch.setattr(sys, "argv", ["lerobot", *arguments])
    main()


def train(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run ``lerobot-train`` in this process."""
    from lerobot.scripts.lerobot_train import main

    run(main, arguments, monkeypatch)


def evaluate(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run ``lerobot-eval`` in this process."""
    from lerobot.scripts.lerobot_eval import main

    run(main, arguments, monkeypatch)
