"""The program of a worker process: ``lerobot-train`` or ``lerobot-eval`` itself, which ends with its parent.

    python -m lerobot_policy_vla0.tools.lerobot_worker train FD ARGUMENTS...
    python -m lerobot_policy_vla0.tools.lerobot_worker eval FD ORDER ARGUMENTS...

`workers.run_worker` inserts FD. ORDER says what is watched and noted meanwhile; see `evaluation.watched.WatchOrder`.
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

    from lerobot_policy_vla0.tools.evaluation import queries
    from lerobot_policy_vla0.tools.evaluation.watched import Watch, WatchOrder

    order = WatchOrder.from_argument(arguments[0])
    watch = Watch(order)
    sys.argv = ["lerobot-eval", *watch.arguments(arguments[1:])]
    with queries.recording(Path(order.folder) / queries.FILE_NAME, watch.note_query):
        lerobot_eval()
    watch.finish()


if __name__ == "__main__":
    main()
