"""One training's process: ``lerobot-train`` itself, which ends when the process that started it does.

    python -m lerobot_policy_vla0.tools.ablation.worker FD ARGUMENTS...

FD is as in `workers`.
"""

from __future__ import annotations

import sys

from lerobot_policy_vla0.tools.workers import end_with_parent


def main() -> None:
    """Run ``lerobot-train`` with the arguments of the command line."""
    end_with_parent(int(sys.argv[1]))
    from lerobot.scripts.lerobot_train import main as lerobot_train

    sys.argv = ["lerobot-train", *sys.argv[2:]]
    lerobot_train()


if __name__ == "__main__":
    main()
