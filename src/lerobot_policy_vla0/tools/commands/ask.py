"""The arguments of ``vla0 ask``: a question to a policy about pictures, and how much language it kept."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.commands import shared

_EXAMPLES = """\
a picture, and a policy with one camera:
  vla0 ask --policy.path=me/my-policy --image table.png "What is on the table?"

a frame of a dataset:
  vla0 ask --policy.path=me/my-policy --dataset.repo_id=me/my-data --episode 3 --frame 40 "Is the drawer open?"

the next step towards a goal, as lerobot-rollout's /autosteer asks for it:
  vla0 ask --policy.path=me/my-policy --image top=a.png --image wrist=b.png --next-subtask "Tidy the table."

how much language a fine-tune kept:
  vla0 ask --policy.path=me/my-policy --kept examples/ask/questions.jsonl
"""
_IMAGE = "a picture for the policy's camera; for several repeat it, in their order or as CAMERA=FILE (*=FILE: the rest)"
_KEPT = (
    "JSONL of 'images' and 'question': log-likelihood of the base model's answers under the policy's weights"
)
#: Arguments that have no meaning with --kept: name in the namespace, and as it is written.
_NOT_WITH_KEPT = {
    "question": "a question",
    "images": "--image",
    "repo_id": "--dataset.repo_id",
    "root": "--dataset.root",
    "next_subtask": "--next-subtask",
    "task": "--task",
    "temperature": "--temperature",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = _EXAMPLES
    shared.add_policy_options(parser, path_required=True)
    shared.add_dataset_options(parser, required=False)
    shared.add_rename_map(parser)
    add = parser.add_argument
    add("question", nargs="?", metavar="QUESTION", help="the question, or the goal with --next-subtask")
    add("--image", action="append", dest="images", metavar="FILE|CAMERA=FILE", help=_IMAGE)
    add("--episode", type=int, default=0, metavar="E", help="of the dataset (default 0)")
    add("--frame", type=int, default=0, metavar="F", help="of that episode (default 0)")
    add("--next-subtask", action="store_true", help="ask for one subtask towards a goal")
    add("--task", default="", metavar="TEXT", help="with --next-subtask: what the robot is doing now")
    add("--max-tokens", type=int, metavar="N", help="longest answer (default 128)")
    add("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default); above 0 samples")
    add("--seed", type=int, default=0, help="for --temperature above 0 (default 0)")
    add("--kept", type=Path, metavar="FILE", help=_KEPT)
    add("--json", action="store_true", help="with --kept: print the numbers as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Answer, or measure what was kept.

    Raises:
        ConfigError: for arguments that contradict each other.
    """
    from lerobot_policy_vla0.decoding.free_text import MAX_NEW_TOKENS, refuse_unable
    from lerobot_policy_vla0.tools import loading

    _check(arguments)
    tokens = MAX_NEW_TOKENS if arguments.max_tokens is None else arguments.max_tokens
    config = loading.load_config(arguments.policy_path, shared.policy_overrides(arguments))
    refuse_unable(config)
    if arguments.kept is not None:
        from lerobot_policy_vla0.tools.asking import kept

        measured = kept.measure(
            arguments.policy_path,
            config,
            arguments.kept,
            max_new_tokens=tokens,
            progress=lambda line: print(line, file=sys.stderr),
        )
        print(json.dumps(kept.summary(measured)) if arguments.json else kept.terminal(measured))
        return
    _answer(arguments, config, tokens)


def _check(arguments: argparse.Namespace) -> None:
    recorded = arguments.repo_id is not None or arguments.root is not None
    if arguments.kept is not None:
        extra = [written for name, written in _NOT_WITH_KEPT.items() if getattr(arguments, name)]
        if extra:
            raise ConfigError(
                f"--kept asks the questions of its file, greedily; leave out {', '.join(extra)}."
            )
        return
    if arguments.json:
        raise ConfigError("--json prints the numbers of --kept; there are none for a single question.")
    if arguments.question is None:
        raise ConfigError('no question was given. Write it as the last argument: "What is on the table?"')
    if arguments.task and not arguments.next_subtask:
        raise ConfigError(
            f"--task={arguments.task!r} is for --next-subtask; a free question does not say it. Leave it out."
        )
    if bool(arguments.images) == recorded:
        raise ConfigError(
            ("--image and --dataset both say" if recorded else "neither --image nor --dataset.repo_id says")
            + " where the pictures come from. Give one of them."
        )


def _answer(arguments: argparse.Namespace, config: Any, tokens: int) -> None:
    """Read the pictures, load the policy, and print its answer as it is written."""
    import torch
    from transformers import TextStreamer

    from lerobot_policy_vla0.checkpoints.files import resolve_checkpoint
    from lerobot_policy_vla0.modeling_vla0 import VLA0Policy
    from lerobot_policy_vla0.text.question import NEXT_SUBTASK, VQA
    from lerobot_policy_vla0.tools import loading
    from lerobot_policy_vla0.tools.asking import pictures

    # Whatever can be wrong with the question is said before the weights are loaded.
    if arguments.images:
        seen = pictures.read_files(pictures.assign_files(arguments.images, config.camera_keys))
    else:
        source = shared.dataset_source(arguments)
        meta = source.metadata()
        cameras = loading.match_cameras(config, meta, arguments.rename_map)
        item = loading.read_frame(source, meta, arguments.episode, arguments.frame)
        seen = {camera: item[key].unsqueeze(0) for camera, key in cameras.items()}
    preprocess, _ = loading.load_processors(arguments.policy_path, config)
    kind = NEXT_SUBTASK if arguments.next_subtask else VQA
    batch = pictures.question_batch(preprocess, seen, kind, arguments.question, arguments.task)
    policy = VLA0Policy.from_pretrained(
        resolve_checkpoint(arguments.policy_path), config=config, merge_adapter=False
    )
    torch.manual_seed(arguments.seed)
    # A subtask is one line, which may lose its list marker at the end: it is printed when it is whole.
    streamer = (
        None
        if arguments.next_subtask
        else TextStreamer(policy.vlm.tokenizer, skip_prompt=True, skip_special_tokens=True)
    )
    answer = policy.generate_text(
        batch, max_new_tokens=tokens, temperature=arguments.temperature, streamer=streamer
    )
    if streamer is None:
        print(answer)
