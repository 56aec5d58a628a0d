"""The arguments of ``vla0 import``, which turns a checkpoint that LeRobot did not write into a policy folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from lerobot_policy_vla0.tools.commands import shared

_EXAMPLES = """\
the paper's checkpoint (about 7.5 GB; its optimizer state is not fetched):
  vla0 import ankgoyal/vla0-libero --out vla0-libero

a model trained with vla0-trl, which does not store how it was trained:
  vla0 import outputs/run/checkpoint-1000 --out my-policy --chunk-size 8 --n-bins 1000 --image-size 224 \\
    --crop-ratio 0.875 --tile --camera image=observation.images.image --camera image2=observation.images.image2

a policy that vla0 export wrote, bit for bit:
  vla0 import served --out my-policy

The paper's weights are licensed CC BY-NC 4.0, Qwen2.5-VL-3B under the Qwen Research License: no commercial use.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = _EXAMPLES
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a folder, or a repo id on the Hugging Face Hub")
    add("--out", metavar="DIR", required=True, help="policy folder to make; must be empty or new")
    add("--revision", help="Hub revision: a branch, tag or commit")
    add("--subfolder", metavar="NAME", help="model folder in SOURCE, if it has several")
    add(
        "--camera",
        action="append",
        default=[],
        type=shared.camera_pair,
        metavar="NAME=KEY",
        dest="cameras",
        help="image key in LeRobot of a camera of the checkpoint, named as there (3p1) or as in LIBERO (image, "
        "image2); repeat it. Default: LIBERO's, observation.images.image and observation.images.image2",
    )
    add(
        "--paper-ensemble",
        action="store_true",
        help="average overlapping chunks equally, as the paper says; without it older chunks weigh 0.5, as in its code",
    )
    add("--repetition-penalty", type=float, metavar="P", help="instead of the checkpoint's")
    add(
        "--binary-action-indices",
        type=_indices,
        metavar="I,J",
        help="action dimensions snapped to the ends of their range, or 'none'; default: 6, LIBERO's gripper, if there "
        "are 7 dimensions",
    )
    add(
        "--base-model",
        default="Qwen/Qwen2.5-VL-3B-Instruct",
        metavar="REPO",
        help="backbone the weights were fine-tuned from, for the model card (default: %(default)s)",
    )
    add = parser.add_argument_group("what the checkpoint does not say (vla0-trl's layout)").add_argument
    add("--chunk-size", type=int, metavar="H", help="steps per answer")
    add("--n-bins", type=int, metavar="B", help="the top integer")
    add("--image-size", type=_size, metavar="PX|HxW", help="pixels of one camera")
    add("--crop-ratio", type=float, metavar="R", help="side of the crop as a fraction")
    tiled = "cameras side by side in one image"
    add("--tile", action=argparse.BooleanOptionalAction, dest="tile_images", help=tiled)


def run(arguments: argparse.Namespace) -> None:
    """Import the checkpoint, and say what was made."""
    from lerobot_policy_vla0.errors import CameraError
    from lerobot_policy_vla0.tools.importing.checkpoint import ImportOptions, import_checkpoint

    names = [name for name, _ in arguments.cameras]
    if len(set(names)) != len(names):
        raise CameraError(f"--camera is given twice for one name: {names}. Give each camera once.")
    given = {k: v for k, v in vars(arguments).items() if k not in ("command", "source", "out")}
    config = import_checkpoint(
        arguments.source, arguments.out, ImportOptions(**{**given, "cameras": dict(arguments.cameras)})
    )
    card = f"; see {arguments.out}/README.md" if Path(arguments.out, "README.md").is_file() else ""
    print(
        f"imported {arguments.source} to {arguments.out}\n"
        f"  answer      {config.chunk_size} steps x {config.action_dim} integers in 0-{config.n_bins}\n"
        f"  cameras     {', '.join(config.camera_keys)}\n"
        f"  execution   {config.n_action_steps} step per query, mean of {config.ensemble_n_chunks} chunks "
        f"(older ones weigh {config.ensemble_old_weight})\n"
        f"  snapped     dimensions {config.binary_action_indices}\n"
        f"  licence     {config.license}{card}\n"
        f"evaluate: lerobot-eval --policy.path={arguments.out} --policy.param_dtype=bfloat16 ...\n"
        f"train:    lerobot-train --policy.path={arguments.out} --policy.push_to_hub=false ..."
    )


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    try:
        return int(height), int(width or height)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither pixels (224) nor HEIGHTxWIDTH (224x448)"
        ) from None


def _indices(text: str) -> tuple[int, ...]:
    try:
        return () if text == "none" else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither 'none' nor dimensions such as 6 or 6,13"
        ) from None
