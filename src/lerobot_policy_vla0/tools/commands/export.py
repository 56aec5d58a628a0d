"""The arguments of ``vla0 export``, which writes a policy for inference engines."""

from __future__ import annotations

import argparse
from pathlib import Path

_EXAMPLES = """\
serve a policy with vLLM, on another machine than the robot's:
  vla0 export outputs/train/checkpoints/last/pretrained_model --out served --dtype bfloat16
  vllm serve served --served-model-name vla0

serve an adapter on the model that it was trained on:
  vla0 export outputs/lora/checkpoints/last/pretrained_model --out lora --adapter
  vllm serve Qwen/Qwen2.5-VL-3B-Instruct --enable-lora --lora-modules vla0=lora \\
    --chat-template lora/chat_template.jinja --generation-config lora

the robot needs served/robot only, a policy folder without weights.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = _EXAMPLES
    add = parser.add_argument
    add("source", metavar="POLICY", help="policy folder or Hub repo; an adapter is merged into its base")
    add("--out", type=Path, metavar="DIR", required=True, help="folder to make; must be empty or new")
    add("--adapter", action="store_true", help="write the adapter alone, for engines that serve its base")
    add("--dtype", choices=("float32", "bfloat16"), help="precision of the weights (default: as stored)")


def run(arguments: argparse.Namespace) -> None:
    """Export, and say what was made."""
    out = arguments.out
    if arguments.adapter:
        from lerobot_policy_vla0.tools.exporting.adapter import export_adapter

        config = export_adapter(arguments.source, out, dtype=arguments.dtype)
        after = (
            f"serve: vllm serve BASE --enable-lora --lora-modules vla0={out} --chat-template "
            f"{out}/chat_template.jinja --generation-config {out}\n"
            f"BASE is named in {out}/vla0.json; if it is a policy, it is its export"
        )
    else:
        from lerobot_policy_vla0.tools.exporting.export import export_policy

        config = export_policy(arguments.source, out, dtype=arguments.dtype)
        after = f"serve: vllm serve {out} --served-model-name vla0\nback:  vla0 import {out} --out DIR"
    print(
        f"exported {arguments.source} to {out}\n"
        f"  answer      {config.chunk_size} steps x {config.action_dim} integers in 0-{config.n_bins}\n"
        f"  clients     {out}/vla0.json and grammar.* beside it\n"
        f"  robot       {out}/robot, a policy folder without weights\n"
        f"{after}"
    )
