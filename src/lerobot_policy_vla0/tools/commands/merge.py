"""``vla0 merge``: an adapter and its base become one ordinary policy. Arguments only."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``vla0 merge``."""
    parser.add_argument("source", help="checkpoint folder or Hub repo with an adapter")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; must be empty or new")
    parser.add_argument(
        "--save-dtype",
        choices=("float32", "bfloat16"),
        default=None,
        help="precision of the merged weights (default float32)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Merge, and say where the policy is.

    Raises:
        OutputError, CheckpointError: see `lerobot_policy_vla0.tools.merging.merge_adapter`.
    """
    from lerobot_policy_vla0.tools.merging import merge_adapter

    out = merge_adapter(arguments.source, arguments.out, save_dtype=arguments.save_dtype)
    print(f"merged policy in {out}")
