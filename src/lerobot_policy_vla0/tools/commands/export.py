"""The arguments of ``vla0 export``, which writes a policy for inference engines."""

from __future__ import annotations

import argparse
from pathlib import Path

_EXAMPLES = """\
serve a policy with vLLM, on another machine than the robot's:
  vla0 export outputs/train/checkpoints/last/pretrained_model --out served --dtype bfloat16
  vllm serve served --served-model-name vla0

the robot needs served/robot only, a policy folder without weights.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = _EXAMPLES
    add = parser.add_argument
    add("source", metavar="POLICY", help="policy folder or Hub repo; an adapter is merged into its base")
    add("--out", type=Path, metavar="DIR", required=True, help="folder to make; must be empty or new")
    add("--dtype", choices=("float32", "bfloat16"), help="precision of the weights (default: as stored)")


def run(arguments: argparse.Namespace) -> None:
    """Export, and say what was made."""
    from lerobot_policy_vla0.tools.exporting.export import export_policy

    out = arguments.out
    config = export_policy(arguments.source, out, dtype=arguments.dtype)
    print(
        f"exported {arguments.source} to {out}\n"
        f"  answer      {config.chunk_size} steps x {config.action_dim} integers in 0-{config.n_bins}\n"
        f"  clients     {out}/vla0.json and grammar.* beside it\n"
        f"  robot       {out}/robot, a policy folder without weights\n"
        f"serve: vllm serve {out} --served-model-name vla0\n"
        f"back:  vla0 import {out} --out DIR"
    )
