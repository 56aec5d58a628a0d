"""The arguments of ``vla0 merge``, which turns an adapter and its base into one ordinary policy."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add, precision = parser.add_argument, "precision of the merged weights (default float32)"
    add("source", help="checkpoint folder or Hub repo with an adapter")
    add("--out", type=Path, required=True, help="folder to make; must be empty or new")
    add("--save-dtype", choices=("float32", "bfloat16"), help=precision)


def run(arguments: argparse.Namespace) -> None:
    """Merge, and say where the policy is."""
    from lerobot_policy_vla0.tools.merging import merge_adapter

    out = merge_adapter(arguments.source, arguments.out, save_dtype=arguments.save_dtype)
    print(f"merged policy in {out}")
