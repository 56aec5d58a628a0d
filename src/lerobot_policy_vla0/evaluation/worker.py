"""One shard's process: ``lerobot-eval`` itself, which ends when the process that started it does.

    python -m lerobot_policy_vla0.evaluation.worker FD QUERIES ARGUMENTS...

QUERIES is the file to write the policy's queries to. FD is the reading end of a pipe whose other end only the
parent holds. Nothing is ever written to it: it closes when the parent is gone, however it went, and then the
shard's processes have to go as well. Knows nothing about shards.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path


def end_with_parent(descriptor: int) -> None:
    """Kill this process's group as soon as the pipe closes. The process has to lead a group of its own."""

    def watch() -> None:
        os.read(descriptor, 1)
        os.killpg(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def main() -> None:
    """Run ``lerobot-eval`` with the arguments of the command line."""
    end_with_parent(int(sys.argv[1]))
    from lerobot.scripts.lerobot_eval import main as lerobot_eval

    from lerobot_policy_vla0.evaluation.queries import recording

    queries = Path(sys.argv[2])
    sys.argv = ["lerobot-eval", *sys.argv[3:]]
    with recording(queries):
        lerobot_eval()


if __name__ == "__main__":
    main()
