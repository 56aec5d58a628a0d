"""The program of a worker process: ``lerobot-train`` or ``lerobot-eval`` itself, which ends with its parent.

    python -m lerobot_policy_vla0.tools.lerobot_worker train FD ARGUMENTS...
    python -m lerobot_policy_vla0.tools.lerobot_worker eval FD QUERIES ARGUMENTS...

`workers.run_worker` inserts FD. QUERIES is the file to which the policy's queries are written.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lerobot_policy_vla0.tools.workers import end_with_parent


def main() -> None:
    """Run the LeRobot command that the command line names."""
    kind, descriptor, *arguments = sys.argv[1:]
    end_with_parent(int(descriptor))
    if kind == "train":
        from lerobot.scripts.lerobot_train import main as lerobot_train

        sys.argv = ["lerobot-train", *arguments]
        lerobot_train()
        return
    from lerobot.scripts.lerobot_eval import main as lerobot_eval

    from lerobot_policy_vla0.tools.evaluation.queries import recording

    sys.argv = ["lerobot-eval", *arguments[1:]]
    with recording(Path(arguments[0])):
        lerobot_eval()


if __name__ == "__main__":
    main()
