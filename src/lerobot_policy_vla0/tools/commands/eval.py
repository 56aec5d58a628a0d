"""The arguments of ``vla0 eval``: ``lerobot-eval`` in shards that are resumed, retried and merged."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

_EXAMPLES = """\
arguments after -- go to lerobot-eval, except --output_dir, which --out sets:
  vla0 eval --shards 2 --out outputs/eval/reach -- --policy.path=outputs/train/vla0/checkpoints/last/pretrained_model \\
    --env.type=metaworld --env.task=reach-v3,push-v3 --eval.n_episodes=50 --seed=200000

four suites of LIBERO on two GPUs, two processes on each:
  vla0 eval --shards 4 --devices cuda:0,cuda:1 --out outputs/eval/libero -- --policy.path=vla0-libero \\
    --env.type=libero --env.task=libero_spatial,libero_object,libero_goal,libero_10 --eval.n_episodes=50

Stop it at any time and give the same command again: finished shards are skipped. Exit status: 0 all shards finished,
1 some failed (their logs are named), 2 the arguments are wrong.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``vla0 eval``."""
    parser.epilog = _EXAMPLES
    parser.usage = "vla0 eval --out DIR [--shards K] [options] -- LEROBOT-EVAL-ARGUMENTS"
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder; going on with it is fine")
    processes = "processes that run at a time (default: %(default)s)"
    add("--shards", type=int, default=1, metavar="K", help=processes)
    devices = "devices to spread the processes over, e.g. cuda:0,cuda:1 (default: as --policy.device says)"
    add("--devices", type=comma_separated, default=[], metavar="D,D", help=devices)
    split = "split tasks as well; a multiple of --eval.batch_size, and only where the seed alone decides the start"
    add("--episodes-per-shard", type=int, metavar="N", help=split)
    tries = "further attempts at a shard that fails (default: %(default)s)"
    add("--retries", type=int, default=1, metavar="N", help=tries)
    stall = (
        "kill and retry a shard without a reset, step or query for so long (default: 600; start-up: an hour)"
    )
    add("--stall-seconds", type=float, default=600.0, metavar="S", help=stall)
    track = "log the running evaluation: success so far, by task, failures (its package has to be installed)"
    perturb = (
        "change what the policy sees, e.g. shift=8px,brightness=0.2,noise=4,instruction=paraphrase,camera=1cm"
    )
    add("--perturb", metavar="KEY=VALUE,...", help=perturb)
    add("--track", choices=("trackio", "wandb"), help=track)
    add("arguments", nargs="*", metavar="LEROBOT-EVAL-ARGUMENTS", help="after --")


def comma_separated(text: str) -> list[str]:
    """Return the parts of ``a,b``."""
    return [part.strip() for part in text.split(",") if part.strip()]


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, and print where the results are."""
    from lerobot_policy_vla0.tools.evaluation.shards import evaluate

    try:
        outcome = evaluate(
            arguments.out,
            arguments.arguments,
            n_workers=arguments.shards,
            devices=arguments.devices,
            episodes_per_shard=arguments.episodes_per_shard,
            retries=arguments.retries,
            stall_seconds=arguments.stall_seconds,
            track=arguments.track,
            perturb=arguments.perturb,
            say=partial(print, flush=True),
        )
    except KeyboardInterrupt:
        print("vla0 eval: stopped; the same command goes on with what is missing", file=sys.stderr)
        return 130
    if outcome.hung:
        print(f"shards of which an attempt hung: {', '.join(outcome.hung)}")
    if not outcome.complete:
        print(
            f"vla0 eval: {len(outcome.failed)} shards failed: {', '.join(outcome.failed)}. The same command tries "
            "them again",
            file=sys.stderr,
        )
        return 1
    print(f"all shards finished: {arguments.out}/eval_info.json\nreport: vla0 eval-report {arguments.out}")
    return 0
