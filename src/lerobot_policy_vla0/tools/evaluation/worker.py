"""One shard's process: ``lerobot-eval`` itself, which ends when the process that started it does.

    python -m lerobot_policy_vla0.tools.evaluation.worker FD QUERIES ARGUMENTS...

QUERIES is the file to write the policy's queries to, FD as in `workers`. Knows nothing about shards.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lerobot_policy_vla0.tools.workers import end_with_parent


def main() -> None:
    """Run ``lerobot-eval`` with the arguments of the command line."""
    end_with_parent(int(sys.argv[1]))
    from lerobot.scripts.lerobot_eval import main as lerobot_eval

    from lerobot_policy_vla0.tools.evaluation.queries import recording

    queries = Path(sys.argv[2])
    sys.argv = ["lerobot-eval", *sys.argv[3:]]
    with recording(queries):
        lerobot_eval()


if __name__ == "__main__":
    main()
