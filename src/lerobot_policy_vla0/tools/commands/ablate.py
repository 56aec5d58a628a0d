"""``vla0 ablate``: train and evaluate variants of one set-up, and compare them. Arguments only."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_EXAMPLES = """\
  vla0 ablate configs/ablations/metaworld_tiny.yaml --dry-run
  vla0 ablate configs/ablations/metaworld_tiny.yaml --only masking --jobs 2
  vla0 ablate configs/ablations/libero.yaml --jobs 8 --devices cuda:0,cuda:1,cuda:2,cuda:3

Stop it at any time and give the same command again: what is finished is kept, a training goes on from its last
checkpoint. Exit status: 0 all finished, 1 something failed or is missing, 2 the arguments or the file are wrong.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``vla0 ablate``."""
    parser.epilog = _EXAMPLES
    parser.add_argument("plan", type=Path, metavar="FILE.yaml", help="what to vary, see docs/ablations.md")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: outputs/ablations/ and the file's name"
    )
    parser.add_argument("--only", action="append", metavar="FACTOR", help="this question only; repeat it")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="K", help="processes at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--devices",
        type=lambda text: [part.strip() for part in text.split(",") if part.strip()],
        default=[],
        metavar="D,D",
        help="devices to spread them over, e.g. cuda:0,cuda:1 (default: as the file says)",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would run")
    parser.add_argument("--report-only", action="store_true", help="report what is finished, run nothing")


def run(arguments: argparse.Namespace) -> int:
    """Run what is missing and report."""
    from lerobot_policy_vla0.tools.ablation.plan import read_plan
    from lerobot_policy_vla0.tools.ablation.report import write_ablation_report
    from lerobot_policy_vla0.tools.ablation.sweep import sweep, training_folder
    from lerobot_policy_vla0.tools.ablation.training import finished_policy

    plan = read_plan(arguments.plan, arguments.only)
    out = arguments.out or Path("outputs/ablations") / arguments.plan.stem
    if arguments.dry_run:
        for seed in plan.seeds:
            for training in plan.trainings(seed):
                done = finished_policy(training_folder(out, training)) is not None
                print(f"train {training.name}{' (finished)' if done else ''}")
            for evaluation in plan.evaluations(seed):
                print(f"eval  {evaluation.name} with {evaluation.training.name}")
        return 0
    failed: list[str] = []
    if not arguments.report_only:
        try:
            failed = sweep(
                plan,
                out,
                jobs=arguments.jobs,
                devices=arguments.devices,
                say=lambda line: print(line, flush=True),
            )
        except KeyboardInterrupt:
            print("vla0 ablate: stopped; the same command goes on with what is missing", file=sys.stderr)
            return 130
    for name in failed:  # first: there may be nothing to report
        print(f"vla0 ablate: failed: {name}", file=sys.stderr)
    text, missing = write_ablation_report(plan, out, f"Ablation {arguments.plan.stem}")
    print(text)
    print(f"{(out / 'report.md').resolve()}")
    return 1 if failed or missing else 0
