"""The arguments of ``vla0 open-loop``, which compares predicted with demonstrated actions, without a robot."""

from __future__ import annotations

import argparse
import json
import sys

from lerobot_policy_vla0.tools.commands import shared

_EXAMPLES = """\
the episodes that training held out (--dataset.eval_split), with a page to look at:
  vla0 open-loop --policy.path=outputs/train/checkpoints/last/pretrained_model \\
    --dataset.repo_id=me/my-data --out outputs/open_loop

in CI, on ten frames of two episodes; exit status 1 if the policy is worse than this:
  vla0 open-loop --policy.path=me/my-policy --dataset.repo_id=me/my-data --episodes 48,49 \\
    --frames-per-episode 10 --max-mae-bins 20
"""
_EPISODES = "such as 3,5-7; default: what training held out, else the last episode of each task"
_FRAMES = "ask at N frames of each episode, evenly spread"
_MAX_MAE = "exit with 1 if the mean error in {} is above X"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = _EXAMPLES
    shared.add_policy_options(parser, path_required=True)
    shared.add_dataset_options(parser)
    shared.add_rename_map(parser)
    add = parser.add_argument
    add("--episodes", metavar="LIST", help=_EPISODES)
    frames = parser.add_mutually_exclusive_group()
    every = "ask at every N-th frame (default 1)"
    frames.add_argument("--stride", type=int, default=1, metavar="N", help=every)
    frames.add_argument("--frames-per-episode", type=int, metavar="N", help=_FRAMES)
    add("--batch-size", type=int, default=16, metavar="N", help="frames per query (default 16)")
    add("--seed", type=int, default=0, help="for --policy.temperature above 0 (default 0)")
    shared.add_report_options(parser)
    add("--max-mae", type=float, metavar="X", help=_MAX_MAE.format("the robot's units"))
    add("--max-mae-bins", type=float, metavar="X", help=_MAX_MAE.format("bins"))


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, print and write. Return 1 if an error is above its threshold."""
    from lerobot_policy_vla0.output_files import refuse_existing
    from lerobot_policy_vla0.tools import loading
    from lerobot_policy_vla0.tools.inspection import open_loop, open_loop_report

    source = shared.dataset_source(arguments)
    if arguments.out is not None:
        refuse_existing(arguments.out)  # before the work, not after it
    meta = source.metadata()
    chosen = None
    if arguments.episodes is not None:
        chosen = loading.parse_episodes(arguments.episodes, meta.total_episodes)
    trained = loading.load_policy(
        arguments.policy_path, shared.policy_overrides(arguments), meta, arguments.rename_map
    )
    unseen = loading.held_out_episodes(meta, source, trained.training)
    result = open_loop.evaluate(
        trained,
        source,
        meta,
        chosen or unseen or loading.last_episode_of_each_task(meta),
        unseen=unseen,
        stride=arguments.stride,
        frames_per_episode=arguments.frames_per_episode,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        progress=lambda line: print(line, file=sys.stderr),
    )
    numbers = open_loop.summary(result)
    print(json.dumps(numbers) if arguments.json else open_loop_report.terminal(numbers))
    if arguments.out is not None:
        print(f"report: {open_loop_report.write(result, numbers, arguments.out)}", file=sys.stderr)
    broken = open_loop.over_threshold(numbers, arguments.max_mae, arguments.max_mae_bins)
    for line in broken:
        print(f"vla0 open-loop: {line}", file=sys.stderr)
    return 1 if broken else 0
