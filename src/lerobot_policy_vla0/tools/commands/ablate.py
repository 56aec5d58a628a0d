"""The arguments of ``vla0 ablate``, which trains and evaluates variants of one set-up and compares them."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from lerobot_policy_vla0.tools.commands.eval import comma_separated

_EXAMPLES = """\
  vla0 ablate configs/ablations/metaworld_tiny.yaml --dry-run
  vla0 ablate configs/ablations/metaworld_tiny.yaml --only masking --jobs 2
  vla0 ablate configs/ablations/libero.yaml --jobs 8 --devices cuda:0,cuda:1,cuda:2,cuda:3

Several commands at once can share a folder if each has its own --seed; --report-only without --seed then compares all.
Stop it at any time and give the same command again: what is finished is kept, a training goes on from its last
checkpoint. Exit status: 0 all finished, 1 something failed or is missing, 2 the arguments or the file are wrong.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``vla0 ablate``."""
    parser.epilog = _EXAMPLES
    add = parser.add_argument
    add("plan", type=Path, metavar="FILE.yaml", help="what to vary, see docs/ablations.md")
    add("--out", type=Path, metavar="DIR", help="default: outputs/ablations/ and the file's name")
    add("--only", action="append", metavar="FACTOR", help="this question only; repeat it")
    add("--seed", action="append", type=int, metavar="S", help="this training seed only; repeat it")
    add("--jobs", type=int, default=1, metavar="K", help="processes at a time (default: %(default)s)")
    devices = "devices to spread them over, e.g. cuda:0,cuda:1 (default: as the file says)"
    add("--devices", type=comma_separated, default=[], metavar="D,D", help=devices)
    add("--dry-run", action="store_true", help="say what would run")
    add("--report-only", action="store_true", help="report what is finished, run nothing")


def run(arguments: argparse.Namespace) -> int:
    """Run what is missing, and print the report."""
    from lerobot_policy_vla0.tools.ablation.plan import read_plan
    from lerobot_policy_vla0.tools.ablation.report import write_ablation_report
    from lerobot_policy_vla0.tools.ablation.sweep import (
        finished_run,
        needed_trainings,
        sweep,
        training_folder,
    )
    from lerobot_policy_vla0.tools.ablation.training import finished_policy

    plan = read_plan(arguments.plan, arguments.only, arguments.seed)
    out = arguments.out or Path("outputs/ablations") / arguments.plan.stem
    if arguments.dry_run:
        for seed in plan.seeds:
            needed = needed_trainings(plan, seed, out)
            for training in plan.trainings(seed):
                done = training not in needed or finished_policy(training_folder(out, training)) is not None
                print(f"train {training.name}{' (finished)' if done else ''}")
            for evaluation in plan.evaluations(seed):
                done = finished_run(evaluation, out) is not None
                print(
                    f"eval  {evaluation.name} with {evaluation.training.name}{' (finished)' if done else ''}"
                )
        return 0
    failed: list[str] = []
    if not arguments.report_only:
        try:
            say = partial(print, flush=True)
            failed = sweep(plan, out, jobs=arguments.jobs, devices=arguments.devices, say=say)
        except KeyboardInterrupt:
            print("vla0 ablate: stopped; the same command goes on with what is missing", file=sys.stderr)
            return 130
    for name in failed:  # before the report, which is an error if nothing is finished
        print(f"vla0 ablate: failed: {name}", file=sys.stderr)
    text, missing = write_ablation_report(plan, out, f"Ablation {arguments.plan.stem}")
    print(text)
    print(f"{(out / 'report.md').resolve()}")
    return 1 if failed or missing else 0
